"""Converts a PyTorch checkpoint to safetensors, once, so that cwps_jax never has to unpickle anything.

    python scripts/pth_to_safetensors.py resnet50.pth resnet50.safetensors

Needs torch and safetensors, which need not be where cwps_jax is installed. The checkpoint is read with
weights_only=True: tensors and plain containers, no code. A state dict under "state_dict", "model" or
"model_ema" is taken out of its checkpoint (name another one by --under), and the "module." that DataParallel
puts before every key is dropped.
"""

import argparse
import pathlib
import pickle
import sys

import torch
from safetensors.torch import save_file


def state_dict(checkpoint: object, under: str | None) -> dict[str, torch.Tensor]:
    """Returns the tensors of a checkpoint, keys without "module."."""
    names = [under] if under else ["state_dict", "model", "model_ema"]
    found = next(
        (checkpoint[name] for name in names if isinstance(checkpoint, dict) and name in checkpoint), None
    )
    if found is None and under:
        sys.exit(f"the checkpoint has no {under!r}; it has {', '.join(map(str, checkpoint))}")
    tensors = checkpoint if found is None else found
    others = [key for key, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if others:
        sys.exit(
            f"not a state dict: {', '.join(map(str, others[:5]))} are not tensors; "
            "name the right one by --under"
        )
    # A copy of each: safetensors refuses tensors that share memory.
    return {
        key.removeprefix("module."): value.detach().clone().contiguous() for key, value in tensors.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--under", help="name of the state dict in the checkpoint")
    arguments = parser.parse_args()
    try:
        checkpoint = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        sys.exit(f"{arguments.checkpoint}: holds more than tensors; save its model.state_dict() instead")
    tensors = state_dict(checkpoint, arguments.under)
    save_file(tensors, arguments.out, metadata={"format": "pt"})
    print(f"{arguments.out}: {len(tensors)} tensors")


if __name__ == "__main__":
    main()
