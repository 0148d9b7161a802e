"""What every benchmark does: flags, interleaved turns, paired ratios, where it was measured, one JSON file.

The file holds {"benchmark", "ratios": {name: median}, "quartiles": {name: [low, high]}, "settings", "device",
"versions", "commit"} and what else a benchmark has to tell. Ratios that are counted and not timed, such as
FLOPs, have no quartiles.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

REPEATS = 30


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the flags that every benchmark takes."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--repeats", type=int, default=REPEATS, help="interleaved turns that count")
    made.add_argument("--quick", action="store_true", help="under a minute on two cores; not for publication")
    made.add_argument("--out", type=pathlib.Path, help="the JSON file to write")
    return made


def model_parser(
    description: str | None, *, backbone: str, size: int, batch: int, dtype: str = "float32"
) -> argparse.ArgumentParser:
    """Returns a `parser` with the flags of a backbone and of a batch of images, and these defaults."""
    made = parser(description)
    made.add_argument(
        "--backbone", default=backbone, help="its name; PyTorch's side takes timm's of that name"
    )
    made.add_argument("--size", type=int, default=size, help="pixels of an image's side")
    made.add_argument("--batch", type=int, default=batch, help="images a step")
    made.add_argument("--dtype", default=dtype, choices=("bfloat16", "float32"))
    return made


def parse(
    made: argparse.ArgumentParser, quick: Mapping[str, Any], flags: Sequence[str] | None = None
) -> argparse.Namespace:
    """Returns the flags; with --quick the defaults are those of `quick`."""
    if made.parse_args(flags).quick:
        made.set_defaults(**quick)
    return made.parse_args(flags)


def interleaved(turns: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Returns what each turn gives, again and again, after a first one that does not count.

    The order rotates: none always comes after the same other one.
    """
    values: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for repeat in range(-1, repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            value = turns[name]()
            if repeat >= 0:
                values[name].append(value)
    return values


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns the seconds of one call, which has to wait for its device."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ratios(values: Mapping[str, list[float]], pairs: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Returns {"ratios": medians, "quartiles": [low, high]} of turns over the turns beside them.

    Args:
        values: what `interleaved` measured.
        pairs: {name of a ratio: (turn above, turn below)}.
    """
    medians, quartiles = {}, {}
    for name, (above, below) in pairs.items():
        if len(values[below]) < 2:
            raise SystemExit("--repeats: a spread needs at least 2 turns")
        paired = [a / b for a, b in zip(values[above], values[below], strict=True)]
        low, medians[name], high = statistics.quantiles(paired, n=4)
        quartiles[name] = [low, high]
    return {"ratios": medians, "quartiles": quartiles}


def medians(values: Mapping[str, list[float]]) -> dict[str, float]:
    """Returns the median of each turn."""
    return {name: statistics.median(measured) for name, measured in values.items()}


def commit() -> str:
    """Returns the commit, and that it is dirty where tracked files differ from it, results left aside."""
    results = ":(exclude)results"  # one benchmark after another writes its own

    def said(*asked: str) -> str:
        here = pathlib.Path(__file__).parent
        answer = subprocess.run(["git", *asked], capture_output=True, text=True, check=False, cwd=here)
        return answer.stdout.strip()

    name = said("describe", "--always", "--exclude", "*")
    changed = said("status", "--porcelain", "--untracked-files=no", "--", ":/", results)
    return (name or "unknown") + ("-dirty" if changed else "")


COMMIT = commit()  # of the code that this process runs, whatever is edited meanwhile


def provenance(*packages: str) -> dict[str, Any]:
    """Returns the device, the versions and the commit that figures belong to."""
    import jax  # here: the PyTorch side of a comparison does without it

    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    return {
        "device": f"{os.cpu_count()}-core {platform.machine()} CPU" if on_cpu else device.device_kind,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "commit": COMMIT,
    }


def publish(benchmark: str, found: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Prints the ratios and writes the file; `found` may bring a provenance of its own."""
    settings = {
        name: value
        for name, value in vars(arguments).items()
        if name != "out" and isinstance(value, (str, int, float))
    }
    result = {"benchmark": benchmark, **found, "settings": settings}
    if "device" not in result:
        result |= provenance()
    for name, value in result["ratios"].items():
        spread = result["quartiles"].get(name)
        print(f"{name:32} {value:8.4f}" + (" ({:.4f} to {:.4f})".format(*spread) if spread else ""))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
