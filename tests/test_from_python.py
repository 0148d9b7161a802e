"""A run of main from Python: twice in one process, which goes on, beside another program's flags."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

import cwps_jax as cwps
from cwps_jax.config import run_config

ROOT = pathlib.Path(__file__).parent.parent


def digits(folder: pathlib.Path):
    """Returns the shipped digits config, shrunk to one task."""
    spec = importlib.util.spec_from_file_location("digits", ROOT / "configs" / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    changes = {"tasks": ("negative",), "compare": (), "epochs": 3, "source_epochs": 1}
    config.update({**changes, "cache_dir": str(folder / "cache")})
    return config


def test_a_run_from_python_twice_in_one_process(tmp_path, capsys):
    config = digits(tmp_path)
    results = cwps.learn_tasks(config, tmp_path / "run", quiet=True)
    assert capsys.readouterr().out == ""
    (row,) = results["rows"]
    assert (row["task"], row["method"]) == ("negative", "cwps") and row["params_ratio"] <= 0.4
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert (tmp_path / "run" / "report" / "relation.png").is_file()
    assert cwps.learn_tasks(run_config(config.to_dict()), tmp_path / "run") == results
    assert "negative is in the pool already: skipped" in capsys.readouterr().out
    assert cwps.Pool.open(tmp_path / "run" / "pool").tasks == ("negative",)


def test_a_config_that_is_wrong_is_refused_and_nothing_is_written(tmp_path):
    config = cwps.default_config()
    config.epoch = 3
    with pytest.raises(cwps.CwpsError, match=r"config\.epoch is not known; did you mean config\.epochs\?"):
        cwps.learn_tasks(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_defines_no_flags_that_another_program_may_have():
    program = """
from absl import flags
for name in ("config", "workdir", "debug", "finish", "processes"):
    flags.DEFINE_string(name, "mine", "another program's")
import cwps_jax as cwps
from cwps_jax import finish, from_python, run, workdir
flags.FLAGS(["program", "--workdir=theirs"])
print(flags.FLAGS.workdir, flags.FLAGS.config)
"""
    command = [sys.executable, "-W", "error", "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("theirs mine\n", "")
