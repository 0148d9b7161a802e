"""Batches: the answers to many requests are joined into them, and one thread computes one after another.

Another thread compiles the programs of larger batches at the same time.
"""

import asyncio
import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cwps_jax.errors import CwpsError
from cwps_jax.server.limits import Limits
from cwps_jax.server.metrics import Metrics
from cwps_jax.server.refusals import Refusal, busy

# A function from prepared pictures, (n, height, width, channels), and a task for each, to the logits of each.
Answer = Callable[[np.ndarray, Sequence[str]], Sequence[np.ndarray]]

Kind = tuple[tuple[int, ...], np.dtype]


@dataclasses.dataclass(frozen=True, eq=False)
class _Question:
    pixels: np.ndarray
    task: str
    found: asyncio.Future[np.ndarray]
    since: float

    @property
    def kind(self) -> Kind:
        """The shape and dtype that all pictures of a batch have in common."""
        return self.pixels.shape, self.pixels.dtype


class Batcher:
    """Joins the questions of requests into batches; a question is a picture for one task.

    Args:
        answer: the function that computes a batch.
        limits: the limits of requests.
        metrics: the metrics that count batches.
    """

    def __init__(self, answer: Answer, limits: Limits, metrics: Metrics) -> None:
        self._answer, self._limits, self._metrics = answer, limits, metrics
        self._waiting: collections.deque[_Question] = collections.deque()
        self._coming = 0  # requests that will ask soon
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "bank")
        self._warming = ThreadPoolExecutor(1, "warm-up")
        self._compiled: dict[Kind, int] = {}  # the largest warmed-up batch of each kind

    @property
    def waiting(self) -> int:
        """The number of answers that wait to be computed."""
        return len(self._waiting)

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Announces questions that come when the block ends: a batch waits a short time for them."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._news.set()

    async def ask(self, pixels: Sequence[np.ndarray], tasks: Sequence[str]) -> list[np.ndarray]:
        """Returns the logits of prepared pictures.

        Args:
            pixels: for each picture (height, width, channels), as its task takes it.
            tasks: the task of each picture.

        Raises:
            Refusal: the queue is full, or the answer takes too long.
            CwpsError: the bank cannot answer.
        """
        limits = self._limits
        if len(pixels) > limits.queue:
            what = f"{len(pixels)} answers are more than the {limits.queue} that may wait"
            raise Refusal(413, what, "pictures and tasks", "ask for fewer at once")
        if len(self._waiting) + len(pixels) > limits.queue:
            raise busy(f"{len(self._waiting)} answers wait already", "queue")
        loop = asyncio.get_running_loop()
        questions = [
            _Question(one, task, loop.create_future(), loop.time())
            for one, task in zip(pixels, tasks, strict=True)
        ]
        self._waiting.extend(questions)
        self._news.set()
        try:
            async with asyncio.timeout(limits.seconds):
                return await asyncio.gather(*(one.found for one in questions))
        except TimeoutError as error:
            raise busy(f"no answer within {limits.seconds:g} seconds", "queue") from error

    @property
    def compiled(self) -> int:
        """The size of the largest batch whose programs are compiled, for all kinds that were warmed up."""
        return min(self._compiled.values(), default=self._limits.batch_size)

    @property
    def sizes(self) -> list[int]:
        """The sizes of batches for which programs are compiled: powers of two, and the largest size."""
        largest = self._limits.batch_size
        return sorted({min(1 << power, largest) for power in range(largest.bit_length() + 1)})

    def next_size(self, kind: Kind, most: int) -> int:
        """Returns the smallest size up to `most` that is not compiled for pictures of a kind; 0 for none."""
        compiled = self._compiled.get(kind, 0)
        return next((size for size in self.sizes if compiled < size <= most), 0)

    def start_small(self, kind: Kind) -> None:
        """Lets pictures of a kind come one by one until larger batches are warmed up (again)."""
        self._compiled[kind] = 1

    async def warm_up(self, kind: Kind, tasks: Sequence[str], size: int) -> None:
        """Computes batches of a size without a time limit, so that their programs are compiled.

        From the first call for such pictures on, their batches are not larger than the warmed-up size.
        Questions that come meanwhile are answered.

        Args:
            kind: the shape and dtype of the pictures.
            tasks: the tasks that take such pictures.
            size: one of `sizes`; call this with each of them, in their order.
        """
        loop = asyncio.get_running_loop()
        batch = np.zeros((size, *kind[0]), kind[1])
        of_one, of_many = [tasks[0]] * size, [tasks[number % len(tasks)] for number in range(size)]
        for asked in (of_one, of_many):
            await loop.run_in_executor(self._warming, self._answer, batch, asked)
        if self.next_size(kind, size) == size:  # It has not started anew meanwhile.
            self._compiled[kind] = size

    async def run(self) -> None:
        """Computes batches until it is cancelled, which happens when no question waits any longer."""
        loop = asyncio.get_running_loop()
        while True:
            await self._filled()
            batch = self._next()
            if not batch:
                continue
            answers = await loop.run_in_executor(self._thread, self._computed, batch)
            for question, found in zip(batch, answers, strict=True):
                if question.found.done():  # Its client has given up.
                    continue
                if isinstance(found, Exception):
                    question.found.set_exception(found)
                else:
                    question.found.set_result(found)

    def close(self) -> None:
        """Ends both threads."""
        self._warming.shutdown()
        self._thread.shutdown()

    async def _filled(self) -> None:
        """Waits until a batch is full, no more questions come, or its first one has waited long enough."""
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        until = self._waiting[0].since + self._limits.wait_ms / 1000
        try:
            async with asyncio.timeout_at(until):
                while self._coming and len(self._waiting) < self._limits.batch_size:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass  # The batch is computed as it is.

    def _next(self) -> list[_Question]:
        """Takes the next batch from the queue, the oldest first; its pictures have one shape and dtype."""
        batch: list[_Question] = []
        others: list[_Question] = []
        most = self._limits.batch_size
        while self._waiting and len(batch) < most:
            one = self._waiting.popleft()
            if one.found.done():
                continue
            if not batch:
                most = self._compiled.get(one.kind, most)
            same = not batch or one.kind == batch[0].kind
            (batch if same else others).append(one)
        self._waiting.extendleft(reversed(others))
        return batch

    def _computed(self, batch: list[_Question]) -> list[np.ndarray | Exception]:
        begun = time.monotonic()
        try:
            logits = self._answer(np.stack([one.pixels for one in batch]), [one.task for one in batch])
            return list(logits)
        except CwpsError as error:
            if len(batch) == 1:
                return [error]
            # A question that cannot be answered must not make the others fail.
            return [answer for one in batch for answer in self._computed([one])]
        except Exception as error:  # Each question gets the error, since the thread has to go on.
            return [error] * len(batch)
        finally:
            self._metrics.batch(len(batch), time.monotonic() - begun)
