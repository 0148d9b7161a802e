"""The guard before the application: it decides who may ask, and limits the bytes and seconds of a request."""

import asyncio
import hmac
import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cwps_jax.server.limits import Limits
from cwps_jax.server.metrics import Metrics
from cwps_jax.server.refusals import Refusal, busy

# The paths that anybody may read: they reveal nothing about the pool. The page asks for the token.
OPEN = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# Seconds: a refused client that is still sending would lose the refusal if its connection were cut at once.
LINGER = 5.0


class Guard:
    """ASGI middleware that refuses requests before they reach the application.

    Args:
        app: the application.
        limits: the limits of requests.
        metrics: the metrics that count every request.
        token: the token that a client has to send; "" for none, which is allowed only on loopback.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, token: str) -> None:
        self.app, self.limits, self.metrics, self.token = app, limits, metrics, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.monotonic()
        body, sender = _Body(self, scope, receive), _Sender(send)
        sender.body = body
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_who(scope["path"], headers)
            self._check_length(headers)
            await self.app(scope, body.receive, sender.send)
        except Refusal as refusal:
            await refusal.response(scope, body.receive, sender.send)
        finally:
            self.metrics.held -= body.size
            self.metrics.request(scope["path"], sender.status, time.monotonic() - begun)

    def _check_who(self, path: str, headers: Mapping[str, str]) -> None:
        if not self.token:
            _check_local(headers)
        elif path not in OPEN:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
                raise Refusal(
                    401,
                    "the token is wrong" if given else "no token is given",
                    "header Authorization",
                    "send 'Authorization: Bearer TOKEN' with the token that the server was started with",
                    {"WWW-Authenticate": "Bearer"},
                )

    def _check_length(self, headers: Mapping[str, str]) -> None:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.limits.request_bytes:
            raise self.too_long()

    def too_long(self) -> Refusal:
        """Returns the refusal of a body that has too many bytes."""
        return Refusal(
            413,
            f"more than {self.limits.request_bytes} bytes",
            "body",
            "send fewer or smaller pictures, or start the server with a larger --request-bytes",
        )


class _Body:
    """A request's body, whose bytes and time are counted while it comes in."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive) -> None:
        self.guard, self._receive, self.size, self.late = guard, receive, 0, False
        names = {name for name, _ in scope["headers"]}
        self.complete = not names & {b"content-length", b"transfer-encoding"}
        self._deadline = asyncio.get_running_loop().time() + guard.limits.seconds

    async def receive(self) -> Message:
        if self.complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            self.late = True
            what = f"the body has not come within {self.guard.limits.seconds:g} seconds"
            raise Refusal(408, what, "body", "send it faster, or less at once") from error
        count = len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        self.size += count
        self.guard.metrics.held += count
        limits = self.guard.limits
        if self.size > limits.request_bytes:
            raise self.guard.too_long()
        if self.guard.metrics.held > limits.request_bytes * limits.held_requests:
            raise busy("too many bytes of other requests are being read", "body")
        return message

    async def drop_rest(self) -> None:
        """Reads the rest of the body for a short time, and drops it."""
        if self.complete or self.late:
            return
        try:
            async with asyncio.timeout(LINGER):
                while not self.complete:
                    self.complete = not (await self._receive()).get("more_body", False)
        except TimeoutError:
            self.late = True


class _Sender:
    """Sends an answer; if the request was not read to its end, its rest is dropped before the last byte."""

    body: _Body

    def __init__(self, send: Send) -> None:
        self._send, self.status = send, 500

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if not self.body.complete:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        elif not message.get("more_body", False) and not self.body.complete:
            await self._send({**message, "more_body": True})
            await self.body.drop_rest()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)


def _check_local(headers: Mapping[str, str]) -> None:
    """Refuses requests that a page of another site made a browser on this machine send."""
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.strip("[]") not in LOOPBACK:
        raise Refusal(
            403, f"{host!r} is not this machine", "header Host", "ask 127.0.0.1, or start it with a token"
        )
    origin = headers.get("origin", "")
    if origin and origin.partition("://")[2] != host:
        raise Refusal(
            403, f"asked by a page of {origin!r}", "header Origin", "ask from the server's own page"
        )
