"""Who stores each channel of a task, and the colour that each owner has in every picture."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.store.pool import PRETRAINED, Pool

Colour = tuple[int, int, int]

PRETRAINED_COLOUR: Colour = (214, 214, 214)

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

_FIRST = ("stem", "embed", "patch", "conv_init", "conv_root", "conv_stem")
_LAST = ("head", "classifier", "fc", "pre_logits")


def owner_colours(tasks: Iterable[str]) -> dict[str, Colour]:
    """Returns the colour of every owner: light grey for the pre-trained model, then one a task.

    A task's colour depends on its place alone, so it stays the same in every picture and when tasks are
    added. After the eighth task come the palette's hues darkened, then lightened, then all again.

    Args:
        tasks: names of the tasks, oldest first.
    """
    chromatic = _OKABE_ITO[:-1]
    palette = (
        *_OKABE_ITO,
        *(_mixed(colour, (0, 0, 0), 1 - _DARKER) for colour in chromatic),
        *(_mixed(colour, (255, 255, 255), _LIGHTER) for colour in chromatic),
    )
    names = dict.fromkeys(tasks)
    return {PRETRAINED: PRETRAINED_COLOUR} | {
        name: palette[place % len(palette)] for place, name in enumerate(names)
    }


def darker(colour: Colour) -> Colour:
    """Returns a shade for the outline of something filled with this colour."""
    return _mixed(colour, (0, 0, 0), 0.35)


def on_white(colour: Colour) -> Colour:
    """Returns the colour for thin lines on white: itself, or a shade of it where it is too light."""
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


def layer_colours(owners: np.ndarray, colours: Mapping[str, Colour]) -> np.ndarray:
    """Returns the colour of each channel of a layer: (channels, 3) uint8.

    Args:
        owners: (channels,) names of the owners, see `channel_owners`.
        colours: of every owner, see `owner_colours`.
    """
    unique, place = np.unique(owners, return_inverse=True)
    return np.array([colours[str(name)] for name in unique], np.uint8)[place]


def strip(cells: np.ndarray, pixels: int) -> np.ndarray:
    """Returns a layer's row of the picture: (pixels, 3) uint8, every channel equally wide.

    Where there are more channels than pixels, a pixel is the mean of what it covers, so that no channel
    is dropped; where cells are wide, a white line parts them.

    Args:
        cells: (channels, 3) uint8, see `layer_colours`.
        pixels: width of the row.
    """
    channels = len(cells)
    sums = np.concatenate([np.zeros((1, 3)), np.cumsum(cells, axis=0, dtype=np.float64)])
    edges = np.linspace(0, channels, pixels + 1)
    at_edges = np.stack([np.interp(edges, np.arange(channels + 1), one) for one in sums.T], axis=1)
    row = np.rint(np.diff(at_edges, axis=0) * (pixels / channels)).astype(np.uint8)
    if pixels >= 6 * channels:
        row[np.arange(1, channels) * pixels // channels] = 255
    return row


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _place(path: str) -> tuple[int, list[tuple[int, int | str]]]:
    rank = 0 if path.startswith(_FIRST) else 2 if path.startswith(_LAST) else 1
    parts = [part for part in re.split(r"(\d+)", path) if part]
    # A number and a word do not compare: each carries its kind.
    return rank, [(0, int(part)) if part.isdigit() else (1, part) for part in parts]
