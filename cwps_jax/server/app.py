"""The application: its endpoints, and the objects that live as long as it does."""

import asyncio
import collections
import contextlib
import importlib.resources
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

import numpy as np
from absl import logging
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer

from cwps_jax.data.load import threads_of
from cwps_jax.serve import LearnedWith, Predictions
from cwps_jax.server import arrays, messages
from cwps_jax.server.batching import Batcher, Kind
from cwps_jax.server.guard import Guard
from cwps_jax.server.limits import Limits
from cwps_jax.server.listing import listed, resident_bytes
from cwps_jax.server.metrics import Metrics
from cwps_jax.server.pictures import content_type, prepare, read_pictures
from cwps_jax.server.refusals import Refusal, add_handlers
from cwps_jax.server.tasks import Bank, Tasks
from cwps_jax.settings import DataConfig
from cwps_jax.store import Pool
from cwps_jax.version import __version__

_Result = TypeVar("_Result")
NO_CACHE = {"Cache-Control": "no-store"}
POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
}


class Server:
    """The objects that the endpoints share: the bank, its tasks, the batcher and the metrics.

    Args:
        bank: the bank that answers.
        pool: the bank's pool.
        limits: the limits of requests.
    """

    def __init__(self, bank: Bank, pool: Pool, limits: Limits) -> None:
        self.bank, self.limits, self.metrics = bank, limits, Metrics()
        self.tasks = Tasks(bank, pool)
        self.batcher = Batcher(bank.answer, limits, self.metrics)
        self.decoders = ThreadPoolExecutor(threads_of(DataConfig()), "decode")
        self.ready = False
        self._changed = asyncio.Event()
        self._given_up: set[Kind] = set()  # the kinds of pictures of which larger batches fail
        self.metrics.watch(
            lambda: self.batcher.waiting,
            lambda: len(bank.tasks),
            lambda place: resident_bytes(bank)[place],
        )

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Computes batches while the application runs; first compiles programs, and only then is ready."""
        worker = asyncio.create_task(self.batcher.run())
        while cold := self._cold(self.limits.ready_at):
            await self.batcher.warm_up(*cold)
        later = asyncio.create_task(self._warm_up_later())
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            later.cancel()
            worker.cancel()
            self.batcher.close()
            self.tasks.close()
            self.decoders.shutdown()

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Begins with small batches for the kinds of pictures of tasks that the block loads or replaces.

        A task may be the first of its kind, or so wide that batches with it need other programs.
        """
        before = dict(self.tasks.known)
        yield
        for name, known in self.tasks.known.items():
            if before.get(name) is not known:
                self.batcher.start_small((known.shape, known.dtype))
                self._given_up.discard((known.shape, known.dtype))
        self._changed.set()

    def _cold(self, most: int) -> tuple[Kind, list[str], int] | None:
        """Returns what to compile next: a kind of pictures, its tasks, and a size of at most `most`."""
        alike = collections.defaultdict(list)
        for name, known in reversed(self.tasks.known.items()):  # The newest are in the smallest batches, too.
            alike[known.shape, known.dtype].append(name)
        sizes = {kind: self.batcher.next_size(kind, most) for kind in alike.keys() - self._given_up}
        kind = min((kind for kind, size in sizes.items() if size), key=lambda kind: sizes[kind], default=None)
        return kind and (kind, alike[kind], sizes[kind])

    async def _warm_up_later(self) -> None:
        while True:
            if not (cold := self._cold(self.limits.batch_size)):
                self._changed.clear()
                await self._changed.wait()
                continue
            try:
                await self.batcher.warm_up(*cold)
            except Exception:  # The server goes on with the batches that it can compute.
                if set(cold[1]) - set(self.bank.tasks):
                    continue  # A task was unloaded meanwhile.
                logging.exception("batches stay at %d answers: larger ones failed", self.batcher.compiled)
                self._given_up.add(cold[0])

    async def predict(self, request: Request, tasks: Sequence[str], top: int) -> list[messages.Prediction]:
        """Returns the answers of tasks for a request's pictures; see `POST /v1/predict`."""
        async with contextlib.AsyncExitStack() as held:
            with self.batcher.coming():
                kind = content_type(request)
                if kind in arrays.KINDS:
                    known = await held.enter_async_context(self.tasks.holding(tasks, of_arrays=True))
                    body = await request.body()
                    inputs = await self._apart(arrays.read_inputs, body, kind, [*known.values()], self.limits)
                    given = [
                        (f"input {number}", dict.fromkeys(known, one)) for number, one in enumerate(inputs)
                    ]
                else:
                    pictures, named = await read_pictures(request, kind, self.limits)
                    known = await held.enter_async_context(self.tasks.holding([*tasks, *named]))
                    given = await asyncio.gather(*(self._prepared(*picture, known) for picture in pictures))
            asked = [(pixels[task], task) for _, pixels in given for task in known]
            logits = iter(await self.batcher.ask(*map(list, zip(*asked, strict=True))))
        return [
            {"picture": name, "answers": [_answer(task, known[task], next(logits), top) for task in known]}
            for name, _ in given
        ]

    async def _prepared(
        self, name: str, content: bytes, known: Mapping[str, LearnedWith]
    ) -> tuple[str, dict[str, np.ndarray]]:
        """Returns a picture's name, and {task: the picture as that task's model takes it}."""
        ways = {task: one.transform for task, one in known.items() if one.transform}
        distinct = tuple(dict.fromkeys(ways.values()))
        pixels = await self._apart(prepare, name, content, distinct, self.limits)
        of_way = dict(zip(distinct, pixels, strict=True))
        return name, {task: of_way[way] for task, way in ways.items()}

    async def _apart(self, action: Callable[..., _Result], *given: Any) -> _Result:
        """Runs a long computation in a thread, so that other requests are answered meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, action, *given)


def _answer(task: str, known: LearnedWith, logits: np.ndarray, top: int) -> messages.Answer:
    if not np.all(np.isfinite(logits)):
        how = "send values like those that the task was learned from"
        raise Refusal(422, f"what {known.name} answers is not finite", "inputs", how)
    best = Predictions(known.class_names, np.asarray(logits)[None]).top(top)[0]
    classes: list[messages.Share] = [{"class": name, "probability": share} for name, share in best]
    return {
        "task": task,
        "version": known.name,
        "class": best[0][0],
        "probability": best[0][1],
        "top": classes,
    }


def make_app(bank: Bank, pool: Pool, limits: Limits | None = None, token: str = "") -> FastAPI:
    """Returns the application that answers for the tasks of a bank.

    Args:
        bank: the bank that answers.
        pool: the bank's pool.
        limits: the limits of requests; the defaults of `Limits` by default.
        token: the token that clients have to send; "" for none: only clients on this machine are answered.

    Examples:
        >>> uvicorn.run(make_app(cwps.TaskBank(pool), pool))  # doctest: +SKIP
    """
    limits = limits or Limits()
    server = Server(bank, pool, limits)
    app = FastAPI(
        title="cwps_jax", version=__version__, lifespan=server.running, redoc_url=None, summary="Many tasks"
    )
    app.state.server = server
    add_handlers(app)
    _add_endpoints(app, server, [Depends(HTTPBearer(auto_error=False))] if token else [])
    _add_watched(app, server)
    app.add_middleware(Guard, limits=limits, metrics=server.metrics, token=token)
    return app


def _add_endpoints(app: FastAPI, server: Server, protected: list) -> None:
    @app.post(
        "/v1/predict", openapi_extra=messages.PICTURES, responses=messages.ANSWERED, dependencies=protected
    )
    async def predict(
        request: Request,
        task: Annotated[list[str], Query(description="repeated for several; none for all")] = [],  # noqa: B006
        top: Annotated[int, Query(ge=1, le=1000, description="classes of an answer")] = 5,
    ) -> JSONResponse:
        """Returns the answers of tasks for pictures: a class, its probability, and the next best classes."""
        return JSONResponse({"predictions": await server.predict(request, task, top)})

    @app.get("/v1/tasks", dependencies=protected)
    async def tasks() -> messages.Listing:
        """Lists all tasks: whether they are loaded, their bytes, classes, and owners of their channels."""
        return await listed(server.tasks)

    @app.post("/v1/load_task", dependencies=protected)
    async def load_task(named: messages.Named) -> messages.Loaded:
        """Loads a task of the pool."""
        async with server.changing():
            await server.tasks.load(named.task)
        return {"loaded": list(server.bank.tasks)}

    @app.post("/v1/unload_task", dependencies=protected)
    async def unload_task(named: messages.Named) -> messages.Loaded:
        """Frees a task, as soon as no request uses it."""
        await server.tasks.unload(named.task)
        return {"loaded": list(server.bank.tasks)}

    @app.post("/v1/reload", dependencies=protected)
    async def reload() -> messages.Reloaded:
        """Reads a changed pool: newer versions replace loaded ones, and new tasks can be loaded."""
        async with server.changing():
            changed = await server.tasks.reload()
        return {"changed": changed, "loaded": list(server.bank.tasks)}


def _add_watched(app: FastAPI, server: Server) -> None:
    page = (importlib.resources.files("cwps_jax.server") / "page.html").read_text(encoding="utf-8")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Answers if the process runs."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> messages.Ready:
        """Says whether requests are answered: everything is loaded, and the server is not shutting down.

        `compiled` is the number of answers that can be computed in one call so far; it grows to `batch_size`.
        """
        if not server.ready:
            raise Refusal(503, "not ready", "server", "ask again after a second", {"Retry-After": "1"})
        return {
            "status": "ready",
            "compiled": server.batcher.compiled,
            "batch_size": server.limits.batch_size,
        }

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Returns counts and times for Prometheus."""
        text = await asyncio.to_thread(server.metrics.text)  # The gauges must wait while the bank is busy.
        return Response(text, media_type="text/plain; version=0.0.4", headers=NO_CACHE)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def front() -> HTMLResponse:
        return HTMLResponse(page, headers=POLICY)
