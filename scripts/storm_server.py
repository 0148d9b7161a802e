"""Thousands of requests to a server, some of them malformed: is every answer right, and does nothing leak?

    python scripts/storm_server.py POOL PICTURES --out benchmarks/results/storm_server.json

It starts `python -m cwps_jax.serve POOL`, waits until all its programs are compiled, and asks for random
pictures of a folder and random tasks, each of `--clients` clients at once as soon as it has its last answer:
first well-formed requests alone, then `--requests` of which one in a hundred is malformed (not a picture,
truncated, 13000 x 13000 pixels, an unknown task, a body of 100 MB, a client that stops sending). Every answer
is compared with `cwps.predict`. Last, the bank alone computes batches of prepared pictures in a process
without a server.
"""

import argparse
import asyncio
import collections
import dataclasses
import json
import os
import pathlib
import platform
import random
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torture import provenance

import cwps_jax as cwps
from cwps_jax.serve.images import image_files
from cwps_jax.serve.learned_with import learned_with

SHARE = 0.01  # of requests that are malformed
TOLERANCE = 1e-4  # of a probability
HUGE = 100 * 2**20
CHUNK = 2**18
# Each kind, and the status by which it is refused.
MALFORMED = {"no picture": 422, "truncated": 422, "13000 x 13000": 413, "unknown task": 404, "huge": 413}
SLOW = "slow client", 408
WARM_UP = 1000  # requests, before the server's memory is looked at first


@dataclasses.dataclass
class Seen:
    """What became of the requests of a phase."""

    latencies: list[float] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def told(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        p50, p99 = np.percentile(self.latencies, (50, 99)) * 1000
        return {
            "answers": len(self.latencies),
            "answers_per_second": len(self.latencies) / self.seconds,
            "server_cpu_ms_per_answer": 1000 * self.cpu_seconds / len(self.latencies),
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "wrong": len(self.wrong),
            "first_wrong": self.wrong[:3],
            "refused": dict(self.refused),
        }


class Storm:
    """Requests to one server.

    Args:
        port: of it, on loopback.
        process: of it.
        pool: that it serves.
        files: pictures.
    """

    def __init__(
        self, port: int, process: int, pool: cwps.Pool, tasks: Sequence[str], files: Sequence[str]
    ) -> None:
        self.port, self.process = port, process
        self.contents = [pathlib.Path(file).read_bytes() for file in files]
        self.expected = {task: cwps.predict(pool, task, files).top(1) for task in tasks}
        self.random = random.Random(0)

    async def phase(self, clients: int, requests: int, share: float = 0.0) -> Seen:
        """Sends requests, each client the next one as soon as its last is answered."""
        seen, left, slow = Seen(), iter(range(requests)), []
        every, kinds = round(1 / share) if share else 0, [*MALFORMED, SLOW[0]]

        async def client() -> None:
            streams = await asyncio.open_connection("127.0.0.1", self.port)
            for number in left:
                if every and number % every == 0:
                    kind = kinds[number // every % len(kinds)]
                    if kind == SLOW[0]:  # it waits to be cut off, which must not stop this client
                        slow.append(asyncio.create_task(self._malformed(kind, seen)))
                    else:
                        await self._malformed(kind, seen)
                    continue
                await self._good(streams, seen)
            streams[1].close()

        begun, cpu = time.monotonic(), cpu_seconds(self.process)
        await asyncio.gather(*(client() for _ in range(clients)))
        seen.seconds, seen.cpu_seconds = time.monotonic() - begun, cpu_seconds(self.process) - cpu
        await asyncio.gather(*slow)
        return seen

    async def _good(self, streams: Any, seen: Seen) -> None:
        task, place = self.random.choice([*self.expected]), self.random.randrange(len(self.contents))
        begun = time.monotonic()
        status, told = await self._asked(streams, f"?task={task}&top=1", self.contents[place])
        seen.latencies.append(time.monotonic() - begun)
        ((name, share),) = self.expected[task][place]
        answer = told["predictions"][0]["answers"][0] if status == 200 else {}
        right = answer.get("class") == name and abs(answer["probability"] - share) < TOLERANCE
        if not right:
            seen.wrong.append(f"{task}, picture {place}: {name} {share}, not {status} {told}")

    async def _malformed(self, kind: str, seen: Seen) -> None:
        content = self.contents[0]
        status = dict([*MALFORMED.items(), SLOW])[kind]
        query = "?task=no-such-task" if kind == "unknown task" else ""
        body = {"no picture": b"x" * 999, "truncated": content[: len(content) // 2]}.get(kind, content)
        if kind == "13000 x 13000":
            body = huge_picture()
        length = {"huge": HUGE, SLOW[0]: 10**6}.get(kind, len(body))
        streams = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            if kind == "huge":
                body = bytes(HUGE)
            got, told = await self._asked(streams, query, body, length)
        finally:
            streams[1].close()
        if got == status and set(told["error"]) == {"what", "where", "how"}:
            seen.refused[kind] += 1
        else:
            seen.wrong.append(f"{kind}: {got} {told}")

    async def _asked(
        self, streams: Any, query: str, body: bytes, length: int | None = None
    ) -> tuple[int, Mapping[str, Any]]:
        reader, writer = streams
        head = f"POST /v1/predict{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
        writer.write(f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode())
        for start in range(0, len(body), CHUNK):  # so that other clients have their turns
            writer.write(body[start : start + CHUNK])
            await writer.drain()
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        size = int(re.search(r"content-length: (\d+)", answer, re.IGNORECASE)[1])
        return int(answer.split()[1]), json.loads(await reader.readexactly(size))


def huge_picture() -> bytes:
    """Returns a PNG file whose header says 13000 x 13000."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(
        ">I", zlib.crc32(name + data)
    )  # fmt: skip
    head = struct.pack(">II5B", 13_000, 13_000, 8, 2, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def resident_bytes(process: int) -> int:
    """Returns the memory that a process has (RSS)."""
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def cpu_seconds(process: int) -> float:
    """Returns the seconds that a process has had of processors."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def storm(storm: Storm, clients: Sequence[int], requests: int) -> dict[str, Any]:
    """Returns what every phase saw, and what the server's memory became."""
    calm = {}
    for count in clients:
        await storm.phase(count, 4 * count)  # each client has connected
        calm[str(count)] = (await storm.phase(count, max(20, requests // 10))).told()
    first = min(WARM_UP, requests // 2)
    early = await storm.phase(16, first, SHARE)
    before = resident_bytes(storm.process)
    late = await storm.phase(16, requests - first, SHARE)
    after = resident_bytes(storm.process)
    return {
        "calm": calm,
        "storm": {"first": early.told(), "rest": late.told()},
        "resident": {"after_first": before, "at_end": after, "growth": after / before - 1},
    }


def bare(
    pool: cwps.Pool, tasks: Sequence[str], files: Sequence[str], batch: int, seconds: float
) -> dict[str, float]:
    """Returns the answers a second of the bank alone, in batches of prepared pictures of random tasks."""
    bank, drawn = cwps.TaskBank(pool, tasks), random.Random(0)
    contents = [pathlib.Path(file).read_bytes() for file in files]
    pixels = {
        task: [learned_with(pool, task).transform.evaluation(one) for one in contents] for task in tasks
    }

    def turn() -> None:
        asked = drawn.choices(tasks, k=batch)
        bank.answer(np.stack([drawn.choice(pixels[task]) for task in asked]), asked)

    for _ in range(20):
        turn()
    begun, cpu, turns = time.monotonic(), time.process_time(), 0
    while time.monotonic() < begun + seconds:
        turn()
        turns += 1
    count = turns * batch
    return {
        "bare_answers_per_second": count / (time.monotonic() - begun),
        "bare_cpu_ms_per_answer": 1000 * (time.process_time() - cpu) / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=pathlib.Path)
    parser.add_argument("pictures", help="a folder of pictures, of which at most 64 are asked about")
    parser.add_argument("--tasks", nargs="+", help="all that answer pictures, by default")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5, help="that a client has to send a request")
    parser.add_argument("--out", type=pathlib.Path, help="the JSON file to write")
    given = parser.parse_args()
    pool, files = cwps.Pool.open(given.pool), image_files([given.pictures])[:64]
    tasks = given.tasks or list(pool.tasks)
    command = [sys.executable, "-m", "cwps_jax.serve", str(given.pool), "--tasks", *tasks, "--port", "0"]
    command += ["--seconds", str(given.seconds), "--ready-at", "32"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        told, port = [], 0
        while not port and (line := server.stderr.readline()):
            told.append(line)
            port = int(re.findall(r"running on http://.*:(\d+)", line)[0]) if "running on" in line else 0
        if not port:
            raise SystemExit("".join(told))
        found = asyncio.run(storm(Storm(port, server.pid, pool, tasks, files), given.clients, given.requests))
        server.terminate()
        found["exit_status"] = server.wait(60)
    found |= bare(pool, tasks, files, 16, 5)
    if "16" in found["calm"]:
        served = found["calm"]["16"]["answers_per_second"]
        found["over_bare"] = served / found["bare_answers_per_second"]
    found |= {"tasks": len(tasks), "requests": given.requests, "backbone": pool.index.backbone}
    found |= {"device": f"{os.cpu_count()}-core {platform.machine()} CPU", **provenance()}
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
