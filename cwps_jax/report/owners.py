"""The owner of each channel of a task, and the colour of each owner in a run's pictures."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.store.pool import PRETRAINED, Pool

Colour = tuple[int, int, int]
Relations = Mapping[str, Mapping[str, float]]  # {task: {owner: share of the task's channels}}

# Keys of colours that are no task's name, in which there is no slash.
OWN, OTHERS = "/own", "/others"
_NAMED = 6  # lenders that have a colour of their own

# Okabe and Ito's colour-blind safe palette, the ones that are strongest beside light grey first.
_OKABE_ITO: tuple[Colour, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 0, 0),
)
_DARKER, _LIGHTER = 0.55, 0.5
_PRETRAINED_COLOUR: Colour = (214, 214, 214)
_OTHERS_COLOUR: Colour = (105, 105, 105)

_FIRST = ("stem", "embed", "patch", "conv_init", "conv_root", "conv_stem")
_LAST = ("head", "classifier", "fc", "pre_logits")


def owner_colours(relations: Relations) -> dict[str, Colour]:
    """Returns the colour of every owner, in the order in which they are stacked.

    The channels that a task stores itself have one colour for all tasks, and the pre-trained model has one.
    The tasks that lend most channels have a colour each, in the tasks' order; the other lending tasks share
    one. So the legend has at most nine entries for any number of tasks.

    Args:
        relations: the relations of all drawn tasks, oldest first.

    Returns:
        A dict with the keys `OWN`, names of tasks, `OTHERS` if there are any, and "pretrained".
    """
    lent: dict[str, float] = {}
    for task, relation in relations.items():
        for owner, share in relation.items():
            if owner not in (task, PRETRAINED) and share:
                lent[owner] = lent.get(owner, 0.0) + share
    largest = sorted(lent, key=lambda name: -lent[name])[:_NAMED]
    places = {name: place for place, name in enumerate(relations)}
    named = sorted(largest, key=lambda name: (places.get(name, len(places)), name))
    colours = dict(zip((OWN, *named), _OKABE_ITO[: 1 + len(named)], strict=True))
    return {
        **colours,
        **({OTHERS: _OTHERS_COLOUR} if len(lent) > len(named) else {}),
        PRETRAINED: _PRETRAINED_COLOUR,
    }


def stacked(relation: Mapping[str, float], task: str, colours: Mapping[str, Colour]) -> dict[str, float]:
    """Returns {key of a colour: share of a task}, in the order in which they are stacked.

    Args:
        relation: {owner: share} of the task.
        task: its name.
        colours: see `owner_colours`.
    """
    shares = dict.fromkeys(colours, 0.0)
    for owner, share in relation.items():
        shares[_key(owner, task, colours)] += share
    return shares


def owner_label(key: str) -> str:
    """Returns the legend's text for the key of a colour."""
    return {OWN: "the task itself", OTHERS: "other tasks", PRETRAINED: "pre-trained model"}.get(key, key)


def series_colours(names: Iterable[str]) -> dict[str, Colour]:
    """Returns a colour for each of several series, only by its position.

    After the eighth come the palette's hues darkened, then lightened, then all again.

    Args:
        names: of the series.
    """
    chromatic = _OKABE_ITO[:-1]
    palette = (
        *_OKABE_ITO,
        *(_mixed(colour, (0, 0, 0), 1 - _DARKER) for colour in chromatic),
        *(_mixed(colour, (255, 255, 255), _LIGHTER) for colour in chromatic),
    )
    return {name: palette[place % len(palette)] for place, name in enumerate(dict.fromkeys(names))}


def darker(colour: Colour) -> Colour:
    """Returns a shade for the outline of something filled with this colour."""
    return _mixed(colour, (0, 0, 0), 0.35)


def on_white(colour: Colour) -> Colour:
    """Returns the colour for thin lines on white: itself, or a darker shade if it is too light."""
    luminance = sum(weight * part / 255 for weight, part in zip((0.21, 0.72, 0.07), colour, strict=True))
    return _mixed(colour, (0, 0, 0), 0.25) if luminance > 0.7 else colour


def layers_in_order(layout: Layout) -> tuple[Layer, ...]:
    """Returns the layers in the network's order, as far as their names tell.

    Numbers count as numbers (block2 before block10), a stem or an embedding is first, a head is last.
    """
    return tuple(sorted(layout.layers, key=lambda layer: _place(layer.path)))


def channel_owners(pool: Pool, task: str) -> dict[str, np.ndarray]:
    """Returns {path of a kernel: (channels,) names of each channel's owner}, in the network's order.

    Args:
        pool: the stored models.
        task: a task's name, or "task@n".
    """
    names = {0: PRETRAINED} | {version.id: version.task for version in pool.index.versions}
    ownership = pool.ownership(task)
    found = {}
    for layer in layers_in_order(pool.layout):
        unique, place = np.unique(ownership[layer.path][0], return_inverse=True)
        found[layer.path] = np.array([names[int(identity)] for identity in unique])[place]
    return found


def strip(owners: np.ndarray, task: str, colours: Mapping[str, Colour], pixels: int) -> np.ndarray:
    """Returns a layer's row of the picture, (pixels, 3) uint8: its channels sorted by owner, equally wide.

    A pixel is the mean of the channels that it covers, so no channel is left out if there are more channels
    than pixels.

    Args:
        owners: (channels,) names of the channels' owners, see `channel_owners`.
        task: whose channels they are.
        colours: of every owner, see `owner_colours`.
        pixels: width of the row.
    """
    names, counts = np.unique(owners, return_counts=True)
    relation = {str(name): float(count) for name, count in zip(names, counts, strict=True)}
    ends = np.cumsum([0, *stacked(relation, task, colours).values()])
    edges = np.linspace(0, len(owners), pixels + 1)
    row = np.zeros((pixels, 3))
    for colour, start, stop in zip(colours.values(), ends[:-1], ends[1:], strict=True):
        covered = np.diff(np.clip(edges, start, stop)) * (pixels / len(owners))
        row += covered[:, None] * np.array(colour)
    return np.rint(row).astype(np.uint8)


def _key(owner: str, task: str, colours: Mapping[str, Colour]) -> str:
    return OWN if owner == task else owner if owner in colours else OTHERS


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _place(path: str) -> tuple[int, list[tuple[int, int | str]]]:
    rank = 0 if path.startswith(_FIRST) else 2 if path.startswith(_LAST) else 1
    parts = [part for part in re.split(r"(\d+)", path) if part]
    # A number and a word do not compare: each carries its kind.
    return rank, [(0, int(part)) if part.isdigit() else (1, part) for part in parts]
