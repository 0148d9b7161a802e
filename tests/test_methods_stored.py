"""What each method stores of a task: it comes back to the bit, and what is counted is what is there."""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import chex
import numpy as np
import pytest
from methods_shared import (
    CONFIG,
    LEARNED,
    PROMPTING,
    TASKS,
    Learned,
    files_hash,
    learned,
    learned_by,
    logits_hash,
    setting_of,
    task,
)

import cwps_jax as cwps
from cwps_jax.core.trees import flatten


def arrays_on_disk(pool: cwps.Pool, name: str) -> dict[str, dict]:
    """Returns what describes each stored array of a task: its dtype and shape, as its files have it."""
    found = {}
    for file in (pool.folder / "tasks" / pool.version(name).name).glob("*/leaves.json"):
        if file.parent.name == "sketch":
            continue  # it can be made anew from the rows, and is no part of the task
        leaves = json.loads(file.read_text())
        found.update({f"{file.parent.name}/{path}": leaf for path, leaf in leaves.items()})
    return found


def bits_on_disk(pool: cwps.Pool, name: str) -> int:
    arrays = arrays_on_disk(pool, name).values()
    return sum(8 * np.dtype(leaf["dtype"]).itemsize * math.prod(leaf["shape"]) for leaf in arrays)


def mask_bits(mask: np.ndarray) -> int:
    """Bits of a packed mask: whole bytes, and one byte where all of it is the same."""
    mask = np.ravel(mask)
    return 8 if mask.all() or not mask.any() else 8 * math.ceil(mask.size / 8)


def number_bits(values: np.ndarray) -> int:
    """Bits of whole numbers in the smallest type that holds them."""
    return 8 * values.size * np.min_scalar_type(int(values.max(initial=0))).itemsize


class Analytic:
    """What a task should store, (numbers that count, other bits), from the layout and the learned network."""

    def __init__(self, name: str) -> None:
        self.name, self.method, self.where = name, LEARNED[name], setting_of(name)
        self.layout, self.pool = self.where.layout, learned_by(name).pool
        self.leaves = flatten(learned_by(name).tasks[name].variables["params"])
        self.start = flatten(self.where.variables["params"])
        self.kernels = [layer.path for layer in self.layout.layers]
        self.fan_in = {one.path: math.prod(one.shapes[0]) // one.channels for one in self.layout.layers}

    @property
    def channel_gates(self) -> dict[str, np.ndarray]:
        return {path: np.ravel(gate) for path, gate in flatten(self.pool.gates(self.name)).items()}

    def channels(self) -> tuple[int, int]:
        gates, ownership = self.channel_gates, self.pool.ownership(self.name)
        rows = sum(gates[one.path].sum() * one.channel_parameters for one in self.layout.layers)
        bits = 0
        for path, (owner, row) in ownership.items():
            closed = ~gates[path]
            bits += mask_bits(gates[path]) + number_bits(owner[closed]) + number_bits(row[closed])
        return int(rows) + self.layout.private_parameters, bits

    layers = taps = finetune = channels

    def weights(self) -> tuple[int, int]:
        own = self.pool._trees.own(self.pool.version(self.name))
        masks = {path: own[f"masks/{path}"] for path in self.layout.layer_paths}
        opened = {path: np.unpackbits(mask).sum() for path, mask in masks.items() if mask.ndim}
        assert len(opened) >= 2
        for path in masks.keys() - opened.keys():
            opened[path] = self.leaves[path].size * int(masks[path])
        shapes = self.layout.backbone_shapes
        bits = sum(
            8 * math.ceil(math.prod(shapes[path]) / 8) if mask.ndim else 8 for path, mask in masks.items()
        )
        for kernel in self.kernels:
            bits += number_bits(own[f"owner/{kernel}"]) + number_bits(own[f"row/{kernel}"])
        return int(sum(opened.values())) + self.layout.private_parameters, bits

    def probe(self) -> tuple[int, int]:
        return 0, 0

    def norm_only(self) -> tuple[int, int]:
        return 2 * 6, 0  # of one norm of six channels

    def bitfit(self) -> tuple[int, int]:
        return 8 + 6, 0

    def ssf(self) -> tuple[int, int]:
        return 6 + 2 * 6 + 2 * 8, 0  # a convolution without a bias, a norm, a convolution with one

    def piggyback(self) -> tuple[int, int]:
        kept = {path: self.leaves[path] == self.start[path] for path in self.kernels}
        assert all(np.all((self.leaves[path] == 0) | kept[path]) for path in kept)
        return 0, sum(map(mask_bits, kept.values()))

    def ternary(self) -> tuple[int, int]:
        signs = {path: np.sign(self.leaves[path] / self.start[path]) for path in self.kernels}
        return 0, sum(mask_bits(sign > 0) + mask_bits(sign < 0) for sign in signs.values())

    def packnet(self) -> tuple[int, int]:
        free = {path: round(self.method.free_share * self.start[path].size) for path in self.kernels}
        owned = {path: left - round(self.method.prune_share * left) for path, left in free.items()}
        number = number_bits(np.array([sum(free.values())]))  # of what was free before
        return sum(owned.values()), number + sum(8 * math.ceil(left / 8) for left in free.values())

    def lora(self) -> tuple[int, int]:
        rank = self.method.rank
        return sum(rank * (self.fan_in[one.path] + one.channels) for one in self.layout.layers), 0

    def adapter(self) -> tuple[int, int]:
        return 1 * 6 + 6 * 8 + 2 * 6, 0  # in x out of each convolution, and the norm

    def atlas(self) -> tuple[int, int]:
        return len(self.method.tasks) * len(self.layout.backbone_shapes), 0

    def ba2(self) -> tuple[int, int]:
        opened = {path: np.any(self.leaves[path] != 0, axis=(0, 1, 3)) for path in self.kernels}
        assert opened.pop("conv1/kernel").all()  # the only input channel of grey images has no switch
        return 2 * 6, sum(map(mask_bits, opened.values()))

    def l2p(self) -> tuple[int, int]:
        return self.method.prompts * (self.method.length + 1) * 64, 0

    def dualprompt(self) -> tuple[int, int]:
        lengths = 2 * self.method.general_length + 1 * self.method.expert_length  # three blocks
        return lengths * 2 * 64, 0

    @property
    def numbers_beside(self) -> int:
        """Head, and norm statistics where a task has its own: stored, not counted in the ratio."""
        statistics = 0 if self.name in ("probe", "piggyback", "ternary", "packnet") else 2 * 6
        return (64 * 3 + 3) if self.where.size == 12 else (8 * 3 + 3) + statistics


@pytest.mark.parametrize("name", TASKS)
def test_a_stored_task_comes_back_to_the_bit(name):
    pool = cwps.Pool.open(learned_by(name).pool.folder)
    chex.assert_trees_all_equal(pool.effective(name), dict(learned_by(name).tasks[name].variables))
    assert type(pool.method(name)) is type(LEARNED[name]) and pool.method(name) == LEARNED[name]


@pytest.mark.parametrize("name", TASKS)
def test_what_is_counted_is_what_is_stored_and_what_the_method_should_store(name):
    pool, analytic = cwps.Pool.open(learned_by(name).pool.folder), Analytic(name)
    numbers, bits = getattr(analytic, name)()
    count = pool.count(name)
    assert count.bits == bits_on_disk(pool, name) == 8 * pool.version(name).bytes
    assert count.bits == 32 * (numbers + analytic.numbers_beside) + bits
    backbone = sum(leaf.size for path, leaf in analytic.start.items() if not path.startswith("head"))
    assert count.backbone == backbone and count.head == sum(
        leaf.size for path, leaf in analytic.start.items() if path.startswith("head")
    )
    assert count.ratio == learned_by(name).tasks[name].params_ratio == numbers / backbone


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_learned_something_of_what_its_method_trains(name):
    """Else the counts above could be those of a start."""
    variables, where = learned_by(name).tasks[name].variables, setting_of(name)
    backbone = {path: leaf for path, leaf in flatten(variables["params"]).items() if "head" not in path}
    start = flatten(where.variables["params"])
    moved = {path for path, leaf in backbone.items() if np.any(leaf != start[path])}
    expected = {"norm_only": {"norm/bias", "norm/scale"}, "bitfit": {"norm/bias", "conv2/bias"}}
    expected["taps"] = {"norm/bias", "norm/scale", "conv1/kernel"}  # its other gate is closed
    kernels = {layer.path for layer in where.layout.layers}
    if name in ("probe", "l2p", "dualprompt"):
        assert not moved
    else:
        assert moved >= expected.get(name, {"conv2/kernel"})
    if name in ("piggyback", "ternary", "packnet", "lora"):
        assert moved == kernels
    if name in expected:
        assert moved == expected[name]


def test_a_mask_of_piggyback_costs_one_bit_a_weight_and_two_if_it_is_ternary():
    weights = sum(math.prod(layer.shapes[0]) for layer in setting_of("piggyback").layout.layers)
    head = 32 * (8 * 3 + 3)
    pool = learned(False).pool
    assert weights <= pool.count("piggyback").bits - head <= weights + 2 * 7
    assert 2 * weights <= pool.count("ternary").bits - head <= 2 * (weights + 2 * 7)
    assert pool.count("piggyback").ratio == pool.count("ternary").ratio == 0


@pytest.mark.parametrize("prompting", [False, True])
def test_the_pretrained_tree_is_untouched_by_every_task(prompting):
    found: Learned = learned(prompting)
    assert files_hash(found.pool.folder / "pretrained") == found.pretrained_before
    where = setting_of("l2p" if prompting else "cwps")
    chex.assert_trees_all_equal(found.pool.effective("pretrained"), where.variables)


def test_a_probe_stores_its_head_alone():
    pool = learned(False).pool
    assert set(arrays_on_disk(pool, "probe")) == {"own/params/head/bias", "own/params/head/kernel"}
    assert pool.count("probe").ratio == 0
    found, start = pool.effective("probe"), pool.effective("pretrained")
    chex.assert_trees_all_equal(found["batch_stats"], start["batch_stats"])


@pytest.mark.parametrize("name", [name for name in TASKS if name not in (*PROMPTING, "ba2")])
def test_what_is_evaluated_is_what_the_last_rule_computed(name):
    """What is restored is computed anew from what is stored, and must be what was trained.

    BA2 is another network at the end: its budget closes the switches that are too many.
    """
    where = setting_of(name)
    config = dataclasses.replace(CONFIG, method=LEARNED[name])
    pool = learned(False).pool
    start = pool.effective("pretrained")
    start["params"] = {**start["params"], **where.trainer.new_head(0)["params"]}
    pooled = pool.pooled(method=LEARNED[name].name)
    trained = where.trainer.train(start, task(turned=True).train, config, pooled)
    stored = trained.method.store(trained.finished)
    restored = pool.restored(trained.method, stored)
    chex.assert_trees_all_close(restored["params"], dict(trained.params), rtol=1e-6, atol=1e-7)
    if name not in ("channels", "layers", "weights", "packnet"):  # which see the pool's later tasks now
        chex.assert_trees_all_equal(restored, dict(learned(False).tasks[name].variables))


def test_every_tasks_logits_are_the_same_to_the_bit_in_a_fresh_process():
    folders = [str(learned(prompting).pool.folder) for prompting in (False, True)]
    command = f"import methods_shared; methods_shared.print_logits_hashes(*{folders})"
    answer = subprocess.run(
        [sys.executable, "-c", command],
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        env=_environment(),
    )
    found, expected = json.loads(answer.stdout.splitlines()[-1]), {}
    for name in TASKS:
        where, variables = setting_of(name), learned_by(name).tasks[name].variables
        expected[name] = logits_hash(LEARNED[name].wrap(where.model), variables, where.size)
    assert found == expected
    assert len(set(expected.values())) == len(expected)


def _environment() -> dict[str, str]:
    here = pathlib.Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}


@pytest.mark.parametrize("prompting", [False, True])
def test_a_pool_of_every_method_is_merged_and_each_task_copied_alone(prompting, tmp_path):
    pool, where = learned(prompting).pool, setting_of("l2p" if prompting else "channels")
    merged = where.new_pool(tmp_path / "merged")
    assert merged.merge(pool) == tuple(one.name for one in pool.index.versions)
    for name in pool.tasks:
        alone = where.new_pool(tmp_path / name)
        pool.copy(name, alone, "copied")
        assert len(alone) == 1 + len(pool.version(name).uses)
        for one, called in ((merged, name), (alone, "copied")):
            chex.assert_trees_all_equal(cwps.Pool.open(one.folder).effective(called), pool.effective(name))
    assert merged.verify() == []


def test_single_weights_over_borrowed_rows_are_the_same_wherever_these_go(tmp_path):
    """A version by weight has no rows of its own, and names the owners of its parent's all the same."""
    pool, where = learned(False).pool, setting_of("channels")
    assert pool._trees.needs(pool.version("weights"))
    wanted = {name: pool.effective(name) for name in pool.tasks}
    other = where.new_pool(tmp_path / "other")
    pool.copy("finetune", other)  # whose number is another owner's here
    for name in ("layers", "weights"):
        pool.copy(name, other)
    assert other._trees.needs(other.version("weights")) <= {other.version("layers").id}
    rehomed = cwps.Pool.open(shutil.copytree(pool.folder, tmp_path / "rehomed"))
    rehomed.remove("atlas")
    for gone in ("channels", "layers"):
        rehomed.remove(gone, rehome=True)
    for one in (other, rehomed):
        assert one.verify() == []
        for name in one.tasks:
            chex.assert_trees_all_equal(cwps.Pool.open(one.folder).effective(name), wanted[name])
