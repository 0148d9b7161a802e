"""Compares every backbone with an independent PyTorch model, and three methods' gradients: `make parity`.

Random weights go through a weights file in the reference's key names and `load_backbone`; logits may be
1e-4 apart, and what `save_backbone` writes must be the file's arrays to the bit. Losses and gradients of
TAPS, LoRA and Piggyback may be 1e-5 from those of parity/sharing.py, absolute and relative.
"""

import argparse
import functools
import importlib.metadata
import json
import pathlib
import platform
import tempfile
from typing import Any

import jax
import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

import cwps_jax
from cwps_jax.core.trees import flatten
from parity import arrays, sharing, sharing_here
from parity.reference import Arrays, Reference, load_state, logits, state_of
from parity.references import FULL

TOLERANCE = 1e-4
RESULTS = pathlib.Path(__file__).parent / "results.json"
VERSIONS = ("jax", "flax", "numpy", "torch", "timm")
BATCH = 2


# Static models are compared by value: sets of key names share compiled programs.
@functools.partial(jax.jit, static_argnums=0)
def apply(model: Any, variables: Any, images: np.ndarray) -> jax.Array:
    """Returns logits."""
    return model.apply(variables, images)


def main() -> None:
    """Prints and writes a line for each model, set of key names and size, and for each sharing method.

    Exits with 1 where something is too far apart.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of the names to compare; writes no results")
    only = parser.parse_args().only
    rows: list[dict[str, Any]] = []
    for reference in FULL:
        if only in reference.name:
            for row in compare(reference):
                print(
                    "{name:16} {keys:12} {image_size:9} {difference:.1e}  logits {deviation:.2f}".format(
                        **row
                    )
                )
                rows.append(row)
    methods = [compare_sharing(case) for case in sharing.CASES if only in case.name]
    for row in methods:
        print("{name:21} {leaves:2} leaves  {absolute:.1e}  relative {relative:.1e}".format(**row))
    missing = cwps_jax.BACKBONES.keys() - {reference.name for reference in FULL}
    if missing:
        raise SystemExit(f"no reference for {', '.join(sorted(missing))}")
    if not only:
        versions = {name: importlib.metadata.version(name) for name in VERSIONS}
        found = {
            "versions": versions,
            "machine": platform.machine(),
            "tolerance": TOLERANCE,
            "rows": rows,
            "gradient_tolerance": sharing_here.TOLERANCE,
            "gradients": methods,
        }
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    above = [f"{row['name']} ({row['keys']})" for row in rows if not row["difference"] <= TOLERANCE]
    above += [
        row["name"] for row in methods if not max(row["absolute"], row["relative"]) <= sharing_here.TOLERANCE
    ]
    if above:
        raise SystemExit(f"too far apart: {', '.join(above)}")


def compare(reference: Reference) -> list[dict[str, Any]]:
    """Returns a row for each size of a reference. Raises SystemExit where the way back changes an array."""
    file_arrays = reference.to_file(random_state(reference))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = reference.save(pathlib.Path(folder), file_arrays)
        for size, module in zip(reference.sizes, reference.modules(file_arrays), strict=True):
            images = arrays.images((BATCH, *size, 3))
            model, variables = cwps_jax.load_backbone(
                reference.name, path, image_size=size, **reference.options
            )
            ours, theirs = apply(model, variables, images), logits(module, images)
            rows.append(
                {
                    "name": reference.name,
                    "keys": reference.keys,
                    "image_size": "{}x{}".format(*size),
                    "difference": float(np.abs(np.asarray(ours) - theirs).max()),
                    "deviation": round(float(theirs.std()), 2),
                }
            )
            if size == reference.sizes[0]:
                check_way_back(reference, variables, file_arrays, pathlib.Path(folder) / "back.safetensors")
    return rows


def compare_sharing(case: sharing.Case) -> dict[str, Any]:
    """Returns a row for a method's loss and gradients."""
    found = sharing_here.differences(*sharing.fixture(case))
    absolute, relative = (max(column) for column in zip(*found.values(), strict=True))
    return {"name": case.name, "leaves": len(found) - 1, "absolute": absolute, "relative": relative}


def random_state(reference: Reference) -> Arrays:
    """Returns random weights: norm statistics near those of images, as after training; logits of order 1."""
    module = reference.build(reference.sizes[0]).eval()
    state = arrays.weights({key: array.shape for key, array in state_of(module).items()})
    for key in state:
        # The end of a bottleneck, small after training. Random ones as large as the rest make ResNet-101 so
        # ill-conditioned that both sides are 1.5e-4 from the logits in float64.
        if key.endswith("bn3.weight"):
            state[key] /= 4
    load_state(module, state)

    def near_statistics(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], (0, 2, 3))
        norm.running_mean.mul_(var.sqrt()).add_(mean)
        norm.running_var.mul_(var)

    hooks = [
        norm.register_forward_pre_hook(near_statistics)
        for norm in module.modules()
        if isinstance(norm, nn.BatchNorm2d)
    ]
    deviation = float(logits(module, arrays.images((16, *reference.sizes[0], 3))).std())
    for hook in hooks:
        hook.remove()
    head = [one for one in module.modules() if isinstance(one, nn.Conv2d | nn.Linear)][-1]
    for parameter in head.parameters():
        parameter.div_(deviation)
    return state_of(module)


def check_way_back(reference: Reference, variables: Any, wanted: Arrays, path: pathlib.Path) -> None:
    """Raises SystemExit unless the exported file has the reference's arrays, bit by bit."""
    if reference.suffix == ".npz":  # not written: must come back from the first set of names
        cwps_jax.save_backbone(path, reference.name, variables)
        back = cwps_jax.load_backbone(reference.name, path, image_size=reference.sizes[0])[1]
        found, wanted = flatten(back), flatten(variables)
    else:
        cwps_jax.save_backbone(path, reference.name, variables, keys=reference.keys)
        found = load_file(path)
    counters = {key for key in found.keys() - wanted.keys() if key.endswith(arrays.COUNTER)}
    differing = [key for key in wanted if key not in found or not np.array_equal(found[key], wanted[key])]
    if differing or found.keys() - wanted.keys() - counters:
        raise SystemExit(f"{reference.name}: the exported file differs in {differing}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
