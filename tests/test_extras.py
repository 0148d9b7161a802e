"""Light to import, and of use without any extra: the README's eight lines run with nothing but the core."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

from cwps_jax.extras import EXTRAS

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Plain Python, so that the first import is the package's own.
PROGRAM = """
import sys
import cwps_jax as cwps

assert "jax" not in sys.modules
for name in cwps.__all__:
    getattr(cwps, name)
heavy = {heavy}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
sys.modules.update(dict.fromkeys({optional}))  # importing one fails from here on

import jax
import numpy as np
from conftest import TinyModel

folder, model, rng = "pool", TinyModel(), np.random.default_rng(0)
images = rng.normal(size=(64, 8, 8, 1)).astype(np.float32)
split = {{"image": images, "label": np.arange(64, dtype=np.int32) % 3}}
data = cwps.TaskData(split, split, split, classes=3)
images = images[:2]
pretrained = model.init(jax.random.key(0), images)
{example}
jax.tree.map(np.testing.assert_array_equal, variables, task.variables)
assert len(answers) == 2 and task.params_ratio <= 0.4
cwps.TaskBank(pool, model=model)
try:
    cwps.export(pool, "birds", "birds.stablehlo.zip", model=model)
except cwps.CwpsError as error:
    print(error)
"""


def test_the_readme_runs_without_any_extra(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    # Thirty epochs, the default, are more than a test needs.
    example = example.replace("budget=0.4", "budget=0.4, epochs=3, batch_size=16")
    optional = sorted(module for modules in EXTRAS.values() for module in modules)
    heavy = {*optional, "grain", "orbax", "tensorstore", "tensorflow", "torch"} - {"flatbuffers"}  # jax's own
    program = PROGRAM.format(heavy=heavy, optional=optional, example=example)
    command = [sys.executable, "-W", "error", "-c", program]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "needs flatbuffers, not installed here: pip install 'cwps_jax[export]'" in done.stdout


def test_every_extra_that_a_message_names_can_be_installed():
    assert EXTRAS.keys() < PROJECT["optional-dependencies"].keys()


def test_all_is_every_extra_that_needs_no_accelerator_and_no_checkout():
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    parts = {*everything.removeprefix("cwps_jax[").removesuffix("]").split(",")}
    others = {"all", "photos", "report", "tensorboard", "cuda", "tpu", "build", "docs", "test"}
    assert parts == extras.keys() - others
