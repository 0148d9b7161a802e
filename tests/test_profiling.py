"""Profiling: the same numbers come out, and what is told of the steps is so."""

import collections
import dataclasses
import gzip
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwps_jax import TrainConfig, Trainer, profiling
from cwps_jax.parallel import Parallel
from cwps_jax.profiling import Profiler, peak_flops
from cwps_jax.store import Pool

EXAMPLE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
CONFIG = TrainConfig(epochs=4, batch_size=16, learning_rate=0.05)


@pytest.fixture(scope="module")
def train(tiny_model, tiny_layout, tiny_variables, tmp_path_factory):
    """Returns a function (profiler, parallel, changes to the config) -> what was trained."""
    pooled = Pool.create(tmp_path_factory.mktemp("w") / "pool", tiny_variables, tiny_layout).pooled()

    def run(profiler, parallel=None, batches=4, images=1.0, **changes):
        rng = np.random.default_rng(0)
        data = {
            "image": images * rng.normal(size=(16 * batches, 8, 8, 1)).astype(np.float32),
            "label": np.arange(16 * batches, dtype=np.int32) % 3,
        }
        parallel = parallel or Parallel(devices=tuple(jax.devices()[:1]))
        trainer = Trainer(tiny_model, tiny_layout, EXAMPLE, parallel=parallel, profiler=profiler)
        config = dataclasses.replace(CONFIG, parallel=parallel.mode, **changes)
        return trainer.train(tiny_variables, data, config, pooled)

    return run


def events_of(folder) -> collections.Counter:
    """Returns how often each name stands in the one Perfetto trace under a folder."""
    (path,) = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    assert len(list(path.parent.glob("*.xplane.pb"))) == 1  # what TensorBoard reads
    return collections.Counter(
        event.get("name") for event in json.loads(gzip.open(path).read())["traceEvents"]
    )


@pytest.fixture(scope="module")
def profiled(train, tmp_path_factory):
    profiler = Profiler(tmp_path_factory.mktemp("w") / "profile")
    return profiler, train(profiler, batches=8)


def test_each_stage_leaves_a_trace_of_three_steps(profiled):
    profiler, _ = profiled
    assert [(cost.method, cost.stage) for cost in profiler.costs] == [
        ("cwps", "warm-up"),
        ("cwps", "soft"),
        ("cwps", "hard"),
    ]
    for cost in profiler.costs:
        assert events_of(profiler.folder / cost.trace)[cost.stage] == 3


def test_what_is_told_of_a_step_is_written_down_and_consistent(profiled):
    profiler, trained = profiled
    told = json.loads((profiler.folder / "steps.json").read_text())
    assert told["stages"] == [dataclasses.asdict(cost) for cost in profiler.costs]
    assert (told["device"], told["peak_flops_per_second"]) == (jax.devices()[0].device_kind, None)
    for cost in profiler.costs:
        # 2 steps, 3 in the trace, and what is left of 8 an epoch, at most 20.
        assert (cost.seconds_of, cost.steps) == ("timed", {"hard": 11}.get(cost.stage, 3))
        assert 0 < cost.seconds < 10 and cost.peak_bytes > 0 and cost.mfu is None
        assert cost.flops_per_second == pytest.approx(cost.flops / cost.seconds)
        assert cost.bytes_per_second == pytest.approx(cost.bytes_accessed / cost.seconds)
    assert max(cost.flops for cost in profiler.costs) == trained.so_far.flops_per_step


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_a_device_is_charged_its_own_share(train, profiled, tmp_path, mode):
    profiler = Profiler(tmp_path)
    train(profiler, Parallel(mode, tuple(jax.devices()[:4])), method="finetune", epochs=1)
    (four,), one = profiler.costs, profiled[0].costs[0]  # the warm-up's step is fine-tuning's
    # The update is every device's own, and of this tiny model a tenth of the work.
    assert four.flops == pytest.approx(one.flops / 4, rel=0.2)


@pytest.mark.parametrize(("mode", "batches"), [("jit", 2), ("jit", 8), ("pmap", 2)])
def test_profiling_changes_nothing(train, tmp_path, mode, batches):
    """Bit by bit, whether a stage is long enough to be timed or not."""
    parallel, results = Parallel(mode, tuple(jax.devices()[:2])), []
    for profiler in (None, Profiler(tmp_path)):
        trained = train(profiler, parallel, batches)
        results.append((trained.params, trained.other, trained.gates, np.float32(trained.so_far.lambda_)))
    chex.assert_trees_all_equal(*results)


def test_a_stage_that_is_too_short_is_traced_as_far_as_it_goes(train, tmp_path):
    profiler = Profiler(tmp_path)
    train(profiler, batches=1, epochs=4)
    assert [(cost.stage, cost.seconds_of, cost.steps) for cost in profiler.costs] == [
        ("warm-up", "traced", 1),
        ("soft", "traced", 1),
        ("hard", "traced", 2),
    ]
    for cost in profiler.costs:
        assert events_of(profiler.folder / cost.trace)[cost.stage] == cost.steps and cost.seconds > 0


def test_a_stage_is_looked_at_once(train, tmp_path):
    profiler = Profiler(tmp_path)
    for _ in range(2):
        train(profiler, method="finetune", epochs=1)
    assert len(profiler.costs) == 1
    events_of(tmp_path / "finetune_finetune")  # one trace, not two


def test_utilisation_is_of_the_devices_own_peak(train, tmp_path, monkeypatch):
    monkeypatch.setitem(profiling.PEAKS, jax.devices()[0].device_kind, 1e12)
    short = {"method": "probe", "epochs": 1}
    profiler, single, again = (
        Profiler(tmp_path / "a", dtype="bfloat16"),
        Profiler(tmp_path / "b"),
        Profiler(tmp_path / "c", dtype="bfloat16", recomputes=True),
    )
    for one in (profiler, single, again):
        train(one, **short)
    (cost,) = profiler.costs
    assert profiler.no_peak == "" and cost.mfu == pytest.approx(cost.flops / (cost.seconds * 1e12))
    assert single.costs[0].mfu is None and single.no_peak == "peak unknown"
    assert again.costs[0].mfu is None and again.no_peak == "recomputes"


def test_peaks_are_dense_and_of_one_jax_device():
    assert peak_flops("NVIDIA H200", "bfloat16") == 1979e12 / 2
    assert peak_flops("TPU v3", "bfloat16") == 123e12 / 2
    assert peak_flops("NVIDIA H200", "float32") is None
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16") is None
    assert all(1e13 < peak < 1e15 for peak in profiling.PEAKS.values())


def test_an_error_in_the_middle_of_a_trace_ends_it(train, tmp_path):
    profiler = Profiler(tmp_path / "a")
    with pytest.raises(FloatingPointError) as caught:  # it holds all that was alive
        train(profiler, images=np.nan, method="finetune")  # after four steps of sixteen
    assert profiler.costs == [] and "the loss is nan" in str(caught.value)
    train(profiler, method="finetune")  # a trace that is still open would refuse this one
    assert len(profiler.costs) == 1
