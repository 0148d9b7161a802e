"""docs/performance.md's tables: what a step, a search and a swap should cost, against what was measured."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

Results = Mapping[str, Mapping[str, Any]]  # {name of a result file: its content}

NOT_YET = "not yet run"
DEVICES = {"cpu": "CPU, 2 cores", "gpu": "one H200, bfloat16"}


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a ratio should be on one device; without bounds it is only reported.

    Attributes:
        file: the result file that holds it.
        most, least: its bounds.
    """

    file: str
    most: float = math.inf
    least: float = -math.inf

    def __str__(self) -> str:
        if math.isfinite(self.most) and math.isfinite(self.least):
            return f"{self.least:g} to {self.most:g}"
        if math.isfinite(self.most):
            return f"at most {self.most:g}"
        return f"at least {self.least:g}" if math.isfinite(self.least) else "reported"


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing that is measured on each device.

    Attributes:
        what: in words.
        ratio: its name in the result files.
        cpu, gpu: the goals; None where there is none.
    """

    what: str
    ratio: str
    cpu: Goal | None
    gpu: Goal | None


_STEP, _VIT, _HARD = "step_gpu_resnet50.json", "step_gpu_vit_b16.json", "hard_gpu_resnet50.json"
_PEERS, _PEERS_GPU = "peers_cpu_float32.json", "peers_gpu_bfloat16.json"
ROWS = (
    Row("soft step over fine-tuning: time", "soft_time", Goal("step_cpu.json", 1.03), Goal(_STEP, 1.01)),
    Row("soft step over fine-tuning: time, 96 px", "soft_time", Goal("step_cpu_small.json", 1.03), None),
    Row("TAPS's step over fine-tuning: time", "taps_time", Goal("step_cpu_methods.json", 1.03), None),
    Row("LoRA's step over fine-tuning: time", "lora_time", Goal("step_cpu_methods.json", 1.05), None),
    Row("soft step over fine-tuning: time, ViT-B/16", "soft_time", None, Goal(_VIT, 1.01)),
    Row(
        "soft step over fine-tuning: peak memory, ResNet-50",
        "soft_memory",
        Goal("step_cpu_resnet50.json", 1.025),
        Goal(_STEP, 1.01),
    ),
    Row(
        "hard step, 30% active, over fine-tuning: FLOPs",
        "hard_flops",
        Goal("hard_cpu.json", 0.78),
        Goal(_HARD, 0.78),
    ),
    Row("hard step: time", "hard_time", Goal("hard_cpu.json", 0.85), Goal(_HARD, 0.85)),
    Row("hard step: time, 96 px", "hard_time", Goal("hard_cpu_small.json", 0.85), None),
    Row(
        "hard step: peak memory, ResNet-50, batch 32",
        "hard_memory",
        Goal("hard_cpu_resnet50.json", 0.98),
        Goal("hard_gpu_resnet50_batch32.json", 0.98),
    ),
    Row(
        "hard step: peak memory, ResNet-50, batch 256",
        "hard_memory",
        Goal("hard_cpu_resnet50_batch256.json", 0.997),
        Goal(_HARD, 0.997),
    ),
    Row(
        "hard step: optimizer bytes of channels",
        "hard_optimizer_bytes",
        Goal("hard_cpu.json", 0.33),
        Goal(_HARD, 0.33),
    ),
    Row(
        "a whole task over fine-tuning it, from the second task on: time",
        "task_over_finetune",
        Goal("task_cpu.json", 0.9),
        Goal("task_gpu.json", 0.9),
    ),
    Row(
        "a run with saves over one without: time",
        "run_over_one_without_saves",
        Goal("saving_cpu.json", 1.01),
        Goal("saving_gpu.json", 1.01),
    ),
    Row(
        "a step that waits for a save over the others",
        "step_that_waits_over_others",
        Goal("saving_cpu.json", 1.05),
        Goal("saving_gpu.json", 1.05),
    ),
    Row(
        "start to first step, two processes over one, programs compiled before",
        "warm_start_of_two_over_one",
        Goal("start_cpu.json", 1.3),
        None,
    ),
    Row(
        "start to first step, two processes over one, compiling",
        "cold_start_of_two_over_one",
        Goal("start_cpu.json", 1.3),
        None,
    ),
    Row("fine-tuning step over PyTorch's", "finetune_over_torch", Goal(_PEERS), Goal(_PEERS_GPU, 1.0)),
    Row(
        "fine-tuning step over the bound of its memory traffic",
        "finetune_over_bandwidth_bound",
        None,
        Goal("backbone_gpu.json", 1.6),
    ),
    Row(
        "soft step over fine-tuning, beside PyTorch",
        "cwps_over_finetune_jax",
        Goal(_PEERS, 1.03),
        Goal(_PEERS_GPU, 1.03),
    ),
    Row("TAPS over fine-tuning in PyTorch", "taps_over_finetune_torch", Goal(_PEERS), Goal(_PEERS_GPU)),
    Row("soft step over TAPS's in PyTorch", "cwps_over_taps", Goal(_PEERS), Goal(_PEERS_GPU, 0.8)),
    Row(
        "search over a pass over the same bytes",
        "search_over_pass",
        Goal("search_cpu.json", 1.3),
        Goal("search_gpu.json", 1.3),
    ),
    Row(
        "naive search over ours",
        "naive_over_search",
        Goal("search_cpu.json", least=10),
        Goal("search_gpu.json", least=10),
    ),
    Row(
        "merged inference over the backbone's",
        "merged_over_backbone",
        Goal("swap_cpu.json", 1.01, 0.99),
        Goal("swap_gpu.json", 1.01, 0.99),
    ),
)


def targets_table(results: Results) -> str:
    """Returns the table of targets, each device's goal beside what was measured."""
    head = " | ".join(f"{words}: target | measured" for words in DEVICES.values())
    lines = [f"| | {head} |", "|---|---|---|---|---|"]
    for row in ROWS:
        cells = [
            cell
            for goal in (row.cpu, row.gpu)
            for cell in (("", "") if goal is None else (str(goal), _measured(row.ratio, goal, results)))
        ]
        lines.append(f"| {row.what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pool_line(result: dict[str, Any]) -> str:
    """Returns what benchmarks/pool.py found."""
    settings, seconds = result["settings"], result["seconds"]
    return (
        f"{settings['tasks']:,} tasks on {settings['backbone']}, in {settings['families']} families, "
        f"each with {settings['active']:.0%} of the channels of its own, "
        f"{result['file_bytes'] / 1e9:.1f} GB: a search takes {seconds['again']:.1f} s "
        "({:.1f} to {:.1f}) where rows stayed in memory, ".format(*seconds["again_quartiles"])
        + f"and the first one of a process {seconds['cold']:.0f} s, from opening the pool on, with reading, "
        f"hashing and rounding the rows; to read the files alone takes {seconds['read']:.0f} s. Medians of "
        f"{settings['repeats']} turns, with {result['searches']} searches in all from memory, "
        f"{result['device']}, commit {result['commit']}."
    )


def ratios_table(results: Results) -> str:
    """Returns every ratio of every result file, and what each file was measured on."""
    lines = ["| file | ratio | median (quartiles) |", "|---|---|---|"]
    measured = {file: result for file, result in sorted(results.items()) if "ratios" in result}
    for file, result in measured.items():
        _check(file, result)
        for name in result["ratios"]:
            lines.append(f"| {file} | {name} | {_value(result, name)} |")
    lines.append("")
    for file, result in measured.items():
        settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items() if key != "quick")
        versions = [f"jax {result['versions']['jax']}"]
        versions += [f"torch {result['pytorch']['torch']}"] if "pytorch" in result else []
        where = ", ".join([result["device"], *versions, f"commit {result['commit']}"])
        lines.append(f"- {file}: {where}; {settings}")
    return "\n".join(lines)


def _measured(ratio: str, goal: Goal, results: Results) -> str:
    if goal.file not in results:
        return NOT_YET
    result = results[goal.file]
    _check(goal.file, result)
    if ratio not in result["ratios"]:
        return "the device does not tell"
    value, told = result["ratios"][ratio], _value(result, ratio)
    if value > goal.most:
        return f"{told}: missed by {value - goal.most:.2g}"
    if value < goal.least:
        return f"{told}: missed by {goal.least - value:.2g}"
    bounded = math.isfinite(goal.most) or math.isfinite(goal.least)
    return f"{told}: met" if bounded else told


def _value(result: Mapping[str, Any], ratio: str) -> str:
    spread = result["quartiles"].get(ratio)
    return f"{result['ratios'][ratio]:.3f}" + (" ({:.3f} to {:.3f})".format(*spread) if spread else "")


def _check(file: str, result: Mapping[str, Any]) -> None:
    if result["settings"].get("quick"):
        raise SystemExit(f"benchmarks/results/{file}: measured with --quick, which is not for publication")
