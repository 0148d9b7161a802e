"""The runs on embedded data, whole, as newcomers run them (`make test-slow`): what the docs say must hold."""

import statistics

import pytest
from test_main import main, read_results

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("config", ["digits", "digits_vit"])
def test_the_run_shows_what_it_promises(tmp_path, config):
    done = main(tmp_path / config, config=f"configs/{config}.py")
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / config)
    tasks = results["tasks"]
    mean = lambda key: statistics.mean(task[key] for task in tasks)
    assert all(task["accuracy"] > task["probe_accuracy"] for task in tasks)
    assert mean("accuracy") > mean("finetune_accuracy") - 0.02
    assert mean("params_ratio") <= 0.5
    assert all(
        row["logits_sha256_at_end"] == row["logits_sha256_when_learned"] for row in results["forgetting"]
    )
