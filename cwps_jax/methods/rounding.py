"""Learning with the rounding: in a task's last epochs its network is the one that few bits will give.

Gradients are taken where the rounded weights are, and move the exact ones (straight-through, Bengio et al.
2013), which are rounded anew in each step.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from cwps_jax.core.channels import Layout, from_columns, to_columns
from cwps_jax.core.coding import straight_through
from cwps_jax.core.compact import pack
from cwps_jax.core.trees import Tree, flatten, unflatten
from cwps_jax.methods.method import Begun, Moment, Stage, unchanged
from cwps_jax.methods.network import Network
from cwps_jax.settings import TrainConfig

START = "start"  # the frozen tree's key for what a stored change is relative to


def learned_rounded(stages: tuple[Stage, ...], training: TrainConfig, network: Network) -> tuple[Stage, ...]:
    """Returns the stages with the rounding seen in the last epochs, for `config.row_bits` below 32.

    Args:
        stages: those of a method whose own tree has the layers in its "params", whole or packed.
        training: the task's config.
        network: the backbone.
    """
    bits, last = training.row_bits, stages[-1]
    if bits == 32:
        return stages
    epochs = min(last.epochs, max(1, round(training.epochs * training.rounded_share)))
    seen = network.remembered(("rounded", bits), lambda: _seen(network.layout, bits))
    penalty = last.penalty and last.penalty._replace(free_epochs=0)
    rounded = dataclasses.replace(
        last,
        name="rounded",
        epochs=epochs,
        begin=_with_start(_continued(last), network.layout),
        penalty=penalty,
        seen=seen,
    )
    if epochs == last.epochs:
        whole = dataclasses.replace(last, begin=_with_start(last.begin, network.layout), seen=seen)
        return (*stages[:-1], whole)
    return (*stages[:-1], dataclasses.replace(last, epochs=last.epochs - epochs), rounded)


def _continued(stage: Stage) -> Callable[[Moment], Begun]:
    """Returns how a stage begins that goes on where the one before ended."""
    return lambda moment: Begun(moment.own, moment.frozen, carried=dict.fromkeys(stage.groups, unchanged))


def _with_start(begin: Callable[[Moment], Begun], layout: Layout) -> Callable[[Moment], Begun]:
    def begun(moment: Moment) -> Begun:
        made = begin(moment)
        start = moment.start["params"]
        if "placed" in made.frozen:
            start = pack(start, made.frozen["gates"], made.frozen["placed"])
        leaves = flatten(start)
        reference = unflatten({path: np.asarray(leaves[path]) for path in layout.layer_paths})
        return dataclasses.replace(made, frozen={**made.frozen, START: reference})

    return begun


def _seen(layout: Layout, bits: int) -> Callable[[Tree, Tree], Tree]:
    def seen(own: Tree, frozen: Tree) -> Tree:
        params, start = flatten(own["params"]), flatten(frozen[START])
        for layer in layout.layers:
            for leaf, shape in zip(layer.leaves, layer.shapes, strict=True):
                if "placed" in frozen:
                    if params[leaf].size:
                        params[leaf] = straight_through(params[leaf], start[leaf], bits)
                    continue
                values, before = (to_columns(each[leaf], layer.gate_shape) for each in (params, start))
                rounded = straight_through(values, before, bits)
                params[leaf] = from_columns(rounded, layer.gate_shape, shape)
        return {**own, "params": unflatten(params)}

    return seen
