"""The forms of requests and answers, which the page of the API (/docs) shows."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict  # pydantic accepts typing.TypedDict only from Python 3.12 on

Share = TypedDict("Share", {"class": str, "probability": float})


# A task's answer for a picture: its most probable class, and the other ones.
Answer = TypedDict(
    "Answer", {"task": str, "version": str, "class": str, "probability": float, "top": list[Share]}
)


class Prediction(TypedDict):
    """The answers of tasks for a picture."""

    picture: str
    answers: list[Answer]


class Predicted(TypedDict):
    """The answers of tasks for pictures, in the order of the pictures."""

    predictions: list[Prediction]


class Listed(TypedDict):
    """A task: its newest or loaded version, the inputs that it `takes`, or `why` it cannot answer."""

    task: str
    version: str
    loaded: bool
    takes: str
    why: str
    bytes: int
    method: str
    classes: list[str]
    accuracy: float | None
    owners: dict[str, float]


class Listing(TypedDict):
    """All tasks, and the bytes of the loaded ones by their place."""

    tasks: list[Listed]
    resident: dict[str, int]


class Ready(TypedDict):
    """The answer of a ready server: the largest batch compiled so far, and the largest that will be."""

    status: str
    compiled: int
    batch_size: int


class Named(BaseModel):
    """The name of a task, or "task@n"."""

    model_config = ConfigDict(extra="forbid")

    task: str


class Loaded(TypedDict):
    """Names of the tasks that are loaded now."""

    loaded: list[str]


class Reloaded(TypedDict):
    """Names of the tasks whose version has changed or that are gone, and of all loaded tasks."""

    changed: list[str]
    loaded: list[str]


_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_FORM = {
    "type": "object",
    "properties": {"images": _FILES, "task": {"type": "array", "items": {"type": "string"}}},
}
_INPUTS = {"type": "object", "properties": {"inputs": {"type": "array"}}, "required": ["inputs"]}
_RAW = {"schema": {"type": "string", "format": "binary"}}
PICTURES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "image/*": _RAW,
            "application/octet-stream": _RAW,
            "application/x-npy": _RAW,
            "application/json": {"schema": _INPUTS},
        },
    }
}


class _Error(TypedDict):
    what: str
    where: str
    how: str


class Refused(TypedDict):
    """The reason why a request is not answered."""

    error: _Error


ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {"model": Predicted},
    **{status: {"model": Refused} for status in (400, 401, 404, 408, 413, 415, 422, 503)},
}
