"""Arrays in requests, for tasks that were learned from arrays; they are checked before they are made."""

import io
import json
import math
from typing import Any

import numpy as np

from cwps_jax.serve import LearnedWith
from cwps_jax.server.limits import Limits
from cwps_jax.server.refusals import Refusal

NPY, JSON = "application/x-npy", "application/json"
KINDS = (NPY, JSON)
HEADER = 10_000  # the most bytes of the header of a .npy file, which is numpy's default limit


def read_inputs(content: bytes, kind: str, tasks: list[LearnedWith], limits: Limits) -> np.ndarray:
    """Returns the inputs of a request as its tasks take them, (n, *shape).

    Args:
        content: the content of the request's body.
        kind: one of `KINDS`: the body is a .npy file, or JSON, {"inputs": [...]}.
        tasks: the requested tasks; all have to take inputs of one shape and dtype.
        limits: the limits of requests.

    Raises:
        Refusal: the body is neither of the two, or a task does not take its shape, its dtype or a value.
    """
    first, *others = tasks
    for other in others:
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            what = f"{first.name} takes {_told(first)}, {other.name} {_told(other)}"
            raise Refusal(422, what, "task", "ask them one by one, with ?task=")
    array = _from_npy(content, first, limits) if kind == NPY else _from_json(content, first, limits)
    if not np.all(np.isfinite(array)):
        raise Refusal(422, "a value is not finite", "inputs", "leave it out, or replace it by a number")
    return array


def _from_npy(content: bytes, task: LearnedWith, limits: Limits) -> np.ndarray:
    """Returns the array of a .npy file; until the array is known to fit, only the header is read."""
    stream, how = io.BytesIO(content), "send what numpy.save wrote, of numbers"
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(stream)
        if version not in readers:
            raise ValueError(f"version {version[0]}.{version[1]}")
        shape, by_columns, dtype = readers[version](stream, max_header_size=HEADER)
    except ValueError as error:
        what = f"not a .npy file ({str(error).splitlines()[0]})"
        raise Refusal(422, what, "body", how) from error
    _check(shape, dtype, task, limits)
    size, told = len(content) - stream.tell(), math.prod(shape) * dtype.itemsize
    if size != told:
        raise Refusal(422, f"{size} bytes of numbers, where its header tells {told}", "body", how)
    numbers = np.frombuffer(content, dtype, offset=stream.tell())
    return numbers.reshape(shape, order="F" if by_columns else "C")


def _from_json(content: bytes, task: LearnedWith, limits: Limits) -> np.ndarray:
    how = f'send {{"inputs": [...]}}, {_told(task)}'
    try:
        given: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refusal(422, f"not JSON ({error})", "body", how) from error
    if not isinstance(given, dict) or given.keys() != {"inputs"}:
        raise Refusal(422, "not an object with 'inputs' alone", "body", how)
    try:
        array = np.array(given["inputs"])
    except (ValueError, OverflowError) as error:
        raise Refusal(422, "lists of different lengths", "inputs", how) from error
    whole = np.issubdtype(task.dtype, np.integer)
    if array.dtype.kind not in ("iu" if whole else "iuf"):
        raise Refusal(422, f"not {'whole ' if whole else ''}numbers alone", "inputs", how)
    _check(array.shape, task.dtype, task, limits)
    if whole:
        most = np.iinfo(task.dtype)
        if array.min() < most.min or array.max() > most.max:
            raise Refusal(422, f"a number is not from {most.min} to {most.max}", "inputs", how)
    with np.errstate(over="ignore"):  # Numbers that are too large become infinite, which is refused.
        return array.astype(task.dtype)


def _check(shape: tuple[int, ...], dtype: np.dtype, task: LearnedWith, limits: Limits) -> None:
    if dtype != task.dtype or shape[1:] != task.shape or not shape or not shape[0]:
        how = f"{task.name} takes {_told(task)}"
        raise Refusal(422, f"{shape} of {dtype.name}", "inputs", how)
    if shape[0] > limits.pictures:
        what = f"{shape[0]} inputs are more than {limits.pictures}"
        raise Refusal(
            413, what, "inputs", "send them in several requests, or start the server with a larger --pictures"
        )


def _told(task: LearnedWith) -> str:
    return f"(n, {', '.join(map(str, task.shape))}) of {task.dtype.name}"
