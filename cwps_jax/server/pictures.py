"""Pictures from a request's body, as a task's model takes them; bad ones are refused early."""

from collections.abc import Iterable

import numpy as np
from fastapi import Request
from starlette.datastructures import UploadFile

from cwps_jax.data import decode
from cwps_jax.data.transforms import Transform
from cwps_jax.server.limits import Limits
from cwps_jax.server.refusals import Refusal

FIELDS = 100  # the most fields of a form beside its files, which are names of tasks
RAW = ("image/", "application/octet-stream")


def content_type(request: Request) -> str:
    """Returns the type of a request's body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_pictures(
    request: Request, kind: str, limits: Limits
) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Returns a request's pictures with their names, as they were sent, and the tasks that its form names.

    Args:
        request: the request: multipart/form-data with files and fields "task", or a body that is one picture.
        kind: the request's `content_type`.
        limits: the limits of requests.

    Raises:
        Refusal: there is no picture, there are too many, or the body is of another kind.
    """
    if kind.startswith(RAW):
        return [("picture", await request.body())], []
    if kind != "multipart/form-data":
        raise Refusal(
            415,
            f"{kind or 'no type'} is not what is read here",
            "header Content-Type",
            "send multipart/form-data with files, one picture as image/jpeg, image/png or the like, or an "
            "array as application/x-npy or application/json",
        )
    files = limits.pictures + FIELDS  # With more room, this package refuses, and says what to do.
    async with request.form(max_files=files, max_fields=FIELDS) as form:
        parts = form.multi_items()
        sent = [part for _, part in parts if isinstance(part, UploadFile)]
        tasks = [part for name, part in parts if name == "task" and isinstance(part, str)]
        if len(sent) > limits.pictures:
            raise Refusal(
                413,
                f"{len(sent)} pictures are more than {limits.pictures}",
                "form",
                "send them in several requests, or start the server with a larger --pictures",
            )
        named = [
            (part.filename or f"picture {number}", await part.read()) for number, part in enumerate(sent)
        ]
    if not named:
        raise Refusal(400, "no picture", "form", "send files: curl -F images=@photo.jpg")
    return named, tasks


def prepare(name: str, content: bytes, transforms: Iterable[Transform], limits: Limits) -> list[np.ndarray]:
    """Returns a picture as each transform prepares it, exactly as `cwps.predict` does.

    Args:
        name: the picture's name in messages.
        content: the content of an image file.
        transforms: the transforms of the tasks.
        limits: the limits of requests.

    Returns:
        For each transform, uint8 (height, width, 3).

    Raises:
        Refusal: the picture cannot be decoded, or has too many pixels by its header.
    """
    where = f"picture {name[:80]!r}"
    try:
        width, height = decode.open_image(content).size
        if width * height > limits.pixels:
            raise Refusal(
                413, f"{width} x {height} pixels are more than {limits.pixels}", where, "scale it down"
            )
        return [transform.evaluation(content) for transform in transforms]
    except decode.TooLarge as error:
        raise Refusal(413, str(error).partition("; ")[0], where, "scale it down") from error
    except decode.Undecodable as error:
        raise Refusal(422, f"not a readable picture ({error})", where, "mend it or leave it out") from error
