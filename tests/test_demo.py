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
    by_method = {one["method"]: [] for one in results["totals"]}
    for row in results["rows"]:
        by_method[row["method"]].append(row)
    mean = lambda key, method="cwps": statistics.mean(row[key] for row in by_method[method])
    for own, probe in zip(by_method["cwps"], by_method["probe"], strict=True):
        assert own["accuracy"] > probe["accuracy"]
    assert mean("accuracy") > mean("accuracy", "finetune") - 0.02
    assert mean("params_ratio") <= 0.5
    assert all(
        row["logits_sha256_at_end"] == row["logits_sha256_when_learned"] for row in results["forgetting"]
    )
