"""Training with rounded weights: in a task's last epochs its network is the one that will be stored.

Gradients are taken at the rounded weights, and move the exact ones (straight-through, Bengio et al. 2013),
which are rounded again in each step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from cwps_jax.core.budgets import FLOAT32_BYTES, Prices, beside_rows, check_budget
from cwps_jax.core.channels import Layout, from_columns, to_columns
from cwps_jax.core.coding import straight_through
from cwps_jax.core.compact import pack
from cwps_jax.core.entropy import BY_BUDGET, coded_alike, fitted, seen_through
from cwps_jax.core.taps import has_taps
from cwps_jax.core.trees import Tree, flatten, unflatten
from cwps_jax.methods.method import Begun, Moment, Stage, unchanged
from cwps_jax.methods.network import Network
from cwps_jax.settings import TrainConfig

PARTS = 4  # of learning with a step size that the byte budget sets: changes go on growing
START, STEP = "start", "step"  # keys of the frozen tree: what a change is relative to, and of what multiples


def learned_rounded(stages: tuple[Stage, ...], training: TrainConfig, network: Network) -> tuple[Stage, ...]:
    """Returns the stages with rounded weights in the last epochs, for `config.row_bits` below 32.

    Args:
        stages: the stages of a method whose own tree has the layers in its "params", whole or packed.
        training: the task's config.
        network: the backbone.
    """
    bits, last = training.row_bits, stages[-1]
    if bits == 32:
        return stages
    epochs = min(last.epochs, max(1, round(training.epochs * training.rounded_share)))
    seen = network.remembered(("rounded", bits), lambda: _seen(network.layout, bits))
    exact = (dataclasses.replace(last, epochs=last.epochs - epochs),) if epochs < last.epochs else ()
    going_on = dataclasses.replace(
        last,
        name="rounded",
        begin=_continued(last),
        penalty=last.penalty and last.penalty._replace(free_epochs=0),
    )
    parts = [going_on if exact or part else last for part in range(_parts(epochs, bits))]
    rounded = (
        dataclasses.replace(
            stage,
            epochs=epochs * (part + 1) // len(parts) - epochs * part // len(parts),
            begin=_with_start(stage.begin, network, training),
            seen=seen,
        )
        for part, stage in enumerate(parts)
    )
    return (*stages[:-1], *exact, *rounded)


def _parts(epochs: int, bits: int) -> int:
    """Returns the number of parts of these epochs; each begins with a new step size that fits."""
    return min(epochs, PARTS) if bits == BY_BUDGET else 1


def check_rounded(network: Network, training: TrainConfig) -> None:
    """Raises CwpsError if a byte budget leaves nothing for channels."""
    if training.row_bits == BY_BUDGET:
        # With all statistics: they are stored if they cannot be folded well enough, see `store.coded`.
        none = (0,) * len(network.layout.layers)
        beside = beside_rows(network.layout, BY_BUDGET, network.statistics, none)
        whole = FLOAT32_BYTES * network.layout.backbone_parameters
        check_budget(Prices("bytes", beside, none, whole), training.byte_budget)


def _continued(stage: Stage) -> Callable[[Moment], Begun]:
    """Returns the `begin` of a stage that continues where the one before ended."""
    return lambda moment: Begun(moment.own, moment.frozen, carried=dict.fromkeys(stage.groups, unchanged))


def _with_start(
    begin: Callable[[Moment], Begun], network: Network, training: TrainConfig
) -> Callable[[Moment], Begun]:
    layout = network.layout

    def begun(moment: Moment) -> Begun:
        made = begin(moment)
        start = moment.start["params"]
        if "placed" in made.frozen:
            start = pack(start, made.frozen["gates"], made.frozen["placed"])
        leaves = flatten(start)
        reference = unflatten({path: np.asarray(leaves[path]) for path in layout.layer_paths})
        seen: dict[str, Any] = {START: reference}
        if training.row_bits == BY_BUDGET:
            seen[STEP] = _fitting_step(network, training, made, reference)
        return dataclasses.replace(made, frozen={**made.frozen, **seen})

    return begun


def _fitting_step(network: Network, training: TrainConfig, begun: Begun, start: Tree) -> np.float32:
    """Returns the step size with which the changes so far fit the byte budget."""
    layout, params, before = network.layout, flatten(begun.own["params"]), flatten(start)
    changes = {path: np.asarray(params[path]) - before[path] for path in layout.layer_paths}
    closed = [0] * len(layout.layers)
    if "placed" in begun.frozen:  # columns of padding are not stored
        gates = flatten(begun.frozen["gates"])
        opened = [int(np.sum(gates[layer.path])) for layer in layout.layers]
        closed = [layer.channels - count for layer, count in zip(layout.layers, opened, strict=True)]
        columns = {
            leaf: count for layer, count in zip(layout.layers, opened, strict=True) for leaf in layer.leaves
        }
        changes = {path: change[:, : columns[path]] for path, change in changes.items()}
    beside = beside_rows(layout, training.row_bits, network.unfolded_statistics, tuple(closed))
    allowance = training.byte_budget * FLOAT32_BYTES * layout.backbone_parameters - beside
    alike = {
        path: coded_alike(changes[path], 0, has_taps(layer, path))
        for layer in layout.layers
        for path in layer.leaves
    }
    return fitted(alike, allowance)[0]


def _seen(layout: Layout, bits: int) -> Callable[[Tree, Tree], Tree]:
    def seen(own: Tree, frozen: Tree) -> Tree:
        params, start = flatten(own["params"]), flatten(frozen[START])
        for layer in layout.layers:
            for leaf, shape in zip(layer.leaves, layer.shapes, strict=True):
                if bits == BY_BUDGET:
                    of_taps = has_taps(layer, leaf)
                    params[leaf] = seen_through(params[leaf], start[leaf], frozen[STEP], of_taps)
                    continue
                if "placed" in frozen:
                    if params[leaf].size:
                        params[leaf] = straight_through(params[leaf], start[leaf], bits)
                    continue
                values, before = (to_columns(each[leaf], layer.gate_shape) for each in (params, start))
                rounded = straight_through(values, before, bits)
                params[leaf] = from_columns(rounded, layer.gate_shape, shape)
        return {**own, "params": unflatten(params)}

    return seen
