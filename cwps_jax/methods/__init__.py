"""Sharing methods, by name: each a frozen dataclass of its settings, on the protocol in `methods.method`.

`register` adds a method of your own; main's config, the pool, results and pictures then know it like the
others.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cwps_jax.errors import CwpsError
from cwps_jax.methods.adapter import Adapter
from cwps_jax.methods.atlas import Atlas
from cwps_jax.methods.ba2 import Ba2
from cwps_jax.methods.bitfit import BitFit
from cwps_jax.methods.cwps import Cwps
from cwps_jax.methods.dualprompt import DualPrompt
from cwps_jax.methods.finetune import Finetune
from cwps_jax.methods.l2p import L2P
from cwps_jax.methods.lora import Lora
from cwps_jax.methods.method import Method
from cwps_jax.methods.norm_only import NormOnly
from cwps_jax.methods.packnet import PackNet
from cwps_jax.methods.piggyback import Piggyback
from cwps_jax.methods.probe import Probe
from cwps_jax.methods.ssf import Ssf
from cwps_jax.methods.taps import Taps
from cwps_jax.settings.checks import unknown_key

_OURS: tuple[type[Method], ...] = (Cwps, Finetune, Probe, NormOnly, BitFit, Ssf, Taps, Piggyback, PackNet)
_OURS = (*_OURS, Lora, Adapter, Atlas, Ba2, L2P, DualPrompt)
METHODS: dict[str, type[Method]] = {method.name: method for method in _OURS}


def register(method: type[Method]) -> type[Method]:
    """Makes a method known by its name; usable as a decorator.

    Raises:
        CwpsError: it has no name, or that of another method.
    """
    if not method.name or METHODS.setdefault(method.name, method) is not method:
        raise CwpsError(f"a method cannot be called {method.name!r}: give it another name")
    return method


def find(name: str) -> type[Method]:
    """Returns the method of that name. Raises CwpsError for an unknown name."""
    if name not in METHODS:
        raise CwpsError(f"method {name!r} is not known; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def resolve(method: Any) -> Method:
    """Returns the method of a `TrainConfig`, which names it or gives it with its settings.

    Raises:
        CwpsError: it is neither.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise CwpsError(f"config.method = {method!r}: must be a method's name, or a Method with its settings")
    return find(method)()


def with_settings(name: str, settings: Mapping[str, Any]) -> Method:
    """Returns the method of that name with settings from plain values, such as those of a config or a pool.

    Raises:
        CwpsError: an unknown method or setting, or a value that is not allowed.
    """
    method = find(name)
    known = [field.name for field in dataclasses.fields(method)]
    for key in settings:
        if key not in known:
            raise CwpsError(unknown_key(key, known, f"{name}."))
    return method(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    )
