"""Weights files as they were first published: other names, and for the Flax models other axes."""

import pathlib
import re
import tempfile
from collections.abc import Mapping

import numpy as np
from torch import nn

from parity.reference import Arrays, load_state, state_of
from parity.timm_alone import densenet

COUNTER = "num_batches_tracked"


def densenet_arrays(state: Arrays) -> Arrays:
    """Returns a DenseNet's arrays as torchvision published them: older names, no batch counters."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))", r"\1.", key): array
        for key, array in state.items()
        if not key.endswith(COUNTER)
    }


def load_densenet(module: nn.Module, arrays: Arrays) -> None:
    """Fills a DenseNet from such arrays, by timm's own renaming."""
    counters = {key: array for key, array in state_of(module).items() if key.endswith(COUNTER)}
    load_state(module, {**densenet._filter_torchvision_pretrained(dict(arrays)), **counters})


def vit_arrays(state: Arrays, heads: int) -> Arrays:
    """Returns a timm ViT's arrays as Dosovitskiy et al. published them."""
    arrays = _flax_arrays(state, _VIT)
    arrays["cls"] = state["cls_token"]
    arrays["Transformer/posembed_input/pos_embedding"] = state["pos_embed"]
    width = state["cls_token"].shape[-1]
    for block in range(sum(key.endswith("attn.qkv.bias") for key in state)):
        theirs = f"blocks.{block}.attn"
        ours = f"Transformer/encoderblock_{block}/MultiHeadDotProductAttention_1"
        kernels, biases = (np.split(state[f"{theirs}.qkv.{leaf}"], 3) for leaf in ("weight", "bias"))
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            arrays[f"{ours}/{name}/kernel"] = kernel.T.reshape(width, heads, -1)
            arrays[f"{ours}/{name}/bias"] = bias.reshape(heads, -1)
        arrays[f"{ours}/out/kernel"] = state[f"{theirs}.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{ours}/out/bias"] = state[f"{theirs}.proj.bias"]
    return arrays


def load_vit(module: nn.Module, arrays: Arrays) -> None:
    """Fills a timm ViT from such arrays, by timm's own reader."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "vit.npz"
        np.savez(path, **arrays)
        module.load_pretrained(str(path))


def mixer_arrays(state: Arrays) -> Arrays:
    """Returns a timm Mixer's arrays as Tolstikhin et al. published them."""
    return _flax_arrays(state, _MIXER)


def load_mixer(module: nn.Module, arrays: Arrays) -> None:
    """Fills a timm Mixer from such arrays."""
    filled = {}
    for key, array in state_of(module).items():
        name, axes = _flax_name(key, array.ndim, _MIXER)
        filled[key] = np.ascontiguousarray(arrays[name].transpose(np.argsort(axes)))
    load_state(module, filled)


_VIT = {
    r"patch_embed\.proj": "embedding",
    r"blocks\.(\d+)\.norm1": r"Transformer/encoderblock_\1/LayerNorm_0",
    r"blocks\.(\d+)\.norm2": r"Transformer/encoderblock_\1/LayerNorm_2",
    r"blocks\.(\d+)\.mlp\.fc1": r"Transformer/encoderblock_\1/MlpBlock_3/Dense_0",
    r"blocks\.(\d+)\.mlp\.fc2": r"Transformer/encoderblock_\1/MlpBlock_3/Dense_1",
    r"norm": "Transformer/encoder_norm",
    r"head": "head",
}
_MIXER = {
    r"stem\.proj": "stem",
    r"blocks\.(\d+)\.norm1": r"MixerBlock_\1/LayerNorm_0",
    r"blocks\.(\d+)\.norm2": r"MixerBlock_\1/LayerNorm_1",
    r"blocks\.(\d+)\.mlp_tokens\.fc1": r"MixerBlock_\1/token_mixing/Dense_0",
    r"blocks\.(\d+)\.mlp_tokens\.fc2": r"MixerBlock_\1/token_mixing/Dense_1",
    r"blocks\.(\d+)\.mlp_channels\.fc1": r"MixerBlock_\1/channel_mixing/Dense_0",
    r"blocks\.(\d+)\.mlp_channels\.fc2": r"MixerBlock_\1/channel_mixing/Dense_1",
    r"norm": "pre_head_layer_norm",
    r"head": "head",
}


def _flax_name(key: str, rank: int, names: Mapping[str, str]) -> tuple[str, tuple[int, ...]] | None:
    """Returns Flax's name of an array and the order of its axes there, None where `names` lacks it."""
    module, _, leaf = key.rpartition(".")
    ending = leaf if leaf == "bias" else "scale" if rank == 1 else "kernel"
    for pattern, name in names.items():
        if match := re.fullmatch(pattern, module):
            return f"{match.expand(name)}/{ending}", {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[rank]
    return None


def _flax_arrays(state: Arrays, names: Mapping[str, str]) -> Arrays:
    found = ((_flax_name(key, array.ndim, names), array) for key, array in state.items())
    return {name[0]: array.transpose(name[1]) for name, array in found if name}
