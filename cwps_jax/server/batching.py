"""Answers of many requests joined into batches, which one thread computes one after another."""

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

# From prepared pictures, (n, height, width, channels), and a task for each, to the logits of each.
Answer = Callable[[np.ndarray, Sequence[str]], Sequence[np.ndarray]]

_Kind = tuple[tuple[int, ...], np.dtype]


@dataclasses.dataclass(frozen=True, eq=False)
class _Question:
    pixels: np.ndarray
    task: str
    found: asyncio.Future[np.ndarray]
    since: float

    @property
    def kind(self) -> _Kind:
        """What all of a batch have in common."""
        return self.pixels.shape, self.pixels.dtype


class Batcher:
    """Joins what is asked into batches.

    Args:
        answer: computes a batch.
        limits: see `Limits`.
        metrics: what counts batches.
    """

    def __init__(self, answer: Answer, limits: Limits, metrics: Metrics) -> None:
        self._answer, self._limits, self._metrics = answer, limits, metrics
        self._waiting: collections.deque[_Question] = collections.deque()
        self._coming = 0  # requests that will ask soon
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "bank")
        self._compiled: dict[_Kind, int] = {}  # the largest batch so far, of what is being warmed up

    @property
    def waiting(self) -> int:
        """How many answers wait to be computed."""
        return len(self._waiting)

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Says that something will be asked when the block ends: a batch waits a little for what comes."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._news.set()

    async def ask(self, pixels: Sequence[np.ndarray], tasks: Sequence[str]) -> list[np.ndarray]:
        """Returns the logits of prepared pictures.

        Args:
            pixels: each (height, width, channels), as its task takes it.
            tasks: of each picture.

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
        """Answers of the largest batch whose programs are compiled, for everything that was warmed up."""
        return min(self._compiled.values(), default=self._limits.batch_size)

    @property
    def sizes(self) -> list[int]:
        """Sizes of batches whose programs are compiled: powers of two, and the largest."""
        largest = self._limits.batch_size
        return sorted({min(1 << power, largest) for power in range(largest.bit_length() + 1)})

    async def warm_up(self, pixels: np.ndarray, tasks: Sequence[str], size: int) -> None:
        """Computes batches of a size, for as long as it takes: programs have to be compiled for them.

        From the first call for such pictures on, batches of them are not larger than what was warmed up.
        What is asked meanwhile is answered between two programs.

        Args:
            pixels: of one picture.
            tasks: that take such pictures.
            size: of `sizes`, in their order.
        """
        loop = asyncio.get_running_loop()
        batch = np.stack([pixels] * size)
        of_one, of_many = [tasks[0]] * size, [tasks[number % len(tasks)] for number in range(size)]
        for asked in (of_one, of_many):
            await loop.run_in_executor(self._thread, self._answer, batch, asked)
        self._compiled[pixels.shape, pixels.dtype] = size

    async def run(self) -> None:
        """Computes batches until it is cancelled, which is when nothing waits any more."""
        loop = asyncio.get_running_loop()
        while True:
            await self._filled()
            batch = self._next()
            if not batch:
                continue
            answers = await loop.run_in_executor(self._thread, self._computed, batch)
            for question, found in zip(batch, answers, strict=True):
                if question.found.done():  # its client has given up
                    continue
                if isinstance(found, Exception):
                    question.found.set_exception(found)
                else:
                    question.found.set_result(found)

    def close(self) -> None:
        """Ends the thread, which computes nothing any more."""
        self._thread.shutdown()

    async def _filled(self) -> None:
        """Waits until a batch is full, nothing else comes, or its first answer has waited long enough."""
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
            pass  # the batch goes as it is

    def _next(self) -> list[_Question]:
        """Takes the next batch from the queue, the oldest first; pictures of one batch have one shape."""
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
            # One that cannot be answered must not take the others with it.
            return [answer for one in batch for answer in self._computed([one])]
        except Exception as error:  # told to whoever asks: the thread has to go on
            return [error] * len(batch)
        finally:
            self._metrics.batch(len(batch), time.monotonic() - begun)
