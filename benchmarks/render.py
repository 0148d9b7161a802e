"""Writes the tables of README.md from committed result files; --check only says whether they are current.

python benchmarks/render.py
"""

import argparse
import json
import pathlib
import statistics
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent


def digits_table(runs: list[dict[str, Any]]) -> str:
    """Returns the table of the demo: seed 0 a task, and the means over tasks of every seed."""
    first = runs[0]
    lines = [
        f"| task | accuracy | fine-tuning | linear probe | parameters kept ({first['backbone']}) | bytes |",
        "|---|---|---|---|---|---|",
    ]
    for task in first["tasks"]:
        lines.append(
            f"| {task['name']} | {_percent(task['accuracy'])} | {_percent(task['finetune_accuracy'])} | "
            f"{_percent(task['probe_accuracy'])} | {task['params_ratio']:.3f}x | {task['bytes']:,} |"
        )
    means = {
        key: [statistics.mean(task[key] for task in run["tasks"]) for run in runs]
        for key in ("accuracy", "finetune_accuracy", "probe_accuracy", "params_ratio")
    }
    lines.append(
        f"| mean | {_percent(means['accuracy'][0])} | {_percent(means['finetune_accuracy'][0])} | "
        f"{_percent(means['probe_accuracy'][0])} | {means['params_ratio'][0]:.3f}x | |"
    )
    changed = sum(
        row["logits_sha256_when_learned"] != row["logits_sha256_at_end"]
        for run in runs
        for row in run["forgetting"]
    )
    where = f"{first['versions']['device']}, jax {first['versions']['jax']}"
    lines += [
        "",
        f"`make demo`, seed 0, on {where}. Together with "
        f"the pre-trained model {first['total_params_ratio']:.2f}x a backbone, where fine-tuning keeps "
        f"{1 + len(first['tasks'])}x. Means over the tasks with seeds 0 to {len(runs) - 1}: "
        f"{_spread(means['accuracy'])} against {_spread(means['finetune_accuracy'])} fine-tuned and "
        f"{_spread(means['probe_accuracy'])} probed. A task's test set has about 520 images: one seed's "
        f"accuracy is good to about 0.7 points. Tasks whose test logits changed in any bit after they were "
        f"learned: {changed}.",
    ]
    return "\n".join(lines)


def step_table(result: dict[str, Any]) -> str:
    """Returns the table of benchmarks/step.py."""
    ratios, settings = result["ratios"], result["settings"]
    low_high = {name: "{:.3f} to {:.3f}".format(*pair) for name, pair in result["quartiles"].items()}
    lines = ["| against a fine-tuning step | time | FLOPs | peak memory |", "|---|---|---|---|"]
    for kind in ("soft", "hard"):
        lines.append(
            f"| {kind} step | {ratios[f'{kind}_time']:.3f}x ({low_high[f'{kind}_time']}) | "
            f"{ratios[f'{kind}_flops']:.4f}x | {ratios[f'{kind}_memory']:.3f}x |"
        )
    lines += [
        "",
        f"{settings['backbone']}, {settings['dtype']}, {result['device']}, jax {result['versions']['jax']}, "
        f"commit {result['commit']}. Time: median and quartiles of {settings['repeats']} interleaved turns "
        f"at batch {settings['batch']}, {settings['size']} px; a fine-tuning step takes "
        f"{result['seconds']['finetune']:.2f} s. FLOPs and memory: XLA's analysis at batch "
        f"{settings['cost_batch']}, {settings['cost_size']} px.",
    ]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _spread(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} (deviation {100 * statistics.stdev(values):.1f})"


def _read(pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(ROOT.glob(pattern))]


def rendered(text: str) -> str:
    """Returns README.md's text with its tables made anew."""
    tables = {
        "digits": digits_table(_read("docs/results/digits_seed*.json")),
        "step": step_table(_read("benchmarks/results/step_cpu.json")[0]),
    }
    for name, table in tables.items():
        before, found, rest = text.partition(f"<!-- {name}:")
        opening, _, rest = rest.partition("-->\n")
        _, _, after = rest.partition("<!-- end -->")
        if not found or not after:
            raise SystemExit(f"README.md has no place for the table {name!r}")
        text = f"{before}{found}{opening}-->\n{table}\n<!-- end -->{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = rendered(text)
    if arguments.check:
        sys.exit(0 if new == text else "README.md is not current: run python benchmarks/render.py")
    readme.write_text(new)


if __name__ == "__main__":
    main()
