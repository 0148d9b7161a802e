"""Every benchmark that a device's column of docs/performance.md needs, one after the other.

    python benchmarks/all.py --device gpu --out benchmarks/results     (one H200, in ten minutes: not yet run)
    python benchmarks/all.py --device cpu --out benchmarks/results     (two cores: hours; `make benchmark`)
    python benchmarks/all.py --device cpu --quick --out FOLDER         (tries all of them; nothing to publish)

The most wanted come first, and each file is written as soon as it is there, so that a run that is cut short
leaves what it had. What needs PyTorch is left out, and said, where there is none. Compiled programs are kept
for the next benchmark, in a folder of this run.
"""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Run:
    """One benchmark with its flags.

    Attributes:
        benchmark: the file's name without its ending.
        flags: its flags, in one string.
        suffix: of the result file, after the benchmark and the device.
    """

    benchmark: str
    flags: str = ""
    suffix: str = ""

    def file(self, device: str) -> str:
        """Returns the name of the result file."""
        return "_".join(filter(None, (self.benchmark, device, self.suffix))) + ".json"


RESNET = "--backbone resnet50 --size 224 --batch 256 --dtype bfloat16"
VIT = "--backbone vit_b16 --size 224 --batch 128 --dtype bfloat16"
BEHIND = "--steps 5"  # the host runs ahead of the device, as in training
AS_TIMED = f"{BEHIND} --cost-size 0 --cost-batch 0"
RUNS = {
    "cpu": (
        Run("step"),
        Run("step", "--repeats 8", "methods"),
        Run("step", "--size 96", "small"),
        Run("step", "--backbone resnet50 --repeats 0", "resnet50"),
        Run("hard"),
        Run("hard", "--size 96", "small"),
        Run("hard", "--backbone resnet50 --repeats 0 --cost-batch 32", "resnet50"),
        Run("hard", "--backbone resnet50 --repeats 0 --cost-batch 256", "resnet50_batch256"),
        Run("task"),
        Run("saving"),
        Run("start"),
        Run("search"),
        Run("pool"),
        Run("swap"),
        Run("serve"),
        Run("serve_curves"),
        Run("serve_curves", "--backbone resnet20_cifar --size 32", "small"),
        Run("many_tasks"),
        Run("bits"),
        Run("compile"),
        Run("input"),
        Run("peers", suffix="float32"),
        Run("peers", "--dtype bfloat16 --size 96", "bfloat16_small"),
        Run("backbone"),
    ),
    "gpu": (
        Run("step", f"{RESNET} {AS_TIMED} --device-memory", "resnet50"),
        Run("hard", f"{RESNET} {AS_TIMED} --device-memory", "resnet50"),
        Run("peers", f"{RESNET} {BEHIND}", "bfloat16"),
        Run("step", f"{VIT} {AS_TIMED}", "vit_b16"),
        Run("hard", f"{VIT} {AS_TIMED}", "vit_b16"),
        Run("search", "--backbone resnet50"),
        Run("pool", "--tasks 64 --repeats 3"),
        Run("swap", RESNET),
        Run("task", f"{RESNET} --repeats 5"),
        Run("saving", f"{RESNET} --steps 20 --repeats 8"),
        Run("backbone", "--batch 256"),
        Run("compile", f"{RESNET} --repeats 2"),
        Run("hard", f"{RESNET} --repeats 0 --cost-batch 32 --device-memory", "resnet50_batch32"),
    ),
}
NEEDS_TORCH = ("peers", "backbone")


def measure(run: Run, arguments: argparse.Namespace, cache: str) -> str:
    """Runs one benchmark and returns what became of it."""
    if run.benchmark in NEEDS_TORCH and not importlib.util.find_spec("torch"):
        return "left out: it needs torch and timm, see `make peers`"
    out = arguments.out / run.file(arguments.device)
    # With --quick the flags are the benchmark's own small ones.
    flags = ["--quick"] if arguments.quick else run.flags.split()
    command = [sys.executable, str(HERE / f"{run.benchmark}.py"), *flags, "--out", str(out)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[arguments.device],
        "JAX_COMPILATION_CACHE_DIR": cache,
        # A borrowed machine may have all that the package needs and not the package.
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH")))),
    }
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=HERE.parent)
    told = str(out) if done.returncode == 0 else f"FAILED with code {done.returncode}"
    return f"{told}, {time.perf_counter() - began:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=tuple(RUNS), default="cpu")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder of the result files")
    parser.add_argument("--only", nargs="+", metavar="BENCHMARK", help="these benchmarks alone")
    parser.add_argument("--quick", action="store_true", help="each under a minute; not for publication")
    arguments = parser.parse_args()
    known = {run.benchmark for run in RUNS[arguments.device]}
    if wrong := set(arguments.only or ()) - known:
        parser.error(f"--only {' '.join(sorted(wrong))}: choose of {' '.join(sorted(known))}")
    arguments.out = arguments.out.absolute()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = [run for run in RUNS[arguments.device] if run.benchmark in (arguments.only or known)]
    if arguments.quick:  # one of each: they differ in flags that --quick leaves out
        runs = list({run.benchmark: run for run in runs}.values())
    failed = False
    with tempfile.TemporaryDirectory() as cache:
        for run in runs:
            print(f"== {run.benchmark} {run.suffix}", flush=True)
            told = measure(run, arguments, cache)
            print(f"-- {told}", flush=True)
            failed |= told.startswith("FAILED")
    sys.exit(failed)


if __name__ == "__main__":
    main()
