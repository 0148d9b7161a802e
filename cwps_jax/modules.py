"""The Linen face of `core`: which module owns which leaf, and `ChannelShared`.

Shapes alone cannot tell a scanned Dense from an attention projection without bias. Linen modules can:
`channel_layout` traces `init` once, without computing anything, and asks the rule of each module's class.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, unfreeze
from flax.core.scope import subtract_filters

from cwps_jax.core import masks as core_masks
from cwps_jax.core.channels import Axes, Layout, layout_from_axes
from cwps_jax.core.mixing import mix
from cwps_jax.core.patterns import HEAD, PRIVATE, check_patterns, leaves_of_heads, matches
from cwps_jax.core.trees import flatten, select
from cwps_jax.errors import CwpsError
from cwps_jax.tracing import Owner, trace_parameters

Rule = Callable[[Any], Mapping[str, Axes | None]]

_RULES: dict[type[nn.Module], Rule] = {}


def channel_rule(module_class: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Registers where the output channels of a module class are; subclasses inherit it.

    The rule is a function of the module that returns {leaf: its channel axes}, counted from the end so
    that scanned copies need no rule of their own, or None for a leaf that each task keeps for itself.

    Args:
        module_class: a Linen module.

    Returns:
        A decorator of the rule.

    Examples:
        >>> import flax.linen as nn
        >>> class Bilinear(nn.Module):
        ...     '''kernel (left, right, features), bias (features,)'''
        >>> @channel_rule(Bilinear)
        ... def bilinear(module):
        ...     return {"kernel": (-1,), "bias": (-1,)}
    """

    def register(rule: Rule) -> Rule:
        _RULES[module_class] = rule
        return rule

    return register


@channel_rule(nn.Dense)
@channel_rule(nn.Conv)
def _last_axis(module: nn.Module) -> Mapping[str, Axes | None]:
    return {"kernel": (-1,), "bias": (-1,)}


@channel_rule(nn.ConvTranspose)
def _conv_transpose(module: nn.ConvTranspose) -> Mapping[str, Axes | None]:
    return {"kernel": (-2,) if module.transpose_kernel else (-1,), "bias": (-1,)}


@channel_rule(nn.DenseGeneral)
def _dense_general(module: nn.DenseGeneral) -> Mapping[str, Axes | None]:
    def as_tuple(value: int | Sequence[int]) -> tuple[int, ...]:
        return (value,) if isinstance(value, int) else tuple(value)

    features, inputs = len(as_tuple(module.features)), len(as_tuple(module.axis))
    batch = len(as_tuple(module.batch_dims))
    last = tuple(range(-features, 0))
    rank = batch + inputs + features  # batch dimensions come first and have channels of their own
    return {
        "kernel": (*range(-rank, -rank + batch), *last),
        "bias": (*range(-batch - features, -features), *last),
    }


@channel_rule(nn.BatchNorm)
@channel_rule(nn.LayerNorm)
@channel_rule(nn.GroupNorm)
@channel_rule(nn.RMSNorm)
@channel_rule(nn.InstanceNorm)
def _norm(module: nn.Module) -> Mapping[str, Axes | None]:
    return {"scale": None, "bias": None}


@channel_rule(nn.PReLU)
def _prelu(module: nn.PReLU) -> Mapping[str, Axes | None]:
    return {"negative_slope": None}


@channel_rule(nn.Embed)
def _embed(module: nn.Embed) -> Mapping[str, Axes | None]:
    return {"embedding": None}


def _rule_of(module: nn.Module) -> Rule | None:
    return next((_RULES[base] for base in type(module).__mro__ if base in _RULES), None)


def channel_layout(
    model: nn.Module,
    *args: Any,
    head: str | Sequence[str] = HEAD,
    private: Sequence[str] = (),
    rules: Mapping[str, Axes | None] | None = None,
    **kwargs: Any,
) -> Layout:
    """Returns where every leaf of a Linen model's parameters belongs, without computing anything.

    Args:
        model: any Linen module of layers that a rule covers.
        *args: example inputs of its `__call__`, arrays or `jax.ShapeDtypeStruct`.
        head: path of the module whose parameters are the head, or its name anywhere in the tree; or several.
        private: further patterns (`fnmatch`) over paths of leaves that each task keeps for itself, beside
            norms, embeddings, tokens and LayerScale; a pattern wins over a module's rule.
        rules: {pattern over paths: channel axes}, which win over the rules of the modules.
        **kwargs: further arguments of the model's `__call__`.

    Raises:
        CwpsError: a leaf that no rule covers, with its path and the way to add a rule, a pattern that matches
            nothing, or a head that is not a module of the model (but a model may have no "head").
    """
    shapes, owners = trace_parameters(model, *args, **kwargs)
    params = flatten(shapes)
    check_patterns((*private, *(rules or {})), params)
    head_paths = leaves_of_heads(head, params)
    axes = {
        path: _axes_of(path, leaf.shape, owners, (*PRIVATE, *private), rules or {})
        for path, leaf in params.items()
        if path not in head_paths
    }
    return layout_from_axes(shapes, axes, head=head_paths)


def _axes_of(
    path: str,
    shape: tuple[int, ...],
    owners: Mapping[str, Owner],
    private: Sequence[str],
    rules: Mapping[str, Axes | None],
) -> Axes | None:
    for pattern, axes in rules.items():
        if matches(path, [pattern]):
            return axes
    if matches(path, private):
        return None
    at, _, name = path.rpartition("/")
    owner = owners.get(at)
    if owner is not None and name not in owner.shapes:
        owner = None
    rule = _rule_of(owner.module) if owner else None
    if owner is None or rule is None or name not in rule(owner.module):
        if owner is None:
            raise CwpsError(
                f"{path}: the module of this leaf, shape {shape}, was not called in init; give its channel "
                "axes in rules=, or name it in private="
            )
        kind = type(owner.module).__name__
        raise CwpsError(
            f"{path}: no channel rule covers this leaf of {kind}, shape {shape}; add one with "
            f"@cwps_jax.channel_rule({kind}), or name it in private="
        )
    axes = rule(owner.module)[name]
    if axes is None:
        return None
    lifted = _lifted_axes(path, owner.shapes[name], shape)
    return (*lifted, *axes)


def _lifted_axes(path: str, inner: tuple[int, ...], outer: tuple[int, ...]) -> Axes:
    """Returns the axes that nn.scan or nn.vmap put in front of a module's own: each copy has channels.

    One leaf of equal sizes could hide another stacking axis; no model hides it in all of its leaves.
    """
    extra = len(outer) - len(inner)
    if extra and outer[extra:] != inner:
        raise CwpsError(
            f"{path}: its copies are not stacked on the leading axis ({inner} became {outer}); scan with "
            f"variable_axes={{'params': 0}}, or give its channel axes in rules="
        )
    return tuple(range(-len(outer), -len(inner)))


@contextlib.contextmanager
def batch_norm_overrides(**fields: Any) -> Iterator[None]:
    """Within it, every `nn.BatchNorm` of any Linen model runs with these fields instead of its own.

    `axis_name="data"` makes statistics global under pmap; `momentum=0.0` makes a call leave the batch's
    own statistics. A model need not know of either.
    """

    def override(next_function, args, kwargs, context):
        module = context.module
        called = isinstance(module, nn.BatchNorm) and context.method_name == "__call__"
        if called and any(getattr(module, name) != value for name, value in fields.items()):
            return module.clone(parent=module.scope, **fields)(*args, **kwargs)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(override):
        yield


class ChannelShared(nn.Module):
    """A Linen model whose layers take each output channel from a child or from a frozen parent.

    `init` creates four collections: `params`, the child, in the plain model's own tree; `parent`, the
    frozen layers, a copy of the child's until `composite_parent` says better; `masks`, one score per
    output channel; and whatever else the model has, such as `batch_stats`. `apply` mixes them with
    `cwps_jax.mix` and applies the plain model, once.

    Attributes:
        model: any Linen model of layers that a channel rule covers.
        estimator: how scores become gates, see `cwps_jax.gates`.
        head: name of the model's head, which is the child's alone.
        private: further patterns over paths of leaves that are the child's alone, see `channel_layout`.

    Examples:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> net = ChannelShared(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]))
        >>> variables = net.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> sorted(variables)
        ['masks', 'params', 'parent']
        >>> variables["masks"]["layers_0"]["kernel"].shape
        (1, 4)
    """

    model: nn.Module
    estimator: core_masks.Estimator = "annealed"
    head: str | Sequence[str] = HEAD
    private: Sequence[str] = ()

    @nn.compact
    def __call__(self, *args: Any, temperature: float | jax.Array | None = None, **kwargs: Any) -> Any:
        """Applies the mixed model.

        Args:
            *args: the model's inputs.
            temperature: s of the annealed gates, traced. None means hard gates.
            **kwargs: the model's own further arguments, such as `train`.

        Returns:
            The outputs of the model.
        """
        assert self.scope is not None  # Linen calls a compact method with a scope only
        plain = self.model.clone(parent=None)
        names = list(self.scope.rngs)
        if self.is_initializing():
            keys = {name: self.make_rng(name) for name in names}
            for collection, tree in unfreeze(nn.meta.unbox(plain.init(keys, *args, **kwargs))).items():
                self._store(collection, tree)
            layout = channel_layout(
                self.model.clone(parent=None), *args, head=self.head, private=self.private, **kwargs
            )
            params = self.variables["params"]
            # A copy: a donated child must not take the parent with it.
            self._store("parent", jax.tree.map(jnp.copy, select(params, layout.layer_paths)))
            self._store("masks", core_masks.init_scores(layout, self.estimator))
        variables = dict(self.variables)
        gates = core_masks.gates(variables.pop("masks"), temperature, estimator=self.estimator)
        variables["params"] = mix(variables.pop("parent"), variables["params"], gates)
        keys = {name: self.make_rng(name) for name in names if name != "params"}
        # What the caller may change, the model may: statistics, sown features. Never child or parent here.
        mutable = subtract_filters(self.scope.mutable, ("params", "parent", "masks"))
        output, changed = plain.apply(variables, *args, rngs=keys, mutable=mutable, **kwargs)
        if not self.is_initializing():  # as Linen's own norms: init leaves statistics at their start
            for collection, tree in unfreeze(changed).items():
                self._store(collection, tree)
        return output

    def _store(self, collection: str, tree: Mapping[str, Any] | FrozenDict) -> None:
        for name, value in tree.items():
            self.put_variable(collection, name, value)
