"""Tables that map the keys of a weights file to the leaves of our trees, with the order of their axes.

A family has one `Table` for each set of key names of its weights. An `Entry` names a module of ours and the
same module in the file, where `{}` is a whole number on both sides; its kind gives the names of the module's
leaves in the file and the order of their axes::

    Entry("stage{}_block{}/conv{}", "layer{}.{}.conv{}", CONV)

Every form is a permutation or a reshape, so that the way back is exact to the bit.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cwps_jax.errors import CwpsError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Form:
    """The order of a leaf's axes in a file.

    Attributes:
        to_file: from our leaf to the file's array.
        to_leaf: from the file's array and our shape to our leaf.
    """

    to_file: Callable[[np.ndarray], np.ndarray]
    to_leaf: Callable[[np.ndarray, Shape], np.ndarray]


AS_IS = Form(lambda leaf: leaf, lambda array, shape: array)
# A bias by heads (heads, head_dim) is one vector in the file.
FLAT = Form(lambda leaf: leaf.reshape(-1), lambda array, shape: array.reshape(shape))
# PyTorch's (out, in, height, width) against (height, width, in, out).
CONV_KERNEL = Form(lambda leaf: leaf.transpose(3, 2, 0, 1), lambda array, shape: array.transpose(2, 3, 1, 0))
# PyTorch's (out, in); every axis of ours but the last is fan-in.
DENSE_KERNEL = Form(
    lambda leaf: leaf.reshape(-1, leaf.shape[-1]).T, lambda array, shape: array.T.reshape(shape)
)
# The same with one axis of fan-in: (in, heads, head_dim).
HEADS_KERNEL = Form(
    lambda leaf: leaf.reshape(leaf.shape[0], -1).T, lambda array, shape: array.T.reshape(shape)
)

Kind = Mapping[str, tuple[str, Form]]

CONV: Kind = {"kernel": (".weight", CONV_KERNEL), "bias": (".bias", AS_IS)}
DENSE: Kind = {"kernel": (".weight", DENSE_KERNEL), "bias": (".bias", AS_IS)}
HEADS: Kind = {"kernel": (".weight", HEADS_KERNEL), "bias": (".bias", FLAT)}
NORM: Kind = {
    "scale": (".weight", AS_IS),
    "bias": (".bias", AS_IS),
    "mean": (".running_mean", AS_IS),
    "var": (".running_var", AS_IS),
}
# Files that Flax models were saved to have our names and axes.
FLAX: Kind = {name: (f"/{name}", AS_IS) for name in ("kernel", "bias", "scale", "mean", "var")}
# A parameter of the model itself: the entry names the leaf, not its module.
PARAMETER: Kind = {"": ("", AS_IS)}

COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a table.

    Attributes:
        ours: path of our module; or of several, whose arrays are one array in the file, in this order along
            its first axis (a fused query, key and value).
        theirs: the module in the file.
        kind: names of its leaves, and the order of their axes.
        resize: for an array whose size depends on that of the images: (array, our shape) -> array of our
            shape, or None if it cannot be resized.
    """

    ours: str | tuple[str, ...]
    theirs: str
    kind: Kind
    resize: Callable[[np.ndarray, Shape], np.ndarray | None] | None = None


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One key of a file: the leaves that it fills.

    Attributes:
        parts: (path, shape, form) of our leaves, in the order of the file's first axis.
        resize: as in `Entry`.
    """

    parts: tuple[tuple[str, Shape, Form], ...]
    resize: Callable[[np.ndarray, Shape], np.ndarray | None] | None = None

    @functools.cached_property
    def shape(self) -> Shape:
        """Shape of the file's array."""
        shapes = [_file_shape(form, shape) for _, shape, form in self.parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]

    def to_leaves(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {path: our leaf} from the file's array, which must have `shape`."""
        if len(self.parts) == 1:
            ((path, shape, form),) = self.parts
            return {path: np.ascontiguousarray(form.to_leaf(array, shape))}
        leaves, start = {}, 0
        for path, shape, form in self.parts:
            stop = start + _file_shape(form, shape)[0]
            leaves[path] = np.ascontiguousarray(form.to_leaf(array[start:stop], shape))
            start = stop
        return leaves

    def to_array(self, leaves: Mapping[str, Any]) -> np.ndarray:
        """Returns the file's array from our leaves."""
        arrays = [form.to_file(np.asarray(leaves[path])) for path, _, form in self.parts]
        # Contiguous: safetensors writes the buffer as it lies.
        return np.ascontiguousarray(np.concatenate(arrays) if len(arrays) > 1 else arrays[0])


@dataclasses.dataclass(frozen=True)
class Table:
    """All keys of a family's weights files, in one set of names.

    Attributes:
        name: name of the set: "torchvision", "timm", "original".
        entries: the entries; the first that fits a module counts.
        suffix: of the files.
        counted: whether they have PyTorch's batch counters.
    """

    name: str
    entries: Sequence[Entry]
    suffix: str = ".safetensors"
    counted: bool = True

    def conversions(self, leaves: Mapping[str, Any]) -> dict[str, Conversion]:
        """Returns {key of the file: the leaves that it fills}.

        Args:
            leaves: flat dict of arrays or shapes, {"params/...": ..., "batch_stats/...": ...}.

        Raises:
            CwpsError: a leaf that no entry covers.
        """
        found: dict[str, dict[int, tuple[str, Shape, Form]]] = {}
        resizes: dict[str, Any] = {}
        for path, leaf in leaves.items():
            key, part, form, entry = self._place(path)
            parts = found.setdefault(key, {})
            assert part not in parts, f"{key} is filled twice, by {path} and {parts[part][0]}"
            parts[part] = (path, tuple(leaf.shape), form)
            resizes[key] = entry.resize
        return {
            key: Conversion(tuple(parts[part] for part in sorted(parts)), resizes[key])
            for key, parts in found.items()
        }

    def counters(self, leaves: Mapping[str, Any]) -> set[str]:
        """Returns the keys of PyTorch's batch counters: no leaf of ours, nor of any use in inference."""
        keys = [self._place(path)[0] for path in leaves if path.endswith("/mean")] if self.counted else []
        return {f"{key.rpartition('.')[0]}.{COUNTER}" for key in keys}

    def _place(self, path: str) -> tuple[str, int, Form, Entry]:
        _, _, inner = path.partition("/")
        module, _, name = inner.rpartition("/")
        for entry in self.entries:
            alternatives = (entry.ours,) if isinstance(entry.ours, str) else entry.ours
            for part, pattern in enumerate(alternatives):
                match, leaf = _pattern(pattern).fullmatch(module), name
                if "" in entry.kind:
                    match, leaf = _pattern(pattern).fullmatch(inner), ""
                if match and leaf in entry.kind:
                    ending, form = entry.kind[leaf]
                    return entry.theirs.format(*match.groups()) + ending, part, form, entry
        raise CwpsError(f"{path}: the table {self.name!r} has no entry for it")


@functools.cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(r"\{\}", r"(\d+)"))


def _file_shape(form: Form, shape: Shape) -> Shape:
    # Zero strides: nothing is allocated for a transposed view, and little for a reshaped one.
    return form.to_file(np.broadcast_to(np.float32(0), shape)).shape
