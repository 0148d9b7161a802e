"""Writes the tables of README.md and docs/ from committed result files; --check only looks.

python benchmarks/render.py
"""

import argparse
import json
import pathlib
import sys
from typing import Any

from runs import by_round_table, demo_table, methods_table, numbers_table, run_table, summary_table
from serving_page import costs_table, curves_table, draw_serving, many_tasks_line, storm_table
from targets import pool_line, ratios_table, targets_table

from cwps_jax import BACKBONES
from cwps_jax.report.rows import read_results
from cwps_jax.study.tables import markdown

ROOT = pathlib.Path(__file__).parent.parent
PAGES = (
    "README.md",
    "docs/backbones.md",
    "docs/data.md",
    "docs/experiments.md",
    "docs/get_started.md",
    "docs/methods.md",
    "docs/performance.md",
    "docs/serving.md",
    "docs/studies.md",
    "docs/trials.md",
)
CURVES = "benchmarks/results/serve_curves_cpu.json"
# Those of each page, configs/studies/<name>.py.
STUDIES = {
    "docs/experiments.md": (
        *("pacs_bytes", "pacs_methods", "pacs_few_shots", "pacs_search", "pacs_grains", "digits_search"),
        *("pacs_rounds", "pacs_depths"),
    ),
    "docs/studies.md": ("digits_small",),
    "docs/trials.md": (
        *("digits_schedule", "pacs_schedule", "pacs_few_schedule"),
        *("pacs_bits", "pacs_few_images", "pacs_methods_rates"),
        *("pacs_choice", "digits_vit_choice"),
    ),
}


def backbones_table(parity: dict[str, Any]) -> str:
    """Returns the table of all backbones, with the differences from PyTorch that `make parity` found."""
    lines = [
        "| name | parameters | classes | images | key names | largest difference of a logit from PyTorch's |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in BACKBONES.items():
        tables = ", ".join(f"{table.name} ({table.suffix[1:]})" for table in one.tables)
        difference = f"{max(row['difference'] for row in parity['rows'] if row['name'] == name):.0e}"
        cells = (
            f"`{name}`",
            f"{one.parameters:,}",
            one.num_classes,
            f"{one.image_size} px",
            tables,
            difference,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
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


def speed_table(result: dict[str, Any]) -> str:
    """Returns the table of benchmarks/backbone.py."""
    settings, versions, pytorch = result["settings"], result["versions"], result["pytorch"]
    lines = [
        "| | images per second | PyTorch's | speed over PyTorch | compile time |",
        "|---|---|---|---|---|",
    ]
    for call, name in (("forward", "forward pass"), ("train", "fine-tuning step")):
        rates, (low, high) = result["images_per_second"][call], result["quartiles"][call]
        lines.append(
            f"| {name} | {rates['jax']:.2f} | {rates['torch']:.2f} | "
            f"{result['speed_over_pytorch'][call]:.2f}x ({low:.2f} to {high:.2f}) | "
            f"{result['compile_seconds'][call]:.1f} s |"
        )
    transposes = result["transposes"]
    # Of each call the faster form; a file of before says it of both at once.
    forms = pytorch.get("forms") or {"both": "torch.compile" if pytorch["compiled"] else "eager"}
    how = " and ".join(dict.fromkeys(forms.values())).replace("torch.compile", "through torch.compile")
    lines += [
        "",
        f"{settings['backbone']}, {settings['dtype']}, batch {settings['batch']}, {settings['size']} px, "
        f"{result['device']}, jax {versions['jax']}, torch {pytorch['torch']} channels-last with autocast, "
        f"{how}, commit {result['commit']}. Median and quartiles of {settings['repeats']} interleaved turns. "
        f"Transposes of activations and kernels: {transposes['handed to XLA']} in the step that we hand to "
        f"XLA, {transposes['made by XLA']} in what XLA made of it for this device.",
    ]
    return "\n".join(lines)


def input_table(result: dict[str, Any]) -> str:
    """Returns the table of benchmarks/input.py."""
    settings, versions, speeds = result["settings"], result["versions"], result["images_per_second"]
    ratios = {
        name: "{:.2f}x ({:.2f} to {:.2f})".format(ratio, *result["quartiles"][name])
        for name, ratio in result["ratios"].items()
    }
    lines = [
        f"| images per second, and over the bare decoder's {speeds['decoder']:,.0f} | from files | "
        "from the cache in memory | from the cache on disk |",
        "|---|---|---|---|",
    ]
    for crop, name in (("random_resized", "random resized crop"), ("random", "random crop")):
        cells = [
            f"{speeds[f'{kind}_{crop}']:,.0f}: {ratios[f'{kind}_{crop}_over_decoder']}"
            for kind in ("files", "memory_cache", "disk_cache")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    whose = "own images" if settings["own_images"] else "scikit-learn's photos, 500 x 375"
    lines += [
        "",
        f"{settings['images']} JPEG ({whose}), {settings['mean_bytes'] / 1000:.0f} kB on average, to "
        f"{settings['size']} px with flips; batches of {settings['batch']}, {settings['threads']} threads, "
        f"{result['device']}, pillow {versions['pillow']}, opencv {versions['opencv-python-headless']}, "
        f"grain {versions['grain']}, commit {result['commit']}. Median and quartiles of "
        f"{settings['repeats']} interleaved turns. A fine-tuning "
        f"step of {settings['backbone']} (batch {settings['step_batch']}, {settings['step_size']} px, "
        f"{result['step_seconds']['resident']:.2f} s on a batch that stays on the device) takes "
        f"{ratios['step_with_files_over_resident']} with the loader reading files and "
        f"{ratios['step_with_memory_cache_over_resident']} with the cache in memory.",
    ]
    return "\n".join(lines)


def _results(pattern: str) -> list[dict[str, Any]]:
    return [read_results(path) for path in sorted(ROOT.glob(pattern))]


def _read(pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(ROOT.glob(pattern))]


def rendered(path: str, text: str) -> str:
    """Returns a page's text with its tables made anew."""
    for name, table in tables_of(path).items():
        before, found, rest = text.partition(f"<!-- {name}:")
        opening, _, rest = rest.partition("-->\n")
        _, _, after = rest.partition("<!-- end -->")
        if not found or not after:
            raise SystemExit(f"{path} has no place for the table {name!r}")
        text = f"{before}{found}{opening}-->\n{table}\n<!-- end -->{after}"
    return text


def tables_of(path: str) -> dict[str, str]:
    """Returns the tables of a page."""
    if path == "README.md":
        runs = _results("docs/results/digits_seed*.json")
        coded = _results("docs/results/digits_coded_seed*.json")
        return {"numbers": numbers_table(runs, coded, "in 0.02x of the bytes")}
    if path == "docs/get_started.md":
        return {"digits": demo_table(_results("docs/results/digits_seed*.json"))}
    if path == "docs/backbones.md":
        return {"backbones": backbones_table(_read("parity/results.json")[0])}
    if path == "docs/data.md":
        return {"input": input_table(_read("benchmarks/results/input_cpu.json")[0])}
    if path == "docs/methods.md":
        return {
            name: methods_table(_results(f"docs/results/digits_methods_{name}.json")[0])
            for name in ("resnet8", "vit_nano4")
        }
    if path == "docs/performance.md":
        files = (ROOT / "benchmarks" / "results").glob("*.json")
        results = {file.name: json.loads(file.read_text()) for file in files}
        return {
            "step": step_table(results["step_cpu.json"]),
            "backbone": speed_table(results["backbone_cpu.json"]),
            "targets": targets_table(results),
            "pool": pool_line(results["pool_cpu.json"]),
            "ratios": ratios_table(results),
        }
    if path == "docs/serving.md":
        return {
            "costs": costs_table(_read("benchmarks/results/serve_cpu.json")[0]),
            "curves": curves_table(_read(CURVES)[0]),
            "many_tasks": many_tasks_line(_read("benchmarks/results/many_tasks_cpu.json")[0]),
            "storm": storm_table(_read("benchmarks/results/storm_server.json")[0]),
        }
    studies = {name: markdown(_read(f"docs/results/study_{name}.json")[0]) for name in STUDIES.get(path, ())}
    if path != "docs/experiments.md":
        return studies
    return {
        "pacs": run_table(_results("docs/results/pacs_seed0.json")[0]),
        "fewshot": summary_table(_read("docs/results/pacs_10_shots.json")[0]),
        "omniglot": run_table(_results("docs/results/omniglot_seed0.json")[0]),
        **studies,
        "rounds": by_round_table(_results("docs/results/digits_rounds_seed0.json")[0]),
        "vit": run_table(_results("docs/results/digits_vit_seed0.json")[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for path in PAGES:
        text = (ROOT / path).read_text()
        new = rendered(path, text)
        if arguments.check and new != text:
            sys.exit(f"{path} is not current: run python benchmarks/render.py")
        (ROOT / path).write_text(new)
    if not arguments.check:
        draw_serving(_read(CURVES)[0], ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
