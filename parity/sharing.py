"""TAPS, LoRA and Piggyback stated anew in plain PyTorch: a loss, and the gradients of all that they train.

A small network is wrapped layer by layer; its head is trained as it is. All is computed in float64 from
float32 arrays. LoRA runs unmerged, beside the frozen layer; Piggyback keeps the pre-trained model's norm
statistics, in evaluation mode. parity/sharing_here.py has the other side.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from parity import arrays

Arrays = dict[str, np.ndarray]

IMAGES, CLASSES = (8, 8, 9, 3), 5
SMALLEST_GRADIENT = 1e-3


class StraightThrough(torch.autograd.Function):
    """What a function gives for real scores, with derivative 1."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, discrete: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        return discrete(scores).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class Taps(nn.Module):
    """A layer with W = P + I(s) D, I(s) = 1 where s >= 0.1.

    The public code gates no bias; here the bias goes with its kernel, as in `cwps_jax.methods.Taps`.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.score = nn.Parameter(torch.full((1,), 0.15))
        self.change = nn.ParameterDict(
            {name: torch.zeros_like(value) for name, value in layer.named_parameters()}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the layer's outputs with its changed weights."""
        gate = StraightThrough.apply(self.score, lambda score: score >= 0.1)
        weights = {name: value + gate * self.change[name] for name, value in self.layer.named_parameters()}
        return torch.func.functional_call(self.layer, weights, (x,))


class Lora(nn.Module):
    """A frozen layer with a low-rank one beside it: A to `rank` channels, B behind it, as PEFT has them."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.scale = scale
        if isinstance(layer, nn.Conv2d):
            size, stride, padding = layer.kernel_size, layer.stride, layer.padding
            self.a: nn.Module = nn.Conv2d(layer.in_channels, rank, size, stride, padding, bias=False)
            self.b: nn.Module = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.a = nn.Linear(layer.in_features, rank, bias=False)
            self.b = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the frozen layer's outputs and the scaled ones of A and B."""
        return self.layer(x) + self.scale * self.b(self.a(x))


class Piggyback(nn.Module):
    """A layer with W = m P: m = 1 where a score exceeds 0.005, -1 where a ternary one is below 0, else 0."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, ternary: bool) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.mask = nn.Parameter(torch.full_like(layer.weight, 0.01))
        self.ternary = ternary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the outputs of the layer with its masked kernel, and its bias as it is."""
        mask = StraightThrough.apply(self.mask, self._discrete)
        return torch.func.functional_call(self.layer, {"weight": self.layer.weight * mask}, (x,))

    def _discrete(self, scores: torch.Tensor) -> torch.Tensor:
        above = torch.where(scores > 0.005, 1.0, 0.0)
        return torch.where(scores < 0, -1.0, above) if self.ternary else above


class Network(nn.Module):
    """Two convolutions, the second with a stride and a bias, a batch norm, a linear layer and a head."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.conv1 = wrap(nn.Conv2d(3, 6, 3, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = wrap(nn.Conv2d(6, 8, 3, stride=2, padding=1))
        self.hidden = wrap(nn.Linear(8, 10))
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits (batch, classes)."""
        x = functional.silu(self.norm(self.conv1(x)))
        x = functional.silu(self.conv2(x)).mean((2, 3))
        return self.head(functional.silu(self.hidden(x)))


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with settings.

    Attributes:
        name: of the case and of its fixture.
        method: as `cwps_jax.methods` calls it.
        settings: of that method there.
        scores: TAPS's score of each layer.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def wrap(self, layer: Any) -> nn.Module:
        """Returns what the method makes of a layer."""
        if self.method == "taps":
            return Taps(layer)
        if self.method == "piggyback":
            return Piggyback(layer, self.settings["ternary"])
        rank, alpha = self.settings["rank"], self.settings["alpha"]
        return Lora(layer, rank, alpha / (math.sqrt(rank) if self.settings["rank_stabilised"] else rank))

    def network(self) -> Network:
        """Returns the network, in the mode in which the method trains it."""
        network = Network(self.wrap).train(self.method != "piggyback")
        network.norm.requires_grad_(self.method == "taps")
        return network

    def state(self, network: nn.Module) -> Arrays:
        """Returns the network's arrays anywhere in training, such that scores say all that they can say."""
        found = arrays.weights({key: value.shape for key, value in network.state_dict().items()})
        for key, array in found.items():
            module, _, kind = key.partition(".")
            if kind == "score":
                found[key] = np.full_like(array, self.scores[module])
            elif kind == "mask":
                rng = np.random.default_rng(zlib.crc32(key.encode()))
                found[key] = (0.01 * rng.standard_normal(array.shape)).astype(np.float32)
        return found


TAPS = {"lambda_": 0.5, "free_epochs": 0}
LORA = {"rank": 4, "alpha": 6.0}
CASES = (
    Case("taps_all_open", "taps", TAPS, {"conv1": 0.15, "conv2": 0.1, "hidden": 0.3}),
    Case("taps_two_closed", "taps", TAPS, {"conv1": 0.05, "conv2": 0.2, "hidden": -0.3}),
    Case("lora", "lora", {**LORA, "rank_stabilised": False}),
    Case("lora_rank_stabilised", "lora", {**LORA, "rank_stabilised": True}),
    Case("piggyback", "piggyback", {"ternary": False}),
    Case("piggyback_ternary", "piggyback", {"ternary": True}),
)


@torch.enable_grad()
def fixture(case: Case) -> tuple[Arrays, dict[str, Any]]:
    """Returns a case's arrays, and its method, settings and PyTorch's version.

    "state/..." is what the network starts from, "batch/..." what it sees, "loss" and "gradients/..." what
    comes of it, in PyTorch's layout and under its key names.

    Raises SystemExit where a gradient is too small to tell anything, or a closed change has one.
    """
    network = case.network().double()
    state = case.state(network)
    network.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()})
    images = np.ascontiguousarray(arrays.images(IMAGES).transpose(0, 3, 1, 2))
    labels = np.random.default_rng(0).integers(CLASSES, size=len(images))
    loss = functional.cross_entropy(network(torch.from_numpy(images).double()), torch.from_numpy(labels))
    scores = [one.score for one in network.modules() if isinstance(one, Taps)]
    if scores:
        loss = loss + case.settings["lambda_"] * torch.stack([one.abs().sum() for one in scores]).mean()
    loss.backward()
    found = {f"state/{key}": array for key, array in state.items() if not key.endswith(arrays.COUNTER)}
    found |= {"batch/images": images, "batch/labels": labels, "loss": loss.detach().float().numpy()}
    for key, parameter in network.named_parameters():
        if parameter.grad is not None:
            found[f"gradients/{key}"] = parameter.grad.float().numpy()
            largest = float(parameter.grad.abs().max())
            closed = ".change." in key and case.scores[key.partition(".")[0]] < 0.1
            if largest != 0 if closed else largest < SMALLEST_GRADIENT:
                raise SystemExit(f"{case.name}: {key} has gradients of up to {largest}")
    about = {"method": case.method, "settings": dict(case.settings), "torch": str(torch.__version__)}
    return found, about
