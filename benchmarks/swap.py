"""Serving a stored task: merged inference over the plain backbone's, and swapping tasks in a resident model.

    python benchmarks/swap.py --out benchmarks/results/swap_cpu.json

merged_over_backbone: seconds of inference with a task's parameters, as the pool gives them, over seconds
with the backbone's own; `same_hlo` says whether both are one program to the letter. swap_over_copy: seconds
to turn the resident parameters of one task into another's by writing only the channels in which they differ,
into the same buffers, over seconds to copy all parameters; both from arrays that are on the device already.
"""

import argparse
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measurement import interleaved, medians, model_parser, parse, publish, ratios, seconds_of
from synthetic import Setting, stored_pool
from turn import ACTIVE

from cwps_jax.core.channels import Layout, to_columns
from cwps_jax.core.compact import pack, placements, unpack
from cwps_jax.core.trees import flatten, select, unflatten

QUICK = {"size": 32, "batch": 8, "repeats": 8}


class Swap:
    """A resident model that two tasks take turns in."""

    def __init__(self, layout: Layout, first: Any, second: Any) -> None:
        tasks = [select(task, layout.layer_paths) for task in (first, second)]
        gates = differing(layout, first, second)
        self.share = float(np.mean([np.mean(gate) for gate in flatten(gates).values()]))
        placed = placements(layout, gates, {path: int(np.sum(gate)) for path, gate in flatten(gates).items()})
        self._packed = [jax.device_put(pack(task, gates, placed)) for task in tasks]
        self._gates, self._placed, self._tasks = jax.device_put((gates, placed, tasks))
        self.resident = jax.tree.map(jnp.copy, self._tasks[0])
        self._at = 0
        self._write = jax.jit(
            lambda resident, packed, *where: unpack(packed, resident, *where), donate_argnums=0
        )
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def swap(self) -> None:
        """Writes the other task's channels into the resident model."""
        self._at = 1 - self._at
        self.resident = self._write(self.resident, self._packed[self._at], self._gates, self._placed)
        jax.block_until_ready(self.resident)

    def copy(self) -> None:
        """Copies all of a task's layers."""
        jax.block_until_ready(self._copy(self._tasks[self._at]))

    def check(self) -> None:
        """Raises unless the resident model is the task's, to the bit."""
        for path, leaf in flatten(self.resident).items():
            np.testing.assert_array_equal(leaf, flatten(self._tasks[self._at])[path], err_msg=path)


def differing(layout: Layout, first: Any, second: Any) -> dict[str, Any]:
    """Returns hard gates that are open where a channel of two models differs."""
    one, other, gates = flatten(first), flatten(second), {}
    for layer in layout.layers:
        gate = np.zeros(layer.channels, bool)
        for leaf in layer.leaves:
            columns = [to_columns(np.asarray(tree[leaf]), layer.gate_shape) for tree in (one, other)]
            gate |= np.any(np.asarray(columns[0] != columns[1]), axis=0)
        gates[layer.path] = gate.reshape(layer.gate_shape)
    return unflatten(gates)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns both ratios and what was found on the way."""
    made = Setting.of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        pool = stored_pool(pathlib.Path(folder) / "pool", made.variables, made.layout, 2, arguments.active)
        merged = [pool.effective(task) for task in pool.tasks]
    images = jax.device_put(made.images)
    placed = {"backbone": jax.device_put(made.variables), "merged": jax.device_put(merged[0])}
    lowered = {name: jax.jit(made.forward).lower(variables, images) for name, variables in placed.items()}
    programs = {name: one.compile() for name, one in lowered.items()}

    def infer(name: str) -> None:
        jax.block_until_ready(programs[name](placed[name], images))

    swap = Swap(made.layout, *(variables["params"] for variables in merged))
    swap.swap()
    swap.check()
    calls = {
        "backbone": lambda: infer("backbone"),
        "merged": lambda: infer("merged"),
        "swap": swap.swap,
        "copy": swap.copy,
    }
    turns = {name: lambda call=call: seconds_of(call) for name, call in calls.items()}
    seconds = interleaved(turns, arguments.repeats)
    swap.check()
    pairs = {"merged_over_backbone": ("merged", "backbone"), "swap_over_copy": ("swap", "copy")}
    return {
        **ratios(seconds, pairs),
        "seconds": medians(seconds),
        "same_hlo": lowered["backbone"].as_text() == lowered["merged"].as_text()
        and programs["backbone"].as_text() == programs["merged"].as_text(),
        "channels_swapped": swap.share,
    }


def main() -> None:
    made = model_parser(__doc__, backbone="resnet18", size=96, batch=16)
    made.add_argument("--active", type=float, default=ACTIVE, help="share of a task's own channels")
    arguments = parse(made, QUICK)
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache has another text
    publish("swap", measure(arguments), arguments)


if __name__ == "__main__":
    main()
