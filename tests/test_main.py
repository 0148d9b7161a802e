"""The shipped demo config, shrunk, through the real command line; and what it refuses."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import chex
import compiling
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwps_jax import models
from cwps_jax.models.pretrained import save_backbone
from cwps_jax.store import Pool

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ("--config.tasks=('negative','loops')", "--config.epochs=3", "--config.source_epochs=1")


def main(
    workdir: pathlib.Path, *flags: str, config: str = "configs/digits.py"
) -> subprocess.CompletedProcess:
    # One device, as on a newcomer's machine.
    environment = compiling.environment(devices=2 if "--config.parallel=pmap" in flags else 1)
    command = [sys.executable, "-m", "cwps_jax.main", "--config", config, f"--workdir={workdir}"]
    cache = f"--config.compilation_cache={os.environ['CWPS_TEST_CACHE']}"
    data_cache = f"--config.cache_dir={workdir.parent / 'cache'}"
    return subprocess.run(
        [*command, cache, data_cache, *flags], capture_output=True, text=True, cwd=ROOT, env=environment
    )


def read_results(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "results.json").read_text())


def own_rows(results: dict) -> list[dict]:
    """Returns the rows of the run's own method, a task each."""
    return [row for row in results["rows"] if row["method"] == results["method"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[pathlib.Path, subprocess.CompletedProcess]:
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    done = main(workdir, *SMALL)
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_a_run_leaves_everything_a_user_expects(finished):
    workdir, done = finished
    for name in ("config.json", "metrics.jsonl", "results.json", "pool/index.json"):
        assert (workdir / name).is_file()
    assert list((workdir / "tensorboard").iterdir())
    assert {"channels_negative.png", "relation.png", "accuracy_bytes.png"} <= {
        path.name for path in (workdir / "report").iterdir()
    }
    page = (workdir / "report.html").read_text()
    assert page.count("<img") == 4 and "cwps on resnet8, 2 tasks" in page
    assert done.stdout.endswith(f"Report: {workdir / 'report.html'}\n")
    for shown in ("negative", "finetune", "kept", "bytes", "x the backbone's", "relation.png", "left"):
        assert shown in done.stdout
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr


def test_results_keep_their_contract(finished):
    """docs/results.md: names and types that others may rely on."""
    results = read_results(finished[0])
    number, whole, text, none = (int, float), int, str, type(None)
    expected = {
        "format": whole, "method": text, "backbone": text, "backbone_parameters": whole,
        "pretrained": dict, "versions": dict, "rows": list, "totals": list, "forgetting": list,
        "class_names": dict, "not_measured": list, "rounds": list, "curves": list,
    }  # fmt: skip
    row = {
        "task": text, "method": text, "draw": whole, "seed": whole, "stored": bool, "version": (int, none),
        "accuracy": float, "validation_accuracy": float, "params_ratio": float, "parameters": whole,
        "head_parameters": whole, "bits": whole, "bytes": whole, "byte_ratio": float, "row_bits": whole,
        "trained": whole, "metric": text,
        "peak_memory_bytes": whole, "flops_per_step": number, "seconds": float, "epochs": whole,
        "lambda": (float, none), "budget": (int, float, none), "relation": (dict, none),
    }  # fmt: skip
    total = {"method": text, "draw": whole, "params_ratio": float, "bytes": whole}
    forgetting = {
        "task": text, "method": text, "draw": whole, "accuracy_when_learned": float,
        "accuracy_at_end": float, "logits_sha256_when_learned": text, "logits_sha256_at_end": text,
        "same_program": bool,
    }  # fmt: skip
    for contract, objects in (
        (expected, [results]),
        (row, results["rows"]),
        (total, results["totals"]),
        (forgetting, results["forgetting"]),
    ):
        for one in objects:
            assert set(one) == set(contract)
            for key, kind in contract.items():
                assert isinstance(one[key], kind), key
    assert results["format"] == 2
    documented = (ROOT / "docs" / "results.md").read_text()
    assert all(f"`{key}`" in documented for key in (*expected, *row, *total, *forgetting))
    pairs = [(one["task"], one["method"]) for one in results["rows"]]
    assert pairs == list(itertools.product(("negative", "loops"), ("cwps", "finetune", "probe")))
    assert all(one["stored"] == (one["method"] == "cwps") == bool(one["relation"]) for one in results["rows"])


def test_results_are_consistent_with_the_pool(finished):
    results, pool = read_results(finished[0]), Pool.open(finished[0] / "pool")
    backbone, rows = results["backbone_parameters"], own_rows(results)
    total = next(one for one in results["totals"] if one["method"] == "cwps")
    kept = sum(row["parameters"] for row in rows)
    assert total["params_ratio"] == pytest.approx(1 + kept / backbone)
    assert total["bytes"] == sum(version.bytes for version in pool.index.versions)
    for row in rows:
        count = pool.count(row["task"])
        assert row["params_ratio"] <= row["budget"] == 0.4
        assert sum(row["relation"].values()) == pytest.approx(1)
        assert row["relation"][row["task"]] == pytest.approx(count.active / (backbone - count.private))
        assert (count.ratio, count.head) == (row["params_ratio"], row["head_parameters"])
        # The soft stage moves the whole child, its head, and a score a channel.
        channels = sum(layer.channels for layer in pool.layout.layers)
        assert row["trained"] == backbone + channels + count.head


def test_rows_of_compared_methods_tell_what_they_would_cost(finished):
    results, pool = read_results(finished[0]), Pool.open(finished[0] / "pool")
    backbone, by_method = results["backbone_parameters"], {}
    for row in results["rows"]:
        if row["task"] == "loops":
            by_method[row["method"]] = row
    finetune, probe, own = by_method["finetune"], by_method["probe"], by_method["cwps"]
    assert finetune["params_ratio"] == 1 and finetune["parameters"] == backbone
    assert finetune["trained"] == backbone + finetune["head_parameters"]
    assert probe["trained"] == probe["head_parameters"] == own["head_parameters"]
    statistics = sum(
        leaf.size for leaf in jax.tree.leaves(pool.effective("loops")["batch_stats"])
    )  # both methods have statistics of their own, and masks that the pool would store
    assert finetune["bytes"] >= 4 * (backbone + finetune["head_parameters"] + statistics)
    assert finetune["bytes"] < 1.02 * 4 * (backbone + finetune["head_parameters"] + statistics)
    assert probe["bytes"] < own["bytes"] < finetune["bytes"]
    assert {row["epochs"] for row in by_method.values()} == {3} and finetune["seconds"] > 0


def test_nothing_is_forgotten(finished):
    for row in read_results(finished[0])["forgetting"]:
        assert row["logits_sha256_when_learned"] == row["logits_sha256_at_end"]
        assert row["accuracy_when_learned"] == row["accuracy_at_end"]


def without_times(results: dict) -> dict:
    rows = [
        {key: value for key, value in row.items() if key not in ("seconds", "peak_memory_bytes")}
        for row in results["rows"]
    ]
    return {**results, "rows": rows}


def test_one_seed_gives_one_result_profiled_or_not(finished, tmp_path):
    done = main(tmp_path / "again", *SMALL, "--config.profile=true")
    assert done.returncode == 0, done.stderr
    assert without_times(read_results(tmp_path / "again")) == without_times(read_results(finished[0]))
    stages = ("finetune_finetune", "probe_probe", "cwps_warm-up", "cwps_soft", "cwps_hard")
    folder = tmp_path / "again" / "profile"
    assert [stage["trace"] for stage in json.loads((folder / "steps.json").read_text())["stages"]] == [
        *stages
    ]
    assert all(list((folder / stage).rglob("perfetto_trace.json.gz")) for stage in stages)
    for shown in ("MFU", "peak unknown", f"--logdir {folder}"):
        assert shown in done.stdout


def test_the_same_command_again_skips_what_is_learned(finished):
    workdir, _ = finished
    before = read_results(workdir), sorted(p.stat().st_mtime_ns for p in (workdir / "pool").rglob("*"))
    done = main(workdir, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "negative is in the pool already: skipped" in done.stdout
    after = read_results(workdir), sorted(p.stat().st_mtime_ns for p in (workdir / "pool").rglob("*"))
    assert after == before


def test_a_longer_list_learns_only_what_is_new(finished):
    """Also by another route, pmap: the pool does not care which wrote it."""
    workdir, _ = finished
    first = read_results(workdir)
    flags = ("--config.tasks=('negative','loops','thick')", *SMALL[1:], "--config.parallel=pmap")
    done = main(workdir, *flags)
    assert done.returncode == 0, done.stderr
    results = read_results(workdir)
    assert [row["task"] for row in own_rows(results)] == ["negative", "loops", "thick"]
    for old, new in zip(own_rows(first), own_rows(results), strict=False):
        assert old["parameters"] == new["parameters"]
    assert all(row["accuracy_at_end"] == row["accuracy_when_learned"] for row in results["forgetting"][2:])


def test_debug_shows_where(tmp_path):
    """What is one line without it is in test_bad_inputs.py, which starts one process for all."""
    done = main(tmp_path / "w", "--config.budget=0.001", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.backbone=resnet18"], "made with backbone 'resnet8', config.backbone is 'resnet18'"),
        (["--config.source_epochs=2"], "made with another pre-trained model (source_epochs was 1, is 2)"),
    ],
)
def test_a_workdir_of_another_run_is_refused_unharmed(finished, flags, message):
    workdir, _ = finished
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    done = main(workdir, *SMALL, *flags)
    assert done.returncode == 2 and message in done.stderr
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_a_config_file_that_is_not_there(tmp_path):
    done = main(tmp_path / "w", config="configs/nope.py")
    assert done.returncode == 2 and done.stderr.startswith("cwps: --config: no such file: configs/nope.py")


def test_pretrained_weights_from_a_file(tmp_path):
    model = models.create("resnet8", 4)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 12, 12, 1)))
    variables = jax.tree.map(lambda leaf: np.abs(rng.normal(0.1, 0.1, leaf.shape)).astype(np.float32), shapes)
    save_backbone(tmp_path / "w.safetensors", "resnet8", variables)
    flags = ("--config.tasks=('negative',)", "--config.epochs=3", "--config.compare=()")
    done = main(tmp_path / "w", *flags, f"--config.weights={tmp_path / 'w.safetensors'}")
    assert done.returncode == 0, done.stderr
    stored = Pool.open(tmp_path / "w" / "pool").effective("pretrained")
    chex.assert_trees_all_equal(stored, variables)
    assert [row["method"] for row in read_results(tmp_path / "w")["rows"]] == ["cwps"]


def test_weights_that_do_not_fit_leave_nothing_behind(tmp_path):
    head = {"head": {"kernel": np.zeros((64, 4), np.float32)}}
    save_backbone(tmp_path / "w.safetensors", "resnet8", {"params": head})
    done = main(tmp_path / "w", f"--config.weights={tmp_path / 'w.safetensors'}")
    assert done.returncode == 2 and "does not fit resnet8" in done.stderr and "missing (" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_a_vision_transformer_runs_as_a_resnet_does(tmp_path):
    flags = ("--config.tasks=('mirrored',)", *SMALL[1:], "--config.compare=()")
    done = main(tmp_path / "w", *flags, config="configs/digits_vit.py")
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "w")
    (row,), (forgetting,) = results["rows"], results["forgetting"]
    assert results["backbone"] == "vit_nano4" and 0 < row["params_ratio"] <= row["budget"] == 0.4
    assert forgetting["logits_sha256_when_learned"] == forgetting["logits_sha256_at_end"]
    masks = Pool.open(tmp_path / "w" / "pool").layout.layer_paths
    assert {f"block0/attention/{name}/kernel" for name in ("query", "key", "value", "out")} <= set(masks)


def test_training_that_diverges_is_one_line(tmp_path):
    done = main(tmp_path / "w", *SMALL, "--config.learning_rate=1e30")
    assert done.returncode == 2
    assert "the loss is" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
