"""The demo as a newcomer runs it: `make test-slow`. It has to show what README.md says of it."""

import statistics

import pytest
from test_main import main, read_results

pytestmark = pytest.mark.slow


def test_the_demo_shows_what_it_promises(tmp_path):
    done = main(tmp_path / "digits")
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "digits")
    tasks = results["tasks"]
    mean = lambda key: statistics.mean(task[key] for task in tasks)
    assert all(task["accuracy"] > task["probe_accuracy"] for task in tasks)
    assert mean("accuracy") > mean("finetune_accuracy") - 0.02
    assert mean("params_ratio") <= 0.5
    assert all(
        row["logits_sha256_at_end"] == row["logits_sha256_when_learned"] for row in results["forgetting"]
    )
