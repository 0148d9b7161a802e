"""Refusals of requests: a status, and one line of JSON that says the error, its place, and how to fix it."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cwps_jax.errors import CwpsError


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: the HTTP status.
        what: the error.
        where: the place of the error in the request.
        how: the way to fix it.
        headers: additional headers of the answer.
    """

    def __init__(
        self, status: int, what: str, where: str, how: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{where}: {what}; {how}")
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"what": what, "where": where, "how": how}}

    @property
    def response(self) -> JSONResponse:
        """The HTTP answer with the status, the headers and the line of JSON."""
        return JSONResponse(self.body, self.status, self.headers)


def busy(what: str, where: str) -> Refusal:
    """Returns the refusal of a request that can be answered later."""
    return Refusal(503, what, where, "ask again after a second", {"Retry-After": "1"})


def add_handlers(app: FastAPI) -> None:
    """Makes an application report all errors of requests in the form of `Refusal`."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refusal)
        return error.response

    async def wrong_value(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return Refusal(422, first["msg"], where, "see /docs for what this endpoint takes").response

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        how = {404: "see /docs for all endpoints", 405: "see /docs for the endpoint's method"}
        fix = how.get(error.status_code, "send a request as /docs shows it")
        where = f"{request.method} {request.url.path}"
        return Refusal(error.status_code, str(error.detail), where, fix, error.headers).response

    async def of_package(request: Request, error: Exception) -> JSONResponse:
        what, _, how = str(error).partition("; ")
        return Refusal(422, what, request.url.path, how or "see GET /v1/tasks").response

    async def gone(request: Request, error: Exception) -> JSONResponse:
        return Refusal(400, "the client has gone", "connection", "stay until the answer").response

    async def failed(request: Request, error: Exception) -> JSONResponse:
        how = "tell whoever runs it: the traceback is in its log"
        closed = {"Connection": "close"}  # uvicorn closes the connection, which a client has to know.
        return Refusal(500, "the server failed", request.url.path, how, closed).response

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, failed)
    app.add_exception_handler(RequestValidationError, wrong_value)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(CwpsError, of_package)
