"""A backbone with its weights: `load_backbone`, and the way back, `save_backbone`."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.trees import flatten, select, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.extras import check_extra
from cwps_jax.files import replacing
from cwps_jax.models import find
from cwps_jax.models.conversion import Conversion, Table
from cwps_jax.models.weights_file import WeightsFile

HEAD = "head"
SHOWN = 4  # keys that a refusal names


def load_backbone(
    name: str,
    weights: str | pathlib.Path | None = None,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    seed: int = 0,
    headless: bool = False,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a backbone and its variables.

    Args:
        name: one of `cwps_jax.BACKBONES`.
        weights: a safetensors file with torchvision's or timm's keys, an npz file with those of the original
            Flax models, or `hf://owner/repo/file` (with the extra `hub`). None starts from random weights.
        num_classes: outputs of the head; by default as many as the file's. A head of another size in the file
            is left out, and a new one made.
        image_size: side of the images, or (height, width), in pixels. It matters if parameters depend on it:
            position embeddings are resized, and a Mixer of another size is refused.
        channels: number of channels of the images.
        seed: seed of the variables that are not in the file.
        headless: whether a file without a head is taken too, and a new head made.
        **options: the family's own, such as `dtype`, `remat`, `stochastic_depth`.

    Returns:
        The Linen module, called by `model.apply(variables, images, train=False)` with normalised NHWC images,
        and its variables: "params" and, if it has norm statistics, "batch_stats"; NumPy, float32.

    Raises:
        CwpsError: an unknown name or option, or a file that cannot be read or does not fit. Then the first
            missing and surplus keys and those of another shape are named, with their common prefix.
    """
    backbone = find(name)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size or (None, None)
    size = (height or backbone.image_size, width or backbone.image_size)
    example = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    if weights is None:
        model = backbone.create(num_classes or backbone.num_classes, **options)
        return model, initialise(model, example, seed)
    file = WeightsFile(local_weights(weights))
    published = _shapes(backbone.create(backbone.num_classes, **options), example)
    table = _table_of(file, backbone.tables, published)
    classes = _classes(file, table, published)
    model = backbone.create(num_classes or classes or backbone.num_classes, **options)
    wanted = _shapes(model, example)
    new_head = num_classes is not None and num_classes != classes
    new_head |= headless and not _has_head(file, table, published)
    leaves = {path: leaf for path, leaf in wanted.items() if not (new_head and _in_head(path))}
    conversions = table.conversions(leaves)
    left_out = table.conversions(wanted).keys() - conversions.keys()
    _check(file, name, table, conversions, left_out | table.counters(wanted))
    loaded: dict[str, Any] = {}
    for key, conversion in conversions.items():
        loaded.update(conversion.to_leaves(_fitted(file.read(key), conversion)))
    if new_head:
        loaded.update(flatten(initialise(model, example, seed, only_head=True)))
    return model, unflatten(loaded)


def save_backbone(
    path: str | pathlib.Path,
    name: str,
    variables: Mapping[str, Any],
    *,
    keys: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a backbone's variables to a safetensors file that PyTorch users can load.

    `load_backbone` reads it back, equal to the bit. PyTorch's `num_batches_tracked` are written as 0.

    Args:
        path: file to write, replaced if it is there.
        name: one of `cwps_jax.BACKBONES`.
        variables: "params" and the other collections, such as those of `Pool.effective`.
        keys: set of key names, such as "torchvision" or "timm"; the backbone's first by default.
        metadata: {key: text} for the file's metadata.

    Raises:
        CwpsError: unknown backbone or set of names, variables that are not this backbone's, or a full disk;
            an earlier file of this name is then unchanged.

    Examples:
        >>> save_backbone("birds.safetensors", "resnet50", pool.effective("birds"))  # doctest: +SKIP
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tables = {one.name: one for one in find(name).tables if one.suffix == ".safetensors"}
    if keys is not None and keys not in tables:
        raise CwpsError(f"{name} has no key names {keys!r} to write; choose one of {', '.join(tables)}")
    table = tables[keys or next(iter(tables))]
    leaves = flatten(variables)
    arrays = {key: one.to_array(leaves) for key, one in table.conversions(leaves).items()}
    arrays.update({key: np.zeros((), np.int64) for key in sorted(table.counters(leaves))})
    path = pathlib.Path(path)
    with replacing(path) as partial:
        try:
            save_file(arrays, partial, metadata={**(metadata or {}), "format": "pt"})
        except SafetensorError as error:  # to it a full disk is no OSError
            why = " ".join(str(error).split())
            raise CwpsError(f"{path}: cannot be written ({why}); make room there, or name another") from error


def initialise(
    model: nn.Module, example: jax.ShapeDtypeStruct, seed: int, *, only_head: bool = False
) -> dict[str, Any]:
    """Returns random variables of a model, or of its head alone, by its own initialisers, on the host."""

    @jax.jit
    def variables(key: jax.Array) -> Any:
        made = model.init(key, jnp.zeros(example.shape, example.dtype))
        # Under jit the compiler drops what is not asked for.
        return select(made, [path for path in flatten(made) if _in_head(path)]) if only_head else made

    return dict(jax.device_get(variables(jax.random.key(seed))))


def _shapes(model: nn.Module, example: jax.ShapeDtypeStruct) -> dict[str, Any]:
    return flatten(jax.eval_shape(model.init, jax.random.key(0), example))


def _in_head(path: str) -> bool:
    return HEAD in path.split("/")[:-1]


def local_weights(weights: str | pathlib.Path) -> pathlib.Path:
    """Returns the path of a weights file, downloaded if it is `hf://owner/repo/file`.

    Raises:
        CwpsError: it cannot be downloaded.
    """
    if not str(weights).startswith("hf://"):
        return pathlib.Path(weights).expanduser()
    parts = str(weights).removeprefix("hf://").split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise CwpsError(f"{weights}: give the file as hf://owner/repo/file")
    check_extra("hub", str(weights))
    from huggingface_hub import hf_hub_download

    try:
        return pathlib.Path(hf_hub_download("/".join(parts[:2]), parts[2]))
    except (OSError, ValueError) as error:  # the bases of all that the hub's client raises
        raise CwpsError(f"{weights}: cannot be downloaded from the hub: {error}") from error


def _table_of(file: WeightsFile, tables: Sequence[Table], published: Mapping[str, Any]) -> Table:
    """Returns the table of which the file has the most keys."""
    fitting = [table for table in tables if table.suffix == file.path.suffix]
    if not fitting:
        suffixes = " or ".join(sorted({table.suffix for table in tables}))
        raise CwpsError(f"{file.path}: weights of this backbone come as {suffixes}")

    def shared(table: Table) -> int:
        return len(table.conversions(published).keys() & file.shapes.keys())

    return max(fitting, key=shared)


def _classes(file: WeightsFile, table: Table, published: Mapping[str, Any]) -> int | None:
    """Returns the number of classes of the file's head, None if it has no head."""
    head = {path: leaf for path, leaf in published.items() if _in_head(path)}
    for key, conversion in table.conversions(head).items():
        if conversion.parts[0][0].endswith("/bias") and key in file.shapes:
            return file.shapes[key][0]
    return None


def _has_head(file: WeightsFile, table: Table, published: Mapping[str, Any]) -> bool:
    head = {path: leaf for path, leaf in published.items() if _in_head(path)}
    return not table.conversions(head).keys().isdisjoint(file.shapes)


def _few(keys: Sequence[str]) -> str:
    """Returns the first of some keys and, if there are many, their common prefix."""
    if len(keys) <= SHOWN:
        return ", ".join(keys)
    start = os.path.commonprefix(keys)  # noqa: RUF071  (names, not paths)
    common = f", all of them {start}..." if start else ""
    return f"{', '.join(keys[:SHOWN])} and {len(keys) - SHOWN} more{common}"


def _check(
    file: WeightsFile,
    name: str,
    table: Table,
    conversions: Mapping[str, Conversion],
    spare: set[str],
) -> None:
    """Raises CwpsError unless the file has just these keys in their shapes; `spare` ones may be there."""
    found = file.shapes
    missing = sorted(conversions.keys() - found.keys())
    surplus = sorted(found.keys() - conversions.keys() - spare)
    misshapen = [
        f"{key} is {found[key]}, must be {one.shape}"
        for key, one in sorted(conversions.items())
        if key in found and found[key] != one.shape and not _can_resize(found[key], one)
    ]
    problems = [
        f"{what} ({len(keys)}): {_few(keys)}"
        for what, keys in (("missing", missing), ("surplus", surplus), ("wrong shape", misshapen))
        if keys
    ]
    if problems:
        raise CwpsError(
            f"{file.path}: does not fit {name}, read with {table.name} key names; {'; '.join(problems)}"
        )
    file.check_types(conversions)


def _can_resize(shape: tuple[int, ...], conversion: Conversion) -> bool:
    if conversion.resize is None:
        return False
    return conversion.resize(np.broadcast_to(np.float32(0), shape), conversion.shape) is not None


def _fitted(array: np.ndarray, conversion: Conversion) -> np.ndarray:
    if array.shape == conversion.shape or conversion.resize is None:
        return array
    resized = conversion.resize(array, conversion.shape)
    assert resized is not None  # it was asked before
    return resized
