"""docs/your_own_model.md: its code runs as it stands, block after block, and does what the text says."""

import contextlib
import io
import pathlib
import re

import pytest

from cwps_jax import modules

GUIDE = pathlib.Path(__file__).parent.parent / "docs" / "your_own_model.md"


@pytest.fixture(scope="module")
def guide(tmp_path_factory) -> tuple[list[dict], str]:
    """The names after each block, and all that was printed."""
    names: dict = {}
    after, printed = [], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("guide")))
        patch.setattr(modules, "_RULES", dict(modules._RULES))  # its rule is forgotten after it
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)):
            exec(compile(block, f"{GUIDE.name}, block {number}", "exec"), names)
            after.append(dict(names))
    return after, printed.getvalue()


def after_block_with(name: str, guide) -> dict:
    """Returns the names after the block that first gives a name."""
    return next(names for names in guide[0] if name in names)


def test_the_refusal_that_it_quotes_is_the_real_one(guide):
    (quoted,) = re.findall(r"print\(refusal\)  # (.*), \.\.\.\n", GUIDE.read_text())
    assert guide[1].startswith(quoted)


def test_sharing_by_hand_reaches_a_new_domain_within_its_budget(guide):
    names = after_block_with("gates", guide)
    assert names["accuracy"](names["pretrained"], names["positive"]) > 0.9
    assert names["accuracy"](names["pretrained"], names["negative"]) < 0.3
    assert names["accuracy"](names["params"], names["negative"]) > 0.9
    assert 0.1 < names["pool"].count("by_hand").ratio <= 0.4


def test_learn_task_does_the_same_and_takes_channels_from_the_task_before(guide):
    learned = after_block_with("learned", guide)["learned"]
    assert learned.metric > 0.9
    assert learned.params_ratio <= 0.4
    assert learned.relation["by_hand"] > 0.1


def test_a_loss_and_metric_of_ones_own(guide):
    names = after_block_with("answers", guide)
    assert names["answers"].metric > 0.9
    assert names["answers"].params_ratio <= 0.4
    assert names["pool"].effective("questions")["params"]["head"]["bias"].shape == (3,)


def test_a_metric_over_a_whole_split(guide):
    assert 0.9 < after_block_with("measured", guide)["measured"].metric < 1


def test_what_it_says_of_a_reopened_pool(guide):
    names = after_block_with("stored", guide)
    assert names["pool"].tasks == ("by_hand", "negative", "questions", "by_f1")
    assert names["accuracy"](names["stored"], names["negative"]) > 0.9


def test_an_nnx_model_learns_a_task_too(guide):
    names = after_block_with("nnx_model", guide)
    assert names["right"] > 0.8
    assert 0.1 < names["pool"].count("negative").ratio <= 0.5
