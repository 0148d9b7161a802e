"""Who stores a channel, and the colours of owners: what they mean does not depend on how many there are."""

import numpy as np
import pytest

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.report import owners
from cwps_jax.store.pool import PRETRAINED


def test_a_series_has_its_colour_by_its_place_and_colours_do_not_repeat_early():
    few, many = owners.series_colours("abc"), owners.series_colours("abcdefghijklmnopqrstuv")
    assert all(many[name] == colour for name, colour in few.items())
    assert len(set(many.values())) == len(many) == 22


def test_the_legend_stays_short_however_many_tasks_there_are():
    """Of fifty tasks each takes a hundredth from every earlier one, so that the earliest lend most."""
    names = [f"task{number}" for number in range(50)]
    relations = {
        name: {PRETRAINED: 1 - 0.01 * (place + 1), name: 0.01, **dict.fromkeys(names[:place], 0.01)}
        for place, name in enumerate(names)
    }
    colours = owners.owner_colours(relations)
    assert list(colours) == [owners.OWN, *names[:6], owners.OTHERS, PRETRAINED]
    assert len(set(colours.values())) == 9
    shares = owners.stacked(relations["task49"], "task49", colours)
    assert shares[owners.OTHERS] == pytest.approx(0.43) and sum(shares.values()) == pytest.approx(1)
    few = owners.owner_colours(dict(list(relations.items())[:4]))
    assert all(colours[key] == colour for key, colour in few.items())


def test_the_network_order_counts_and_keeps_stem_and_head_outside():
    paths = ("head/kernel", "stage10/conv1/kernel", "stage2/conv1/kernel", "stem_conv/kernel", "blocks/0/w")
    layout = Layout(tuple(Layer(path, (path,), ((2, 2),), (1, 2)) for path in paths), (), ())
    in_order = [layer.path for layer in owners.layers_in_order(layout)]
    assert in_order == [
        "stem_conv/kernel",
        "blocks/0/w",
        "stage2/conv1/kernel",
        "stage10/conv1/kernel",
        "head/kernel",
    ]


def test_a_strip_narrower_than_its_layer_drops_no_channel():
    stores = np.array(["a"] * 2047 + ["b"])
    colours = {owners.OWN: (200, 200, 200), "b": (0, 0, 0)}
    row = owners.strip(stores, "a", colours, 1024).astype(int)
    np.testing.assert_array_equal(np.flatnonzero((row != 200).any(axis=1)), [1023])
    np.testing.assert_array_equal(row[1023], 100)
