"""One device, eight devices by jit and eight by pmap train the same task to the same numbers."""

import collections
import itertools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages import STEPS, run_stages

from cwps_jax import CwpsError
from cwps_jax.parallel import Parallel
from cwps_jax.train.evaluation import Predictor
from cwps_jax.train.state import TrainState

DOORS = {"one device": ("jit", 1), "eight by jit": ("jit", 8), "eight by pmap": ("pmap", 8)}


@pytest.fixture(scope="module")
def runs(tiny_model, tiny_layout, tiny_variables):
    """{door: (what the trainer returned, the `Recording` of it)} of one task in all stages."""
    return {
        door: run_stages(
            tiny_model, tiny_layout, tiny_variables, Parallel(mode, tuple(jax.devices()[:count]))
        )
        for door, (mode, count) in DOORS.items()
    }


def sources(trained):
    return trained.finished.moment.found["sources"]


@pytest.mark.parametrize("door", ["eight by jit", "eight by pmap"])
def test_eight_devices_train_as_one_does(runs, door):
    (trained, recording), (one, of_one) = runs[door], runs["one device"]
    # States between the stages (child, masks, statistics, moments), every step's loss, norm statistics.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    jax.tree.map(close, recording.fetched, of_one.fetched)
    jax.tree.map(close, (trained.params, trained.other), (one.params, one.other))
    chex.assert_trees_all_equal(trained.gates, one.gates)
    chex.assert_trees_all_equal(sources(trained), sources(one))


def test_the_compared_run_has_all_stages_and_says_something(runs, tiny_variables):
    trained, recording = runs["one device"]
    states = [tree for tree in recording.fetched if isinstance(tree, TrainState)]
    assert [int(state.step) for state in states] == [STEPS, 2 * STEPS, 3 * STEPS]
    rows = [row for tree in recording.fetched if isinstance(tree, list) for row in tree if "loss" in row]
    assert len(rows) == 3 * STEPS
    assert len({float(row["loss"]) for row in rows}) == 3 * STEPS
    open_channels = np.concatenate([np.ravel(gate) for gate in jax.tree.leaves(trained.gates)])
    assert 0 < open_channels.mean() < 1
    assert any(np.any(source.model) for source in sources(trained).values())
    children = [tiny_variables["params"], *(state.own["params"] for state in states)]
    for before, after in itertools.pairwise(children):
        assert np.any(before["head"]["kernel"] != after["head"]["kernel"])
    for before, after in itertools.pairwise(states):
        assert np.any(
            before.other["batch_stats"]["norm"]["mean"] != after.other["batch_stats"]["norm"]["mean"]
        )
    kernels = [child["conv2"]["kernel"].reshape(-1, 8) for child in children]
    assert all(np.any(before != after) for before, after in itertools.pairwise(kernels))


@pytest.mark.parametrize("door", DOORS)
def test_predictions_come_in_order_for_every_item(door, tiny_model, tiny_variables):
    mode, count = DOORS[door]
    images = np.random.default_rng(0).standard_normal((21, 8, 8, 1)).astype(np.float32)
    predictor = Predictor(tiny_model, Parallel(mode, tuple(jax.devices()[:count])))
    logits = predictor(tiny_variables, {"image": images}, 6)  # neither 8 nor 6 divides 21
    wanted = jax.jit(tiny_model.apply)(tiny_variables, images)
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_a_donated_copy_does_not_take_its_source_along(door, kind):
    mode, count = DOORS[door]
    parallel = Parallel(mode, tuple(jax.devices()[:count]))
    wanted = np.arange(4096, dtype=np.float32)
    source = {"a": wanted.copy() if kind == "numpy" else jnp.asarray(wanted), "b": np.float32(3)}
    add_one = parallel.compile(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate=(0,))
    placed = parallel.replicate(source)
    moved = parallel.fetch(add_one(add_one(placed)))
    assert placed["a"].is_deleted()
    np.testing.assert_array_equal(moved["a"], wanted + 2)
    np.testing.assert_array_equal(source["a"], wanted)


@pytest.mark.parametrize("door", DOORS)
def test_a_copy_does_not_follow_its_source(door):
    mode, count = DOORS[door]
    memory = np.zeros(4096 + 16, np.float32)
    start = (-memory.ctypes.data) % 64 // 4  # aligned as devices on the host could use it in place
    source = memory[start : start + 4096]
    parallel = Parallel(mode, tuple(jax.devices()[:count]))
    placed = parallel.replicate(source)
    source += 1
    assert not np.any(parallel.fetch(placed))


COLLECTIVE = re.compile(r"= (?P<result>.*?) (?P<name>all-\w+|reduce-scatter|collective-\w+)(-start)?\(")
SHAPE = re.compile(r"[a-z]+\d+\[(?P<shape>[\d,]*)\]")


def collectives(program):
    """Returns {name of a collective: how many numbers a device gets of it} of a compiled program."""
    found = collections.Counter()
    for one in COLLECTIVE.finditer(program.as_text()):
        shapes = [shape.split(",") if shape else [] for shape in SHAPE.findall(one["result"])]
        found[one["name"]] += sum(math.prod(map(int, shape)) for shape in shapes)
    return found


def test_a_step_sums_gradients_and_gathers_nothing(runs, tiny_variables):
    """The parent is on every device already: what a step sends grows with what is trained alone."""
    _, recording = runs["eight by jit"]
    steps = [
        program for name, one in recording.compiled if name == "step" for program in one._programs.values()
    ]
    assert len(steps) == 3  # warm-up, soft and hard
    parameters = sum(leaf.size for leaf in jax.tree.leaves(tiny_variables["params"]))
    for program, *_ in steps:
        # Gradients of child and scores both come from that of the effective parameters, which is summed; of
        # each normed channel three sums; loss and metric.
        assert collectives(program) == {"all-reduce": parameters + 3 * 6 + 2}


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    for mode in ("jit", "pmap"):
        with pytest.raises(CwpsError, match="batch_size = 12: must be a multiple of the 8 devices"):
            Parallel(mode).split({"image": np.zeros((12, 2))})


def test_a_program_is_compiled_once_for_each_set_of_shapes_and_knows_its_cost():
    double = Parallel(devices=tuple(jax.devices()[:1])).compile(lambda x, y: x @ y)
    x = jnp.ones((4, 8))
    for _ in range(3):
        double(x, x.T)
    assert double.compilations == 1
    assert double.flops == pytest.approx(2 * 4 * 8 * 4, rel=0.01)
    assert double.peak_bytes >= 4 * (32 + 32 + 16)
    double(x.T, x)
    assert double.compilations == 2


def test_an_empty_array_is_no_obstacle_to_pmap():
    """Shardy of jaxlib 0.11.2 crashes on one, such as the rows of a layer without open channels."""
    before = jax.config.values["jax_use_shardy_partitioner"]
    parallel = Parallel("pmap", tuple(jax.devices()[:2]))
    program = parallel.compile(lambda rows, batch: (rows * 2, jax.lax.pmean(batch.sum(), "data")))
    rows, total = program(parallel.replicate(np.ones((3, 0))), parallel.split(np.ones((4, 5))))
    assert parallel.fetch(rows).shape == (3, 0) and parallel.fetch(total) == 10
    assert jax.config.values["jax_use_shardy_partitioner"] == before
