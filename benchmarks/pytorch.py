"""The PyTorch side: plain fine-tuning, and TAPS, each as fast as PyTorch runs it.

TAPS (Wallingford et al. 2022) is stated anew from its paper and public code: every layer but the head
computes with weight + gate * residual; the weight is frozen, the residual starts at zero; one gate a layer, 1
where its score, which starts at 0.15, is at least 0.1, with the gradient straight through; the loss adds
lambda * sum |score| / layers; SGD with momentum and no weight decay, norms and head trained too.

Models run channels-last, in float32 or with bfloat16 autocast, eager or through torch.compile, whichever is
faster for the call.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from measurement import seconds_of
from torch import nn
from torch.nn.utils import parametrize

LAMBDA = 0.5
THRESHOLD, START = 0.1, 0.15
LEARNING_RATE = 0.01

Calls = dict[str, Callable[[], Any]]


class TapsWeight(nn.Module):
    """A frozen weight plus a gated residual."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.residual = nn.Parameter(torch.zeros_like(weight))  # keeps channels-last
        self.score = nn.Parameter(torch.full((1,), START, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        gate = (self.score >= THRESHOLD).float()
        return weight + (gate + self.score - self.score.detach()) * self.residual


def with_taps(model: nn.Module, head: nn.Module) -> list[nn.Parameter]:
    """Gives every convolution and linear layer but the head a residual; returns the scores."""
    layers = [
        layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer is not head
    ]
    scores = []
    for layer in layers:
        weight = TapsWeight(layer.weight)
        parametrize.register_parametrization(layer, "weight", weight)
        layer.parametrizations.weight.original.requires_grad_(False)
        scores.append(weight.score)
    return scores


class Side:
    """A batch on the device, and calls on models of one backbone.

    Args:
        arguments: with `backbone`, `size`, `batch` and `dtype`.
        steps: that a call of `train` takes before it waits for the device.
    """

    def __init__(self, arguments: argparse.Namespace, steps: int = 1) -> None:
        self._steps = steps
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cudnn.benchmark = True
        # As XLA does: the gradients of one batch, trained on again and again, become too small to be fast.
        torch.set_flush_denormal(True)
        torch.manual_seed(0)
        self._backbone = arguments.backbone
        self._half = arguments.dtype == "bfloat16"
        shape = (arguments.batch, 3, arguments.size, arguments.size)
        images = torch.randn(shape, device=self.device)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._labels = torch.randint(0, 10, shape[:1], device=self.device)

    def model(self) -> Any:
        """Returns a fresh backbone with a head of ten classes."""
        from parity.timm_alone import timm

        made = timm.create_model(self._backbone, num_classes=10)
        return made.to(self.device, memory_format=torch.channels_last)

    def check_same(self, first: nn.Module, second: nn.Module) -> None:
        """Ends the program unless two models give the same logits, as TAPS's does before its first step."""
        with torch.no_grad():
            one, other = first.eval()(self._images), second.eval()(self._images)
        if not torch.equal(one, other):
            raise SystemExit("TAPS's model does not start as the plain one: its residuals are not zero")

    def forward(self, model: nn.Module) -> Callable[[], None]:
        """Returns a call of the model in inference mode."""

        def call() -> None:
            model.eval()
            with torch.no_grad(), self._autocast():
                model(self._images)
            self._wait()

        return call

    def train(
        self, model: nn.Module, scores: list[nn.Parameter] | None = None, weight_decay: float = 0.0
    ) -> Callable[[], None]:
        """Returns a call that takes training steps; with TAPS's penalty where there are scores."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, LEARNING_RATE, momentum=0.9, weight_decay=weight_decay)

        def step() -> None:
            with self._autocast():
                loss = nn.functional.cross_entropy(model(self._images), self._labels)
            if scores:
                loss = loss + LAMBDA * sum(score.abs().sum() for score in scores) / len(scores)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        def call() -> None:
            model.train()
            for _ in range(self._steps):
                step()
            self._wait()

        return call

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self._half)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def fastest(
    calls_of: Callable[[Callable[[nn.Module], Any]], Calls], torch_compile: bool
) -> tuple[Calls, dict[str, Any]]:
    """Returns each call eager or compiled, whichever is faster here, and what was found.

    Args:
        calls_of: makes the calls, and applies what it is given to every model first.
        torch_compile: whether to try torch.compile.
    """
    calls = calls_of(lambda model: model)
    first, best = {}, {}
    for name, call in calls.items():
        first[name], best[name] = _warm(call)
    told: dict[str, Any] = {"torch": torch.__version__, "first_call_seconds": first}
    forms = dict.fromkeys(calls, "eager")
    if torch_compile:
        for name, call in calls_of(torch.compile).items():
            try:
                seconds, again = _warm(call)
            except Exception as error:  # whatever its compiler raises: the eager model stays, and it is said
                why = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                told.setdefault("not_compiled_because", {})[name] = why
                print(f"{name}: not compiled, {why}", file=sys.stderr)
                continue
            if again < best[name]:
                calls[name], forms[name], first[name] = call, "torch.compile", seconds
    return calls, {**told, "forms": forms}


def _warm(call: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds of the first call, and the median of the third to the fifth."""
    seconds = [seconds_of(call) for _ in range(5)]
    return seconds[0], statistics.median(seconds[2:])
