"""A method of one's own, from outside of the package, is trained, stored and configured as ours are."""

import dataclasses
import io
import pathlib
import re
from typing import ClassVar

import chex
import numpy as np
import pytest
from methods_shared import CONFIG, files_hash, task, tiny
from rich.console import Console

import cwps_jax as cwps
from cwps_jax.config import default_config, known_keys, run_config
from cwps_jax.core.trees import flatten
from cwps_jax.methods import METHODS, Method, register
from cwps_jax.methods.parts import Parts
from cwps_jax.report.pictures import draw_report
from cwps_jax.report.results import measure_pool
from cwps_jax.report.table import show_results

RUN = {"tasks": ("loops",), "source": "digits", "compare": ()}


@dataclasses.dataclass(frozen=True)
class Toy(Parts):
    """The last layer's bias is trained, and its kernel is the pre-trained one times a setting."""

    name: ClassVar[str] = "toy"

    gain: float = 1.0

    def trained(self, layout):
        return layout.layers[-1].leaves[1:]

    def changed(self, layout, own, pretrained):
        path = layout.layers[-1].path
        return {path: self.gain * pretrained[path]}


@pytest.fixture(autouse=True)
def only_ours():
    """What a test registers is forgotten after it."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture
def toy(only_ours):
    return register(Toy)


@pytest.fixture
def pool(tmp_path):
    return tiny().new_pool(tmp_path / "pool")


def learn(pool, name, method):
    config = dataclasses.replace(CONFIG, method=method)
    return cwps.learn_task(pool, name, tiny().model, task(), config=config, trainer=tiny().trainer)


def test_it_is_learned_stored_and_restored_in_a_pool_that_is_opened_again(toy, pool):
    learned = learn(pool, "birds", toy(gain=1.5))
    again = cwps.Pool.open(pool.folder)
    chex.assert_trees_all_equal(again.effective("birds"), dict(learned.variables))
    assert again.method("birds") == toy(gain=1.5)
    assert again.version("birds").method == "toy" and again.version("birds").settings == {"gain": 1.5}
    leaves, start = flatten(learned.variables["params"]), flatten(tiny().variables["params"])
    changed = {path for path in leaves if np.any(leaves[path] != start[path])}
    assert changed == {"conv2/bias", "conv2/kernel", "head/bias", "head/kernel"}
    np.testing.assert_array_equal(leaves["conv2/kernel"], np.float32(1.5) * start["conv2/kernel"])
    assert again.count("birds").ratio == learned.params_ratio == 8 / 506
    assert again.count("birds").bits == 32 * (8 + 27 + 12)


def test_it_is_known_by_its_name_alone_and_later_tasks_stand_beside_it(toy, pool):
    first = learn(pool, "birds", "toy")
    assert cwps.Pool.open(pool.folder).method("birds") == toy()
    later = learn(pool, "cars", cwps.methods.Cwps())
    combined = learn(pool, "sum", cwps.methods.Atlas(tasks=("birds",)))
    again = cwps.Pool.open(pool.folder)
    for one in (first, later, combined):
        chex.assert_trees_all_equal(again.effective(one.name), dict(one.variables))
    assert again.pooled().names == ("pretrained", "cars")


def test_a_runs_config_has_its_settings_and_a_task_may_override_them(toy):
    assert default_config().toy.gain == 1.0
    assert "toy.gain" in known_keys()
    asked = {**RUN, "method": "toy", "toy": {"gain": 2.0}, "overrides": {"loops": {"toy": {"gain": 3.0}}}}
    config = run_config(asked)
    assert config.train.method == toy(gain=2.0)
    assert config.for_task("loops").train.method == toy(gain=3.0)
    from_flags = default_config()
    from_flags.update({**RUN, "method": "toy"})
    from_flags.toy.gain = 4.0
    assert run_config(from_flags.to_dict()).train.method == toy(gain=4.0)
    with pytest.raises(
        cwps.CwpsError, match=r"^config.toy.gian is not known; did you mean config.toy.gain\?$"
    ):
        run_config({**RUN, "method": "toy", "toy": {"gian": 2.0}})
    with pytest.raises(cwps.CwpsError, match=r"^config.toy.gain = 'much': must be a number$"):
        run_config({**RUN, "method": "toy", "toy": {"gain": "much"}})
    compared = run_config({**RUN, "method": "cwps", "compare": ("toy",), "toy": {"gain": 2.0}})
    assert compared.train_by("toy").method == toy(gain=2.0)


def test_where_it_is_not_registered_the_pool_says_so_in_one_line(toy, pool):
    learned = learn(pool, "birds", toy())
    del METHODS["toy"]
    before, again = files_hash(pool.folder), cwps.Pool.open(pool.folder)
    unknown = r"birds@1 is stored by a method that is not known here .*'toy'.*register the method"
    for ask in (again.effective, again.method, lambda task: again.model(task, tiny().model)):
        with pytest.raises(cwps.CwpsError, match=unknown) as refused:
            ask("birds")
        assert "\n" not in str(refused.value)
    with pytest.raises(cwps.CwpsError, match=r"^config.toy is not known"):
        run_config({**RUN, "toy": {"gain": 2.0}})
    with pytest.raises(cwps.CwpsError, match=r"^method 'toy' is not known; choose one of cwps, "):
        run_config({**RUN, "method": "toy"})
    with pytest.raises(cwps.CwpsError, match=r"^method 'toy' is not known"):
        learn(again, "cars", toy())
    assert files_hash(pool.folder) == before
    # What does not need it goes on.
    assert learn(again, "cars", "probe").name == "cars@1"
    register(toy)
    chex.assert_trees_all_equal(again.effective("birds"), dict(learned.variables))


def test_a_setting_that_a_later_version_of_it_does_not_know_is_told(toy, pool):
    learn(pool, "birds", toy(gain=2.0))
    del METHODS["toy"]

    @register
    @dataclasses.dataclass(frozen=True)
    class Renamed(Method):
        name: ClassVar[str] = "toy"

        factor: float = 1.0

    with pytest.raises(cwps.CwpsError, match=r"birds@1 .*config.toy.gain is not known"):
        cwps.Pool.open(pool.folder).method("birds")
    with pytest.raises(cwps.CwpsError, match="method 'toy' is registered for another class"):
        pool.add_stored("cars", toy(), cwps.methods.method.Stored({"params": {}}), {})
    assert pool.tasks == ("birds",)


def test_two_methods_of_one_name_are_refused_and_the_first_stays(toy):
    before = dict(METHODS)
    for name in ("toy", "lora", ""):
        other = dataclasses.dataclass(frozen=True)(type("Other", (Method,), {"name": name}))
        with pytest.raises(cwps.CwpsError, match=f"^a method cannot be called '{name}': give it another"):
            register(other)
    register(toy)  # the same one again does no harm
    assert before == METHODS


@pytest.mark.parametrize("name", ["epochs", "image_size", "tasks", "settings"])
def test_a_method_cannot_have_the_name_of_a_key_of_the_config(name):
    register(dataclasses.dataclass(frozen=True)(type("Other", (Method,), {"name": name})))
    for read in (default_config, lambda: run_config(RUN)):
        with pytest.raises(cwps.CwpsError, match=f"^a method cannot be called '{name}': config.{name} is"):
            read()


def test_its_results_are_rows_and_its_picture_is_drawn_as_ours_are(toy, pool, tmp_path):
    learn(pool, "birds", toy(gain=1.5))
    learn(pool, "cars", "finetune")
    opened = cwps.Pool.open(pool.folder)
    parallel = tiny().trainer.parallel
    results = measure_pool(opened, "toy", lambda name: task(), lambda classes: tiny().model, parallel)
    rows = {row["method"]: row for row in results["rows"]}
    assert [*rows] == ["toy", "finetune"] and rows["toy"]["params_ratio"] == 8 / 506
    assert rows["toy"]["accuracy"] == opened.version("birds").record["accuracy_when_learned"]
    for told in results["forgetting"]:
        assert told["logits_sha256_at_end"] == told["logits_sha256_when_learned"]
    drawn = {path.name for path in draw_report(opened, results, tmp_path / "report")}
    # It has no channels with owners, and so no picture of them; fine-tuning has.
    assert "accuracy_bytes.png" in drawn and "channels_cars.png" in drawn
    assert "channels_birds.png" not in drawn
    console = Console(width=120, record=True, quiet=False, file=io.StringIO())
    show_results(results, console)
    assert "toy" in console.export_text()


def test_the_method_that_the_page_shows_is_learned_as_it_stands(only_ours, pool):
    page = pathlib.Path(__file__).parent.parent / "docs" / "methods.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(compile(block, page.name, "exec"), {"__name__": "shown"})
    learned = learn(pool, "birds", "last_bias")
    leaves, start = flatten(learned.variables["params"]), flatten(tiny().variables["params"])
    changed = {path for path in leaves if np.any(leaves[path] != start[path])}
    assert changed == {"conv2/bias", "head/bias", "head/kernel"}


def test_the_name_of_a_compared_model_is_no_tasks(pool):
    learn(pool, "birds+probe", "probe")
    stored, method = pool.version("birds+probe"), pool.method("birds+probe")
    kept = cwps.methods.method.Stored({"params": tiny().variables["params"]["head"]})
    before = files_hash(pool.folder)
    with pytest.raises(cwps.CwpsError, match=r"'birds\+probe' is a task here and a compared model"):
        pool.add_stored("birds+probe", method, kept, {}, compared=True)
    assert files_hash(pool.folder) == before and pool.version("birds+probe") == stored
