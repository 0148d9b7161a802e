"""The limits of requests, so that one client cannot take the server from the others."""

import dataclasses

from cwps_jax.data.decode import MAX_PIXELS
from cwps_jax.errors import CwpsError


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of batches and requests. Raises CwpsError for a limit that no request could meet.

    Attributes:
        batch_size: the most answers that are computed in one call; an answer is a picture for one task.
        ready_at: the size of the largest batch that is compiled before the server is ready; larger ones are
            compiled afterwards.
        wait_ms: the milliseconds that an answer waits for others to join it.
        request_bytes: the most bytes of a request's body.
        held_requests: the number of bodies of that size that may be in memory at once.
        pixels: the most pixels of a picture, by its header; never more than `cwps.predict` decodes.
        pictures: the most pictures of a request.
        queue: the most answers that may wait to be computed.
        seconds: the time that a client has to send a request, and that the request may wait for its answer.
    """

    batch_size: int = 32
    ready_at: int = 1
    wait_ms: float = 2.0
    request_bytes: int = 32 * 2**20
    held_requests: int = 16
    pixels: int = MAX_PIXELS
    pictures: int = 64
    queue: int = 1024
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name == "wait_ms" else 1
            if getattr(self, field.name) < least:
                flag = field.name.replace("_", "-")
                raise CwpsError(f"--{flag} {getattr(self, field.name)}: must be at least {least}")
        if self.pixels > MAX_PIXELS:
            raise CwpsError(f"--pixels {self.pixels}: pictures of more than {MAX_PIXELS} are never decoded")
