"""A real server on loopback in a thread, and a bank for it that answers by `cwps.predict`'s own network."""

import contextlib
import threading
import time
import types

import httpx
import numpy as np
import uvicorn

import cwps_jax as cwps
from cwps_jax.data.split import ArraySplit
from cwps_jax.serve import learned_with
from cwps_jax.serve.answers import predictor_of
from cwps_jax.server.app import make_app
from cwps_jax.server.limits import Limits
from cwps_jax.server.running import configured
from cwps_jax.store.pool import Pool


class PlainBank:
    """One whole network a task, task after task. `before` is called with each batch's tasks."""

    def __init__(self, pool: cwps.Pool, tasks=None) -> None:
        self.pool, self.trees, self.before = pool, {}, lambda tasks: None
        for task in tasks or pool.tasks:
            self.add(task)

    @property
    def tasks(self):
        return tuple(self.trees)

    @property
    def resident(self):
        return {"device": sum(self.pool.version(task).bytes for task in self.trees), "host": 0, "disk": 7}

    def served(self, task):
        return types.SimpleNamespace(pool=self.pool, version=self.pool.version(task))

    def add(self, task):
        self.trees[task] = self.pool.effective(task)

    def drop(self, task):
        del self.trees[task]

    def refresh(self):
        self.pool = Pool.open(self.pool.folder)
        self.trees = {task: self.pool.effective(task) for task in self.trees if task in self.pool}

    def answer(self, prepared, tasks):
        self.before(tasks)
        found = []
        for pixels, task in zip(prepared, tasks, strict=True):
            if task not in self.trees:
                raise cwps.CwpsError(f"no task {task} in the bank; add it")
            known = learned_with(self.pool, task)
            split = ArraySplit({"image": pixels[None]}, known.preparation)
            found.append(predictor_of(self.pool, known, None)(self.trees[task], split, 1)[0])
        return found


def picture(file: str) -> tuple[str, bytes]:
    with open(file, "rb") as stream:
        return file.rsplit("/", 1)[1], stream.read()


def ask(client, files, **known):
    sent = [("images", (picture(file) if isinstance(file, str) else file)) for file in files]
    return client.post("/v1/predict", files=sent, **known)


def error(answer, status: int) -> str:
    """Returns the one line of a refusal, which says all three things."""
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.text
    told = answer.json()["error"]
    assert all(told[key] for key in ("what", "where", "how"))
    return f"{told['where']}: {told['what']}; {told['how']}"


def check(pool, files, answer) -> None:
    """Compares every answer with that of `cwps.predict`."""
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    assert [one["picture"] for one in predictions] == [file.rsplit("/", 1)[1] for file in files]
    for place, task in enumerate(one["task"] for one in predictions[0]["answers"]):
        wanted = cwps.predict(pool, task, files).top(5)
        for one, top in zip(predictions, wanted, strict=True):
            got = one["answers"][place]
            assert got["version"] == f"{task}@1" and got["class"] == got["top"][0]["class"]
            assert [share["class"] for share in got["top"]] == [name for name, _ in top]
            np.testing.assert_allclose(
                [share["probability"] for share in got["top"]], [share for _, share in top], atol=1e-5
            )


def check_unharmed(client, files) -> None:
    assert ask(client, files[:1]).status_code == 200


@contextlib.contextmanager
def running(bank, pool, limits=None, token="", *, warm=True, **known):
    """Gives a client of a server that serves a bank; `client.server` is what its endpoints work with.

    It is given once all batches are compiled, which only `warm=False` does not wait for.
    """
    limits = limits or Limits(batch_size=4)
    app = make_app(bank, pool, limits, token)
    server = uvicorn.Server(configured(app, "127.0.0.1", 0, limits))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, **known) as client:
            client.server = app.state.server
            while warm and client.server.batcher.compiled < limits.batch_size:
                time.sleep(0.01)
            yield client
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def png(pixels: np.ndarray) -> bytes:
    """Returns an array as a PNG file."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """Returns a PNG file whose header claims a size that its few bytes do not have."""
    import struct
    import zlib

    head = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(
        ">I", zlib.crc32(name + data)
    )  # fmt: skip
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
