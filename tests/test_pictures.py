import copy
import pathlib

import matplotlib.image
import numpy as np
import pytest
from invented import TASKS, accuracy, invented, methods
from matplotlib.colors import to_hex

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.report import owners, pictures
from cwps_jax.report.channel_picture import draw_task
from cwps_jax.report.page import apart
from cwps_jax.report.pictures import draw_accuracy, draw_comparison, draw_report
from cwps_jax.report.relation_picture import draw_relation
from cwps_jax.report.rows import read_results
from cwps_jax.search.composite import Source
from cwps_jax.store.pool import PRETRAINED, Pool

STEM, FIRST, SECOND = "stem/kernel", "block2/kernel", "block10/kernel"
COMPARISON = ["accuracy_bytes.png", "total_bytes.png"]
PNG = b"\x89PNG\r\n\x1a\n"


def make_layer(path, fan_in, channels):
    return Layer(path, (path,), ((fan_in, channels),), (1, channels))


# Sorted by path, as `channel_layout` returns them, which is not the network's order.
LAYOUT = Layout(
    tuple(make_layer(path, fan_in, 4) for path, fan_in in ((SECOND, 4), (FIRST, 4), (STEM, 3))), (), ()
)


def params(seed):
    draw = np.random.default_rng(seed).standard_normal
    return {
        layer.path.split("/")[0]: {"kernel": draw(layer.shapes[0]).astype(np.float32)}
        for layer in LAYOUT.layers
    }


def gates(*open_channels):
    row = np.isin(np.arange(4), open_channels)[None]
    return {layer.path.split("/")[0]: {"kernel": row} for layer in LAYOUT.layers}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Task a keeps channels 0 and 1; b keeps 3, takes 0 from a, and 1 and 2 from the pre-trained model."""
    pool = Pool.create(tmp_path_factory.mktemp("pictures") / "pool", {"params": params(0)}, LAYOUT)
    pool.add("a", params(1), {}, gates(0, 1), {}, (PRETRAINED,), {})
    source = Source(np.array([1, 0, 0, 0]), np.arange(4))
    sources = {layer.path: source for layer in LAYOUT.layers}
    pool.add("b", params(2), {}, gates(3), sources, (PRETRAINED, "a"), {})
    return pool


@pytest.fixture(scope="module")
def results(pool):
    """Of three methods; what the first takes from whom is what the pool says."""
    found = invented(3, tasks=("a", "b"))
    for row in found["rows"]:
        row["relation"] = row["relation"] and pool.relation(row["task"])
    return found


@pytest.fixture(scope="module")
def drawn(pool, results, tmp_path_factory):
    return draw_report(pool, results, tmp_path_factory.mktemp("drawn") / "pictures")


def count_of(image, colour):
    """Returns how many pixels of a picture have exactly this colour."""
    return int(np.all(np.rint(image[..., :3] * 255) == colour, axis=-1).sum())


def test_every_picture_is_written_and_decodes(drawn):
    channels = ["channels_a.png", "channels_b.png", "channels.png"]
    assert [path.name for path in drawn] == [*channels, "relation.png", *COMPARISON]
    for path in drawn:
        assert path.read_bytes().startswith(PNG)
        height, width, _ = matplotlib.image.imread(path).shape
        assert min(height, width) > 200


def test_a_row_has_its_channels_sorted_by_owner(pool, results):
    stores = owners.channel_owners(pool, "b")
    assert list(stores) == [STEM, FIRST, SECOND]
    colours = owners.owner_colours({"a": pool.relation("a"), "b": pool.relation("b")})
    assert list(colours) == [owners.OWN, "a", PRETRAINED]
    for path in stores:
        assert stores[path].tolist() == ["a", PRETRAINED, PRETRAINED, "b"]
        row = owners.strip(stores[path], "b", colours, 40)
        wanted = [colours[key] for key in (owners.OWN, "a", PRETRAINED, PRETRAINED)]
        np.testing.assert_array_equal(row, np.repeat(np.array(wanted), 10, axis=0))


def test_the_picture_shows_as_much_of_each_colour_as_the_owner_stores(tmp_path):
    """Of a layer with nine tenths of the parameters, and one with a tenth of which all is the task's own."""
    layers = tuple(
        Layer(f"{name}/kernel", (f"{name}/kernel",), ((fan_in, 4),), (1, 4))
        for name, fan_in in (("small", 10), ("large", 90))
    )
    tree = {
        "small": {"kernel": np.ones((10, 4), np.float32)},
        "large": {"kernel": np.ones((90, 4), np.float32)},
    }
    pool = Pool.create(tmp_path / "pool", {"params": tree}, Layout(layers, (), ()))
    opened = {
        "small": {"kernel": np.ones((1, 4), bool)},
        "large": {"kernel": np.array([[True, False, False, False]])},
    }
    pool.add("a", tree, {}, opened, {}, (PRETRAINED,), {})
    relation = {"a": pool.relation("a")}
    colours = owners.owner_colours(relation)
    image = matplotlib.image.imread(draw_task(pool, "a", colours).save(tmp_path / "a.png"))
    own, shared = (count_of(image, colours[key]) for key in (owners.OWN, PRETRAINED))
    assert relation["a"]["a"] == pytest.approx(0.1 + 0.9 / 4)
    assert own / (own + shared) == pytest.approx(relation["a"]["a"], abs=0.01)


def test_same_inputs_give_the_same_bytes(pool, results, drawn, tmp_path):
    again = draw_report(Pool.open(pool.folder), results, tmp_path)
    for first, second in zip(drawn, again, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
        assert b"Software" not in second.read_bytes()
        assert b"Title" in second.read_bytes()  # whoever sees no pictures is told what it shows


def test_one_task_has_no_overview(tmp_path):
    pool = Pool.create(tmp_path / "pool", {"params": params(0)}, LAYOUT)
    assert draw_report(pool, invented(1, tasks=()), tmp_path / "none") == []
    pool.add("a", params(1), {}, gates(0), {}, (PRETRAINED,), {})
    paths = draw_report(pool, invented(1, tasks=("a",)), tmp_path / "one")
    assert [path.name for path in paths] == ["channels_a.png", "relation.png", *COMPARISON]


def test_names_that_matplotlib_would_take_for_something_else(tmp_path):
    pool = Pool.create(tmp_path / "pool", {"params": params(0)}, LAYOUT)
    names = ("_hidden", "$x_{$", "x" * 100)
    for name in names:
        pool.add(name, params(1), {}, gates(0), {}, (PRETRAINED,), {})
    paths = draw_report(pool, invented(1, tasks=names), tmp_path / "drawn")
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_only_tasks_whose_channels_have_owners_are_drawn_channel_by_channel(pool, results, tmp_path):
    results = copy.deepcopy(results)
    for row in results["rows"]:
        row["relation"] = row["relation"] if row["task"] == "b" else None
    names = [path.name for path in draw_report(pool, results, tmp_path / "one")]
    assert names == ["channels_b.png", "relation.png", *COMPARISON]
    for row in results["rows"]:
        row["relation"] = None
    assert [path.name for path in draw_report(pool, results, tmp_path)] == COMPARISON


def markers(axes):
    """Returns {(x, y): (marker, size, colour)} of all that stands alone in a plot, and the joined points."""
    found, joined = {}, 0
    for line in axes.lines:
        joined += line.get_linestyle() not in ("None", "") and line.get_marker() == "None"
        for x, y in line.get_xydata():
            look = line.get_marker(), line.get_markersize(), to_hex(line.get_color())
            found[round(float(x), 6), round(float(y), 6)] = look
    return found, joined


@pytest.mark.parametrize("count", [1, 3, 14])
def test_points_stand_where_they_were_measured_and_show_their_method(count):
    results = invented(count)
    page = draw_accuracy("mlp", results["rows"])
    axes = page.axes.figure.axes[1]
    found, joined = markers(axes)
    assert axes.get_xscale() == "log" and not joined
    looks, sizes = {}, {}
    for number, method in enumerate(methods(count)):
        points = [(1000.0 * (1 + number), round(accuracy(task, number, 0), 6)) for task in TASKS]
        mean = (points[0][0], round(sum(y for _, y in points) / 2, 6))
        looks[method] = {(found[point][0], found[point][2]) for point in (*points, mean)}
        sizes[method] = found[points[0]][1], found[mean][1]
    assert len(found) == 3 * count
    assert all(len(look) == 1 for look in looks.values()), "a method's points do not look alike"
    assert len({min(look) for look in looks.values()}) == count, "two methods look alike"
    assert len({min(look)[1] for look in looks.values()}) == count, "two methods have one colour"
    # Who sees no colours has the shapes.
    assert len({min(look)[0] for look in looks.values()}) == min(count, 7)
    assert all(task < mean / 2 for task, mean in sizes.values())
    low, high = axes.get_xlim()
    assert low < 1000 and high > 1000 * count and len(axes.get_xticks()) > 2
    legend = [text.get_text() for text in page.axes.texts]
    assert set(methods(count)) <= set(legend)


def test_a_mean_over_draws_has_its_deviation(tmp_path):
    results = invented(2, draws=3)
    page = draw_accuracy("mlp", results["rows"])
    bars = [bar for bar in page.axes.figure.axes[1].containers if bar.has_yerr]
    assert len(bars) == 2
    _, _, (_, vertical) = bars[1].lines
    ((_, low), (_, high)) = vertical.get_segments()[0]
    means = [np.mean([accuracy(task, 1, draw) for task in TASKS]) for draw in range(3)]
    assert (high - low) / 2 == pytest.approx(np.std(means, ddof=1))
    assert (high + low) / 2 == pytest.approx(np.mean(means))


def test_what_has_no_size_is_not_drawn(tmp_path):
    results = invented(2)
    for row in results["rows"]:
        row["bytes"] = None if row["method"] == "method1" else row["bytes"]
    drawn = draw_comparison(results, tmp_path)
    assert [path.name for path in drawn] == ["relation.png", *COMPARISON]
    for row in results["rows"]:
        row["bytes"] = row["relation"] = None
    assert draw_comparison(results, tmp_path / "none") == []


def test_a_method_that_lacks_a_task_has_points_and_no_mean():
    rows = invented(2)["rows"][:-1]
    found, _ = markers(draw_accuracy("mlp", rows).axes.figure.axes[1])
    assert [x for x, _ in found].count(2000.0) == 1 and [x for x, _ in found].count(1000.0) == 3


def test_a_bar_is_as_long_as_what_it_stands_for():
    relations = {"a": {PRETRAINED: 0.75, "a": 0.25}, "b": {PRETRAINED: 0.5, "a": 0.039, "b": 0.461}}
    colours = owners.owner_colours(relations)
    page = draw_relation(relations, colours)
    texts = [text.get_text() for text in page.axes.texts]
    assert {"75.0", "25.0", "3.9", "46.1"} <= set(texts)
    widths = {
        to_hex(patch.get_facecolor()): patch.get_width()
        for patch in page.axes.patches
        if to_hex(patch.get_edgecolor()) == "#ffffff"
    }  # of the last bar
    for key, share in (("a", 0.039), (owners.OWN, 0.461), (PRETRAINED, 0.5)):
        assert widths[to_hex(np.array(colours[key]) / 255)] == pytest.approx(4.0 * share)


def test_all_bytes_add_up_from_the_pre_trained_model_on(tmp_path):
    results = invented(3, draws=2)
    results["rows"][-1]["bytes"] = None
    drawn = {}
    original = pictures.draw_total
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pictures, "draw_total", lambda *given: drawn.update(given=given) or original(*given))
        draw_comparison(results, tmp_path)
    parameters, totals = drawn["given"]
    assert parameters == [1000] and set(totals) == {"method0", "method1"}  # the third lacks a task's bytes
    assert totals["method1"] == [4000, 6000, 8000]
    axes = original(*drawn["given"]).axes.figure.axes[1]
    lines = [line.get_ydata().tolist() for line in axes.lines]
    assert lines == [[4000, 8000, 12000], [4000, 5000, 6000], [4000, 6000, 8000]]
    assert axes.get_ylim()[0] == 0


def test_the_pictures_of_the_documentation_are_of_the_committed_run(tmp_path):
    """`make demo-docs` makes both anew."""
    docs = pathlib.Path(__file__).parent.parent / "docs"
    draw_comparison(read_results(docs / "results" / "digits_seed0.json"), tmp_path)
    for name in ("relation.png", "total_bytes.png"):
        drawn, committed = (matplotlib.image.imread(folder / name) for folder in (tmp_path, docs / "images"))
        np.testing.assert_allclose(drawn, committed, atol=0.02)


def test_labels_keep_their_distance_their_order_and_the_limits():
    places = np.array([1.0, 1.0, 1.01, 1.02, 5.0, 9.9, 9.95, 10.0])
    found = apart(places, 0.5, 1.0, 10.0)
    assert np.all(np.diff(found) >= 0.5 - 1e-9)
    assert found[0] >= 1.25 and found[-1] <= 9.75 and found[4] == 5.0
