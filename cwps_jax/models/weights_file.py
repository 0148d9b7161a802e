"""Weights files, whose keys, shapes and types are read before any array."""

import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from cwps_jax.errors import CwpsError
from cwps_jax.files import LFS_POINTER

# What can become float32 without loss, beside PyTorch's batch counters.
READABLE = ("float32", "float16", "bfloat16")
# What PyTorch's wrappers put before every name: DataParallel, compile, and training frameworks.
WRAPPERS = ("module.", "_orig_mod.", "model.")
_SAFETENSORS_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class WeightsFile:
    """A safetensors or npz file.

    Attributes:
        path: path of the file.
        prefix: the prefix of every name in the file, from a wrapper; the keys here are without it.
        shapes: {key: shape}.
        dtypes: {key: name of its type}.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._read: Callable[[str], Any]
        if not path.is_file():
            raise CwpsError(f"{path}: no such weights file")
        open_file = {".safetensors": self._open_safetensors, ".npz": self._open_npz}.get(path.suffix)
        if open_file is None:
            raise CwpsError(
                f"{path}: weights are read from .safetensors and .npz files; scripts/pth_to_safetensors.py "
                "converts a PyTorch checkpoint"
            )
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CwpsError(
                    f"{path}: a Git-LFS pointer, not the weights; run `git lfs pull` where it is from"
                )
        open_file()
        self.prefix = wrapper_prefix(self.shapes)
        start = len(self.prefix)
        self.shapes = {key[start:]: shape for key, shape in self.shapes.items()}
        self.dtypes = {key[start:]: dtype for key, dtype in self.dtypes.items()}

    def read(self, key: str) -> np.ndarray:
        """Returns an array as float32.

        Raises:
            CwpsError: it has values that are not finite.
        """
        try:
            array = np.asarray(self._read(self.prefix + key)).astype(np.float32)
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise CwpsError(f"{self.path}: {key} cannot be read ({error})") from error
        if not np.isfinite(array).all():
            raise CwpsError(f"{self.path}: {key} has values that are not finite")
        return array

    def check_types(self, keys: Mapping[str, Any]) -> None:
        """Raises CwpsError for the first of these keys whose type cannot become float32 exactly."""
        for key in keys:
            if self.dtypes[key] not in READABLE:
                raise CwpsError(
                    f"{self.path}: {key} is {self.dtypes[key]}, must be one of {', '.join(READABLE)}"
                )

    def _open_safetensors(self) -> None:
        import ml_dtypes  # noqa: F401  (NumPy learns of bfloat16)
        from safetensors import SafetensorError, safe_open

        try:
            file = safe_open(self.path, framework="numpy")
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError) as error:
            raise CwpsError(f"{self.path}: not a readable safetensors file ({error})") from error
        self.shapes = {key: tuple(one.get_shape()) for key, one in slices.items()}
        self.dtypes = {
            key: _SAFETENSORS_NAMES.get(one.get_dtype(), one.get_dtype()) for key, one in slices.items()
        }
        self._read = file.get_tensor

    def _open_npz(self) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive:
                for name in archive.namelist():
                    with archive.open(name) as member:
                        shape, dtype = _npy_header(member)
                    key = name.removesuffix(".npy")
                    self.shapes[key], self.dtypes[key] = shape, dtype.name
        except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
            raise CwpsError(f"{self.path}: not a readable npz file ({error})") from error
        self._read = self._read_npy

    def _read_npy(self, key: str) -> np.ndarray:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{key}.npy") as member:
            return np.lib.format.read_array(member)  # which refuses pickles by itself


def wrapper_prefix(keys: Iterable[str]) -> str:
    """Returns the prefix that a wrapper put before all names, "" if there is a name without it."""
    names, prefix = list(keys), ""
    while names:
        found = next((one for one in WRAPPERS if all(name.startswith(one) for name in names)), "")
        if not found:
            break
        prefix, names = prefix + found, [name.removeprefix(found) for name in names]
    return prefix


def _npy_header(member: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Returns shape and type of a .npy stream without reading its array, which may be far larger."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype
