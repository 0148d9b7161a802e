"""An independent PyTorch model, and the weights file that it comes in."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from parity.timm_alone import resample_abs_pos_embed

Size = tuple[int, int]
Arrays = dict[str, np.ndarray]


def load_state(module: nn.Module, arrays: Arrays) -> None:
    """Fills a module under its own key names, position embeddings resampled by timm where sizes differ."""
    state = {key: torch.from_numpy(array) for key, array in arrays.items()}
    for key in {"pos_embed", "encoder.pos_embedding"} & state.keys():
        side = math.isqrt(module.state_dict()[key].shape[1] - 1)
        state[key] = resample_abs_pos_embed(state[key], [side, side])
    module.load_state_dict(state)


def state_of(module: nn.Module) -> Arrays:
    """Returns a module's parameters and buffers."""
    return {key: value.numpy().copy() for key, value in module.state_dict().items()}


@dataclasses.dataclass(frozen=True)
class Reference:
    """One model, and one set of key names of its weights files.

    Attributes:
        name: of the backbone; of a shrunk one, as tests/test_parity.py calls it.
        keys: name of our table of these key names.
        build: makes the module for images of a size.
        sizes: (height, width) of the images; the file is of the module for the first.
        options: of our backbone.
        gain: of the norms, see `arrays.weights`.
        to_file: from the module's state to the file's arrays.
        load: fills a module from the file's arrays.
        suffix: of the file.
    """

    name: str
    keys: str
    build: Callable[[Size], nn.Module]
    sizes: Sequence[Size] = ((224, 224), (97, 131))
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gain: float = 1.0
    to_file: Callable[[Arrays], Arrays] = dict
    load: Callable[[nn.Module, Arrays], None] = load_state
    suffix: str = ".safetensors"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns keys and shapes of the file."""
        return {key: array.shape for key, array in self.to_file(state_of(self.build(self.sizes[0]))).items()}

    def modules(self, arrays: Arrays) -> list[nn.Module]:
        """Returns the module for each size, filled from the file's arrays, ready for inference."""
        first = self.build(self.sizes[0])
        self.load(first, arrays)
        others = [self.build(size) for size in self.sizes[1:]]
        for module in others:
            load_state(module, state_of(first))
        return [module.eval() for module in (first, *others)]

    def save(self, folder: pathlib.Path, arrays: Arrays) -> pathlib.Path:
        """Writes the weights file into a folder; returns its path."""
        path = folder / f"weights{self.suffix}"
        if self.suffix == ".npz":
            np.savez(path, **arrays)
        else:
            save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, path)
        return path


@torch.inference_mode()
def logits(module: nn.Module, images: np.ndarray) -> np.ndarray:
    """Returns logits (batch, classes) of images (batch, height, width, channels)."""
    return module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
