"""`Profiler`: a trace of a few steps of every stage, and the cost of each stage's compiled step."""

import contextlib
import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from cwps_jax.parallel import Compiled

UNTRACED = 2  # steps before the trace: the first ones of a program are not like the others
TRACED = 3
TIMED = 20  # most steps that are timed after the trace,
LEAST_TIMED = 3  # and how few are worth a median

# Dense bfloat16 operations a second of one JAX device, by its kind. Sources: NVIDIA's data sheets of A100,
# H100 and H200, whose figures with sparsity are twice these; Google Cloud's pages of the TPU versions, where
# a chip of v2 or v3 is two devices.
PEAKS = {
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA H200 NVL": 835.5e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of one stage's step on one device.

    Attributes:
        method, stage: names of the method and the stage.
        trace: name of the folder with its trace; it is in the same folder as steps.json.
        flops: floating-point operations by XLA's count, before compilation: forward and backward pass, mixing
            and update, on this device's share of the batch.
        bytes_accessed: bytes that the compiled program reads and writes, by XLA's count; on a GPU without
            those of library calls.
        peak_bytes: bytes of its arguments, results and temporaries at their peak, by XLA's analysis.
        seconds: seconds of one step with its batch on the device: the median of `steps` timed steps, or the
            mean of the traced ones.
        steps: number of steps from which `seconds` was computed.
        seconds_of: "timed" or "traced", the kind of these steps.
        flops_per_second, bytes_per_second: `flops` and `bytes_accessed` over `seconds`.
        mfu: model FLOPs utilisation: `flops_per_second` over the device's peak; None if the peak is not
            known.
    """

    method: str
    stage: str
    trace: str
    flops: float | None
    bytes_accessed: float | None
    peak_bytes: int | None
    seconds: float
    steps: int
    seconds_of: str
    flops_per_second: float | None
    bytes_per_second: float | None
    mfu: float | None


class Profiler:
    """Traces and times each stage of each method once, the first time that it is trained.

    Args:
        folder: the folder for steps.json, and for one folder per stage with its trace.
        dtype: the type in which the model computes. Peaks are known only for "bfloat16", because the peak in
            float32 depends on settings.
        recomputes: whether the model computes activations again in the backward pass. XLA counts these
            operations too, so there is no `mfu` then.

    Attributes:
        folder: the given folder.
        peak: operations per second of one device at its peak, or None.
        no_peak: the reason why there is no `mfu`; "" if there is one.
        costs: the costs of the stages so far.
    """

    def __init__(self, folder: pathlib.Path, *, dtype: str = "float32", recomputes: bool = False) -> None:
        self.folder = folder
        self.peak = peak_flops(jax.devices()[0].device_kind, dtype)
        self.no_peak = "" if self.peak else "peak unknown"
        if recomputes:
            self.peak, self.no_peak = None, "recomputes"
        self.costs: list[StepCost] = []

    @contextlib.contextmanager
    def watched(self, step: Compiled, method: str, stage: str, steps: int) -> Iterator[Callable[..., Any]]:
        """Returns the function to call instead of a stage's step; it computes the same.

        Args:
            step: the compiled step.
            method: name of its method.
            stage: name of its stage.
            steps: number of steps of the stage.
        """
        if any((cost.method, cost.stage) == (method, stage) for cost in self.costs):
            yield step
            return
        trace = f"{method}_{stage}"
        watch = _Watch(step, stage, self.folder / trace, steps)
        with watch:
            yield watch
        self.costs.append(self._cost(watch, method, stage, trace))
        if jax.process_index() == 0:
            self._write()

    def _cost(self, watch: "_Watch", method: str, stage: str, trace: str) -> StepCost:
        timed = len(watch.timed) >= LEAST_TIMED
        seconds = statistics.median(watch.timed) if timed else watch.traced_seconds / watch.traced
        step, flops = watch.step, watch.step.flops
        return StepCost(
            method=method,
            stage=stage,
            trace=trace,
            flops=flops,
            bytes_accessed=step.bytes_accessed,
            peak_bytes=step.peak_bytes,
            seconds=seconds,
            steps=len(watch.timed) if timed else watch.traced,
            seconds_of="timed" if timed else "traced",
            flops_per_second=flops and flops / seconds,
            bytes_per_second=step.bytes_accessed and step.bytes_accessed / seconds,
            mfu=flops / (seconds * self.peak) if flops and self.peak else None,
        )

    def _write(self) -> None:
        found = {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "peak_flops_per_second": self.peak,
            "stages": [dataclasses.asdict(cost) for cost in self.costs],
        }
        (self.folder / "steps.json").write_text(json.dumps(found, indent=1) + "\n")


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Returns a device's published peak of dense operations per second, or None if it is not known.

    Args:
        device_kind: the device's name in JAX.
        dtype: the type of the multiplied numbers.

    Examples:
        >>> peak_flops("TPU v4", "bfloat16")
        275000000000000.0
        >>> peak_flops("TPU v4", "float32")
    """
    return PEAKS.get(device_kind) if dtype == "bfloat16" else None


class _Watch:
    """A stage's step that runs some calls unchanged, traces some, and times some."""

    def __init__(self, step: Compiled, stage: str, folder: pathlib.Path, steps: int) -> None:
        self.step = step
        self.traced, self.traced_seconds = 0, 0.0
        self.timed: list[float] = []
        self._stage, self._folder = stage, folder
        self._count, self._began = 0, 0.0
        self._first = max(0, min(UNTRACED, steps - TRACED))
        self._last = min(self._first + TRACED, steps) - 1
        self._trace = contextlib.ExitStack()

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self._trace.close()  # a stage may end in an error, in the middle of a trace

    def __call__(self, *args: Any) -> Any:
        number = self._count
        self._count += 1
        if number < self._first or len(self.timed) == TIMED:
            return self.step(*args)
        if number == self._first:
            self.step.prepare(*args)  # so that compiling is in no trace
            jax.block_until_ready(args)
            self._trace.enter_context(jax.profiler.trace(self._folder, create_perfetto_trace=True))
            self._began = time.perf_counter()
        if number <= self._last:
            with jax.profiler.StepTraceAnnotation(self._stage, step_num=number):
                result = self.step(*args)
            self.traced += 1
            if number == self._last:
                jax.block_until_ready(result)
                self.traced_seconds = time.perf_counter() - self._began
                self._trace.close()
            return result
        jax.block_until_ready(args)  # the batch, on its way to the device
        began = time.perf_counter()
        result = jax.block_until_ready(self.step(*args))
        self.timed.append(time.perf_counter() - began)
        return result
