"""Packages that only a part of the work needs, by the extra of cwps_jax that installs them."""

import importlib.util

from cwps_jax.errors import CwpsError

# The modules that are imported, not the names of the packages.
EXTRAS: dict[str, tuple[str, ...]] = {
    "demo": ("sklearn",),
    "export": ("flatbuffers",),
    "hub": ("huggingface_hub",),
    "huggingface": ("datasets",),
    "mlflow": ("mlflow",),
    "photos": ("cv2",),
    "report": ("matplotlib",),
    "serve": ("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
    "tensorboard": ("tensorboardX",),
    "tfds": ("tensorflow_datasets",),
    "wandb": ("wandb",),
}


def check_extra(extra: str, work: str) -> None:
    """Raises CwpsError where a module of an extra is not installed; imports nothing.

    Args:
        extra: a key of `EXTRAS`.
        work: what needs it, in the singular, which begins the message.
    """
    missing = [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]
    if missing:
        needed = ", ".join(missing)
        raise CwpsError(f"{work} needs {needed}, not installed here: pip install 'cwps_jax[{extra}]'")
