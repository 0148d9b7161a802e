import matplotlib.image
import numpy as np
import pytest
from invented import TASKS, accuracy, invented, methods
from matplotlib.colors import to_hex

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.report import owners
from cwps_jax.report.pictures import draw_accuracy, draw_comparison, draw_report
from cwps_jax.search.composite import Source
from cwps_jax.store.pool import PRETRAINED, Pool

STEM, FIRST, SECOND = "stem/kernel", "block2/kernel", "block10/kernel"
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


RESULTS = invented(3, tasks=("a", "b"))


@pytest.fixture(scope="module")
def drawn(pool, tmp_path_factory):
    return draw_report(pool, RESULTS, tmp_path_factory.mktemp("drawn") / "pictures")


def count_of(image, colour):
    """Returns how many pixels of a picture have exactly this colour."""
    return int(np.all(np.rint(image[..., :3] * 255) == colour, axis=-1).sum())


def test_every_picture_is_written_and_decodes(drawn):
    names = ["channels_a.png", "channels_b.png", "channels.png", "relation.png", "accuracy_bytes.png"]
    assert [path.name for path in drawn] == names
    for path in drawn:
        assert path.read_bytes().startswith(PNG)
        height, width, _ = matplotlib.image.imread(path).shape
        assert min(height, width) > 200


def test_a_cell_has_the_colour_of_its_owner(pool):
    colours = owners.owner_colours(pool.tasks)
    stores = owners.channel_owners(pool, "b")
    assert list(stores) == [STEM, FIRST, SECOND]
    for path in stores:
        assert stores[path].tolist() == ["a", PRETRAINED, PRETRAINED, "b"]
        cells = owners.layer_colours(stores[path], colours)
        expected = [colours["a"], colours[PRETRAINED], colours[PRETRAINED], colours["b"]]
        np.testing.assert_array_equal(cells, expected)
        row = owners.strip(cells, 40)
        # Cells are ten pixels wide here; the first pixel of all but the first is the line between them.
        np.testing.assert_array_equal(row[[5, 15, 25, 35]], expected)
        np.testing.assert_array_equal(row[[10, 20, 30]], 255)


def test_the_picture_shows_as_much_of_each_colour_as_the_owner_stores(pool, drawn):
    colours = owners.owner_colours(pool.tasks)
    image = matplotlib.image.imread(drawn[1])
    seen = {name: count_of(image, colour) for name, colour in colours.items()}
    total = sum(seen.values())
    for name, share in {"a": 0.25, PRETRAINED: 0.5, "b": 0.25}.items():
        assert seen[name] / total == pytest.approx(share, abs=0.02)


def test_same_inputs_give_the_same_bytes(pool, drawn, tmp_path):
    again = draw_report(Pool.open(pool.folder), RESULTS, tmp_path)
    for first, second in zip(drawn, again, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
        assert b"Software" not in second.read_bytes()


def test_one_task_has_no_overview(tmp_path):
    pool = Pool.create(tmp_path / "pool", {"params": params(0)}, LAYOUT)
    assert draw_report(pool, invented(1, tasks=()), tmp_path / "none") == []
    pool.add("a", params(1), {}, gates(0), {}, (PRETRAINED,), {})
    paths = draw_report(pool, invented(1, tasks=("a",)), tmp_path / "one")
    assert [path.name for path in paths] == ["channels_a.png", "relation.png", "accuracy_bytes.png"]


def test_names_that_matplotlib_would_take_for_something_else(tmp_path):
    pool = Pool.create(tmp_path / "pool", {"params": params(0)}, LAYOUT)
    names = ("_hidden", "$x_{$", "x" * 100)
    for name in names:
        pool.add(name, params(1), {}, gates(0), {}, (PRETRAINED,), {})
    paths = draw_report(pool, invented(1, tasks=names), tmp_path / "drawn")
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_only_tasks_whose_channels_have_owners_are_drawn_channel_by_channel(pool, tmp_path):
    results = invented(2, tasks=("a", "b"))
    for row in results["rows"]:
        row["relation"] = row["relation"] if row["task"] == "b" else None
    names = [path.name for path in draw_report(pool, results, tmp_path / "one")]
    assert names == ["channels_b.png", "relation.png", "accuracy_bytes.png"]
    for row in results["rows"]:
        row["relation"] = None
    assert [path.name for path in draw_report(pool, results, tmp_path)] == ["accuracy_bytes.png"]


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
    (path,) = draw_comparison(results, tmp_path)
    assert path.read_bytes().startswith(PNG)
    for row in results["rows"]:
        row["bytes"] = None
    assert draw_comparison(results, tmp_path / "none") == []


def test_a_method_that_lacks_a_task_has_points_and_no_mean():
    rows = invented(2)["rows"][:-1]
    found, _ = markers(draw_accuracy("mlp", rows).axes.figure.axes[1])
    assert [x for x, _ in found].count(2000.0) == 1 and [x for x, _ in found].count(1000.0) == 3


def test_colours_stay_when_tasks_are_added_and_do_not_repeat_early():
    few, many = owners.owner_colours("abc"), owners.owner_colours("abcdefghijklmnopqrstuv")
    assert all(many[name] == colour for name, colour in few.items())
    assert len(set(many.values())) == len(many) == 23
    assert len(owners.owner_colours(str(place) for place in range(100))) == 101


def test_the_network_order_counts_and_keeps_stem_and_head_outside():
    paths = ("head/kernel", "stage10/conv1/kernel", "stage2/conv1/kernel", "stem_conv/kernel", "blocks/0/w")
    layout = Layout(tuple(make_layer(path, 2, 2) for path in paths), (), ())
    in_order = [layer.path for layer in owners.layers_in_order(layout)]
    assert in_order == [
        "stem_conv/kernel",
        "blocks/0/w",
        "stage2/conv1/kernel",
        "stage10/conv1/kernel",
        "head/kernel",
    ]


def test_a_strip_narrower_than_its_layer_drops_no_channel():
    cells = np.full((2048, 3), 200, np.uint8)
    cells[1001] = 0
    row = owners.strip(cells, 1024).astype(int)
    np.testing.assert_array_equal(np.flatnonzero((row != 200).any(axis=1)), [500])
    np.testing.assert_array_equal(row[500], 100)
