"""The application on uvicorn: its address, its token, and its end."""

import asyncio
import ipaddress
import pathlib
import signal
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from cwps_jax.errors import CwpsError
from cwps_jax.server.limits import Limits

SHORTEST_TOKEN = 16  # characters


def serve(app: FastAPI, host: str, port: int, limits: Limits) -> None:
    """Serves until SIGTERM or SIGINT; requests under way are answered first.

    Args:
        app: an application that `make_app` returned.
        host, port: the address at which the server listens.
        limits: the limits of requests.

    Raises:
        CwpsError: the server cannot listen at the address, or the application did not start.
    """
    # After uvicorn has ended on a signal, it raises the signal again, for the handlers of its caller.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    server = uvicorn.Server(configured(app, host, port, limits))
    try:
        server.run()
    except SystemExit as error:  # uvicorn has logged the reason.
        if server.lifespan.should_exit:
            raise CwpsError("the tasks cannot answer; what is wrong is told above") from error
        raise CwpsError(f"{host}:{port}: cannot listen there; choose another --port or --host") from error


def configured(app: FastAPI, host: str, port: int, limits: Limits) -> uvicorn.Config:
    """Returns uvicorn's configuration for serving an application."""
    return uvicorn.Config(
        app,
        host,
        port,
        http=_protocol(limits.seconds),
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(limits.seconds) + 1,
    )


def check_address(host: str, port: int, token: str) -> None:
    """Raises CwpsError if the port is invalid, or if others can reach the host and there is no token."""
    if not 0 <= port < 2**16:
        raise CwpsError(f"--port {port}: must be 0 to 65535")
    if not token and not is_loopback(host):
        raise CwpsError(
            f"--host {host}: others could ask and change the server; give a token, --token-file FILE"
        )


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach a host; names other than localhost are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: pathlib.Path | None, given: str) -> str:
    """Returns the token, or "" if there is none.

    Args:
        file: a file that holds the token, or None.
        given: the token from the environment, or "".

    Raises:
        CwpsError: both are given, the file cannot be read, or the token is easily guessed.
    """
    if file and given:
        raise CwpsError(f"--token-file {file}: the environment has a token, too; give one of them")
    if file:
        try:
            given = file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CwpsError(f"--token-file {file}: cannot be read ({error}); name a text file") from error
    if (file or given) and (len(given) < SHORTEST_TOKEN or not given.isprintable() or " " in given):
        raise CwpsError(
            f"the token has to be {SHORTEST_TOKEN} characters or more, without blanks; make one: "
            "openssl rand -hex 32"
        )
    return given


def _protocol(seconds: float) -> type[asyncio.Protocol]:
    """Returns uvicorn's protocol with a time limit for the head of a request, which uvicorn lacks."""

    class Punctual(H11Protocol):
        _seen: Any = None
        _watch: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch = self.loop.call_later(seconds, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._watch:
                self._watch.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self.cycle is self._seen:  # No head of a request has come for that time.
                self.transport.close()
                return
            self._seen = self.cycle
            self._watch = self.loop.call_later(seconds, self._look)

    return Punctual
