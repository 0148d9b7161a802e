"""What people bring from PEFT, timm and notebooks: counterparts with the same words."""

import contextlib
import html.parser
import re

import chex
import pytest
from conftest import TinyModel, random_task

import cwps_jax as cwps
from cwps_jax.serve.model_card import model_card

CONFIG = cwps.TrainConfig(epochs=3, batch_size=16, learning_rate=0.05, budget=0.6)
WATCHED: list[tuple[str, int]] = []  # what the bar was told while the tasks were learned
ODD = "<b>|`x`[1]"  # a task may be called so


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny_model, tiny_variables, tiny_layout):
    """A pool with three tasks, and what learn_task gave for each."""
    folder = tmp_path_factory.mktemp("habits") / "pool"
    pool = cwps.Pool.create(folder, tiny_variables, tiny_layout, record={"weights": "none | <i>"})
    trainer = cwps.make_trainer(tiny_model, random_task(), config=CONFIG)
    own: list = []

    @contextlib.contextmanager
    def watched(name):
        yield lambda progress: WATCHED.append((name, progress.epoch))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cwps_jax.learn.watched", watched)
        given = {
            name: cwps.learn_task(
                pool, name, TinyModel(), random_task(), config=CONFIG, trainer=trainer, **observed
            )
            for name, observed in (("birds", {}), (ODD, {}), ("cars", {"observe": own.append}))
        }
    assert len(own) == CONFIG.epochs
    return pool, given


class Texts(html.parser.HTMLParser):
    """Collects the texts of a table's cells, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.cells.append(data)


def test_models_are_listed_by_a_pattern_and_created_by_timms_word():
    assert cwps.list_models() == sorted(cwps.BACKBONES)
    assert cwps.list_models("resnet*_cifar")[0] == "resnet20_cifar"
    assert cwps.list_models("none*") == []
    assert cwps.create_model("resnet8", num_classes=7).num_classes == 7


def test_a_pool_is_a_table_in_a_notebook_and_names_are_escaped(learned):
    pool, _ = learned
    found = Texts(pool._repr_html_())
    assert found.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert found.cells[0] == f"Pool {pool.folder}: 3 tasks"
    rows = [line.split() for line in repr(pool).splitlines()[2:]]
    assert [found.cells[7 + 6 * n : 13 + 6 * n] for n in range(3)] == rows


def test_an_empty_pool_is_its_first_line(tmp_path, tiny_variables, tiny_layout):
    pool = cwps.Pool.create(tmp_path / "pool", tiny_variables, tiny_layout)
    assert Texts(pool._repr_html_()).cells == [repr(pool)]


def test_a_learned_task_is_a_table_in_a_notebook(learned):
    one = learned[1][ODD]
    found = Texts(one._repr_html_())
    assert found.cells[0] == f"{ODD}@1" and "b" not in found.tags
    assert found.cells[5:8] == [
        f"{one.metric:.3f}",
        f"{one.validation_metric:.3f}",
        f"{one.params_ratio:.1%}",
    ]
    assert f"{ODD} {one.relation[ODD]:.1%}" in found.cells[8]


def test_learn_task_shows_a_bar_unless_it_is_observed(learned):
    assert [(name, epoch) for name in ("birds", ODD) for epoch in (1, 2, 3)] == WATCHED


def test_what_is_trained_and_stored_in_the_line_that_peft_prints(learned, capsys):
    pool, given = learned
    cwps.print_trainable_parameters(given["birds"])
    line = capsys.readouterr().out
    peft = r"trainable params: ([\d,]+) \|\| all params: ([\d,]+) \|\| trainable%: (\d+\.\d{4})"
    ours = r" \|\| stored params: ([\d,]+) \|\| stored%: (\d+\.\d{4}) \|\| stored bytes: ([\d,]+)\n"
    trained, everything, share, stored, stored_share, size = (
        float(text.replace(",", "")) for text in re.fullmatch(peft + ours, line).groups()
    )
    count = pool.count("birds")
    assert trained == given["birds"].record["trained"]
    assert everything == count.backbone + count.head
    assert stored == count.active + count.private + count.head < everything
    assert size == pool.version("birds").bytes
    assert share == pytest.approx(100 * trained / everything, abs=1e-4)
    assert stored_share == pytest.approx(100 * stored / everything, abs=1e-4)


def test_what_has_no_parameters_to_print_is_refused():
    with pytest.raises(cwps.CwpsError, match=r"print_trainable_parameters\(str\): give what learn_task"):
        cwps.print_trainable_parameters("birds")


@pytest.mark.parametrize("tasks", [(), "cars", (ODD, "birds")])
def test_a_folder_that_others_use_is_a_pool_with_a_card(learned, tmp_path, tasks):
    pool, given = learned
    saved = cwps.save_pretrained(pool, tmp_path / "new" / "saved", tasks)
    opened = cwps.Pool.open(tmp_path / "new" / "saved")
    wanted = {"cars"} if tasks == "cars" else {*(tasks or pool.tasks)}
    assert {*saved.tasks} == {*opened.tasks} == wanted
    assert opened.verify() == []
    for name in wanted:
        chex.assert_trees_all_equal(opened.effective(name), given[name].variables)
    card = (opened.folder / "README.md").read_text()
    assert card == model_card(opened)
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["saved"]


def test_the_card_says_what_the_records_say_and_a_name_is_no_markdown(learned):
    pool, given = learned
    card = model_card(pool)
    assert card.startswith("---\nlibrary_name: cwps_jax\n") and "# 3 tasks on a model of its own" in card
    assert f"| birds | {given['birds'].metric:.3f} | {pool.count('birds').ratio:.1%} |" in card
    assert r"| &lt;b&gt;\|\`x\`\[1\] |" in card and r"- weights: none \| &lt;i&gt;" in card
    fingerprint = pool.version("cars").record["learned_with"]["fingerprints"]["test"]
    assert fingerprint in card and "<b>" not in card and '"birds", images, model=model' in card


def test_what_cannot_be_saved_leaves_nothing_behind(learned, tmp_path):
    pool, _ = learned
    with pytest.raises(cwps.CwpsError, match="'bird' is not in the pool|did you mean"):
        cwps.save_pretrained(pool, tmp_path / "a", "bird")
    with pytest.raises(cwps.CwpsError, match="is there already; name a folder that is to be made"):
        cwps.save_pretrained(pool, tmp_path)
    assert list(tmp_path.iterdir()) == []
