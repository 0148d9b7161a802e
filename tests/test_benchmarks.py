"""benchmarks/: turns and ratios are fair, targets are judged rightly, a result file keeps its contract."""

import importlib
import itertools
import json
import pathlib
import subprocess
import sys

import compiling
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))  # its files import each other by their own names
measurement, targets, every = (importlib.import_module(name) for name in ("measurement", "targets", "all"))


def measured(file: str, ratio: str, value: float, **settings) -> dict:
    """Returns one result file of one ratio."""
    result = {
        "ratios": {ratio: value},
        "quartiles": {ratio: [value - 0.01, value + 0.01]},
        "settings": settings,
        "device": "somewhere",
        "versions": {"jax": "0"},
        "commit": "none",
    }
    return {file: result}


def cells_of(table: str, what: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {what} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_turns_are_interleaved_in_a_rotating_order_and_the_first_does_not_count():
    taken: list[str] = []
    turns = {name: lambda name=name: taken.append(name) or len(taken) for name in "abc"}
    values = measurement.interleaved(turns, 6)
    assert all(len(one) == 6 for one in values.values())
    assert min(itertools.chain(*values.values())) == 4, "the first round counts"
    rounds = ["".join(taken[at : at + 3]) for at in range(3, len(taken), 3)]
    assert rounds == ["abc", "bca", "cab"] * 2


def test_ratios_do_not_see_a_machine_that_becomes_slower():
    drift = [1.5**turn for turn in range(9)]
    values = {"twice": [2 * one for one in drift], "once": drift}
    found = measurement.ratios(values, {"ratio": ("twice", "once")})
    assert found == {"ratios": {"ratio": pytest.approx(2)}, "quartiles": {"ratio": pytest.approx([2, 2])}}


def test_quick_changes_defaults_and_a_flag_still_wins():
    made = measurement.parser("")
    made.add_argument("--size", type=int, default=224)
    quick = {"size": 32, "repeats": 4}
    assert vars(measurement.parse(made, quick, [])).items() >= {"size": 224, "repeats": 30}.items()
    chosen = vars(measurement.parse(made, quick, ["--quick", "--size", "64"]))
    assert chosen.items() >= {"size": 64, "repeats": 4}.items()


def test_a_target_is_met_missed_or_not_yet_run():
    row = next(row for row in targets.ROWS if row.ratio == "soft_time")
    file, most = row.cpu.file, row.cpu.most
    good = targets.targets_table(measured(file, "soft_time", most - 0.005))
    bad = targets.targets_table(measured(file, "soft_time", most + 0.25))
    silent = targets.targets_table(measured(file, "another", 1.0))
    assert cells_of(good, row.what)[1].endswith(": met")
    assert cells_of(bad, row.what)[1].endswith(": missed by 0.25")
    assert cells_of(silent, row.what)[1] == "the device does not tell"
    assert cells_of(bad, row.what)[3] == targets.NOT_YET
    empty = targets.targets_table({})
    assert "met" not in empty and "missed" not in empty
    assert empty.count(targets.NOT_YET) == sum(bool(row.cpu) + bool(row.gpu) for row in targets.ROWS)


def test_a_lower_bound_is_a_bound():
    row = next(row for row in targets.ROWS if row.ratio == "naive_over_search")
    bad = targets.targets_table(measured(row.cpu.file, row.ratio, row.cpu.least - 3))
    assert cells_of(bad, row.what)[1].endswith(": missed by 3")


def test_what_was_measured_quickly_is_not_published():
    row = targets.ROWS[0]
    with pytest.raises(SystemExit, match="quick"):
        targets.targets_table(measured(row.cpu.file, row.ratio, 1.0, quick=True))


def test_a_commit_is_dirty_by_what_is_measured_and_not_by_results(tmp_path, monkeypatch):
    def git(*asked: str) -> str:
        who = ("-c", "user.name=name", "-c", "user.email=name@example.org")
        return subprocess.check_output(["git", *who, *asked], cwd=tmp_path, text=True).strip()

    result, program = tmp_path / "benchmarks" / "results" / "one.json", tmp_path / "package.py"
    result.parent.mkdir(parents=True)
    for file in (result, program):
        file.write_text("1")
    monkeypatch.setattr(measurement, "__file__", str(tmp_path / "benchmarks" / "measurement.py"))
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    git("tag", "-m", "a release", "v1")
    clean = git("rev-parse", "--short", "HEAD")
    assert measurement.commit() == clean
    result.write_text("2")
    assert measurement.commit() == clean
    program.write_text("2")
    assert measurement.commit() == f"{clean}-dirty"


def test_each_goal_has_a_run_that_writes_its_file():
    written = {
        device: {run.file(device) for run in runs if (FOLDER / f"{run.benchmark}.py").exists()}
        for device, runs in every.RUNS.items()
    }
    for row in targets.ROWS:
        for device, goal in (("cpu", row.cpu), ("gpu", row.gpu)):
            assert goal is None or goal.file in written[device], (row.what, device)


@pytest.mark.parametrize(
    ("benchmark", "flags", "timed"),
    [
        ("swap", (), {"merged_over_backbone", "swap_over_copy"}),
        ("hard", ("--repeats", "0"), set()),
    ],
)
def test_a_quick_run_keeps_the_contract(benchmark, flags, timed, tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, str(FOLDER / f"{benchmark}.py"), "--quick", "--backbone", "resnet8", *flags]
    command += ["--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=compiling.environment())
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result.keys() >= {"ratios", "quartiles", "device", "versions", "commit", "settings"}
    assert result["settings"]["quick"] and result["settings"]["backbone"] == "resnet8"
    assert result["quartiles"].keys() == timed
    for name, (low, high) in result["quartiles"].items():
        assert 0 < low <= result["ratios"][name] <= high
    if benchmark == "swap":
        assert result["same_hlo"]
        assert 0.4 < result["channels_swapped"] < 0.6  # 1 - 0.7 ** 2, rounded to whole channels of each layer
    else:
        ratios = result["ratios"]
        assert ratios["hard_flops"] < 0.9 < ratios["dense_hard_flops"]
        assert ratios["hard_optimizer_bytes"] < 0.6 < ratios["dense_hard_optimizer_bytes"] == 1
