"""What requests and answers look like, as the page of the API (/docs) tells it."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

Share = TypedDict("Share", {"class": str, "probability": float})


# What a task answers for a picture: its most probable class, and the others.
Answer = TypedDict(
    "Answer", {"task": str, "version": str, "class": str, "probability": float, "top": list[Share]}
)


class Prediction(TypedDict):
    """What tasks answer for a picture."""

    picture: str
    answers: list[Answer]


class Predicted(TypedDict):
    """What tasks answer for pictures, in their order."""

    predictions: list[Prediction]


class Listed(TypedDict):
    """A task: its newest version, or the one that is loaded; what it takes, or `why` it answers nothing."""

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
    """All tasks, and the bytes of those that are loaded by where they are."""

    tasks: list[Listed]
    resident: dict[str, int]


class Ready(TypedDict):
    """That requests are answered, and how many answers are computed in one call so far, and at most."""

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
    """Names of tasks that are another version now, or gone, and of all that are loaded."""

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
    """Why a request is not answered."""

    error: _Error


ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {"model": Predicted},
    **{status: {"model": Refused} for status in (400, 401, 404, 408, 413, 415, 422, 503)},
}
