"""The parts that L2P and DualPrompt share: a Vision Transformer with prompts, itself unchanged.

Prompts are a collection of their own, besides the plain model's parameters. The answer for an image never
depends on the other images of a batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cwps_jax.core.trees import Tree, flatten, unite
from cwps_jax.errors import CwpsError
from cwps_jax.inputs import Inputs, input_names
from cwps_jax.methods.method import Clock, Effective, Restoring, Rule
from cwps_jax.methods.network import Network
from cwps_jax.methods.parts import Parts
from cwps_jax.settings import TrainConfig
from cwps_jax.tracing import mode


@dataclasses.dataclass(frozen=True)
class Prompting(Parts):
    """A method that trains prompts and the head of a frozen Vision Transformer."""

    def check(self, network: Network, training: TrainConfig) -> None:
        if not network.attentions:
            raise CwpsError(
                f"method {self.name}: prompts need a Vision Transformer, and this backbone has no attention "
                "(flax.linen.MultiHeadDotProductAttention); choose another method"
            )
        if isinstance(network.model, Inputs):
            raise CwpsError(
                f"method {self.name}: prompts are put into a model of one image, and this one takes "
                f"{', '.join(input_names(network.model))} by cwps.Inputs; choose another method"
            )

    def restore(self, view: Restoring) -> dict[str, Any]:
        return {**super().restore(view), **self.unpacked(view)}

    def _rule(self, network: Network) -> Rule:
        def rule(own: Tree, frozen: Tree, clock: Clock) -> Effective:
            added = {name: tree for name, tree in own.items() if name != "params"}
            return Effective(
                unite(frozen["pretrained"], own["params"]), added, **self.penalised(own, network)
            )

        return rule


class Prefixed(nn.Module):
    """A model with additional keys and values in its attentions, in "prefixes" (Li and Liang 2021).

    The collection is {path of an attention: {"key": (length, heads, features of a head), "value": the same}}.

    Attributes:
        model: the plain model.
    """

    model: nn.Module

    def __call__(self, images: jax.Array, train: bool = False) -> Any:
        """Applies the model, with the same prefixes for each image."""
        variables = dict(self.variables)
        prefixes = flatten(variables.pop("prefixes"))
        longer_ones: list[Any] = []

        def intercept(next_function, args, kwargs, context):
            path = _path(context)
            if context.method_name != "__call__" or f"{path}/key" not in prefixes:
                return next_function(*args, **kwargs)
            plain = context.module.attention_fn
            if plain in longer_ones:  # the call that this function made
                return next_function(*args, **kwargs)

            def longer(one: jax.Array, name: str) -> jax.Array:
                prefix = prefixes[f"{path}/{name}"].astype(one.dtype)
                return jnp.concatenate([jnp.broadcast_to(prefix, (len(one), *prefix.shape)), one], axis=1)

            def attend(query, key, value, *args, **kwargs):
                return plain(query, longer(key, "key"), longer(value, "value"), *args, **kwargs)

            longer_ones.append(attend)
            return context.module.clone(parent=context.module.scope, attention_fn=attend)(*args, **kwargs)

        with nn.intercept_methods(intercept):
            return apply_plain(self, variables, images, train)


class Prompted(nn.Module):
    """A model with additional tokens for its first block, chosen for each image from a pool of prompts (L2P).

    The collections are "prompts", {"prompts": (pool, length, width)}, and "keys", {"keys": (pool, width)}.
    The query is the input of the head in the model without prompts. The prompts with the keys nearest by
    cosine are put after the class token, and the mean of their outputs replaces it before the last norm. The
    sum of those cosines, a mean over images, is subtracted from the loss.

    Attributes:
        model: the plain model.
        top: number of prompts for each image.
        head: name of the head.

    The blocks are the modules around the first and the last attention. Their inputs and outputs are tokens,
    of which the first is the class token.
    """

    model: nn.Module
    top: int
    head: str = "head"

    def __call__(self, images: jax.Array, train: bool = False) -> Any:
        """Applies the model, twice."""
        variables = dict(self.variables)
        prompts, keys = (variables.pop(name)[name] for name in ("prompts", "keys"))
        seen: list[jax.Array] = []
        blocks: list[str] = []

        def read(next_function, args, kwargs, context):
            path = _path(context)
            if context.method_name == "__call__" and path.rpartition("/")[2] == self.head:
                seen.append(args[0])
            if isinstance(context.module, nn.MultiHeadDotProductAttention):
                blocks.append(path.rpartition("/")[0])
            return next_function(*args, **kwargs)

        with nn.intercept_methods(read):
            apply_plain(self, variables, images, False)
        query = jax.lax.stop_gradient(seen[0])
        cosine = _unit(query) @ _unit(keys).T
        nearest, chosen = jax.lax.top_k(cosine, self.top)
        self.sow("losses", "pull", -nearest.sum(axis=-1))
        tokens = prompts[chosen].reshape(len(images), -1, prompts.shape[-1])
        count = tokens.shape[1]

        def prompt(next_function, args, kwargs, context):
            path = _path(context)
            if context.method_name != "__call__" or path not in (blocks[0], blocks[-1]):
                return next_function(*args, **kwargs)
            x, *rest = args
            if path == blocks[0]:
                x = jnp.concatenate([x[:, :1], tokens.astype(x.dtype), x[:, 1:]], axis=1)
            x = next_function(x, *rest, **kwargs)
            if path == blocks[-1]:
                answer = jnp.mean(x[:, 1 : 1 + count], axis=1, keepdims=True)
                x = jnp.concatenate([answer, x[:, 1:]], axis=1)
            return x

        with nn.intercept_methods(prompt):
            return apply_plain(self, variables, images, train)


def apply_plain(module: Any, variables: Mapping[str, Any], images: jax.Array, train: bool) -> Any:
    """Returns the outputs of a module's plain model, with the given variables."""
    plain = module.model.clone(parent=None)
    keys = {name: module.make_rng(name) for name in module.scope.rngs}
    return plain.apply(variables, images, rngs=keys, **mode(plain, train=train))


def _path(context: nn.module.InterceptorContext) -> str:
    return "/".join(context.module.path) if context.module.scope is not None else ""


def _unit(rows: jax.Array) -> jax.Array:
    rows = rows.astype(jnp.float32)
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
