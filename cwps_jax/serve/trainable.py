"""How much of a network is trained, and how much is stored, in the line that PEFT prints."""

from collections.abc import Mapping
from typing import Any

from cwps_jax.core.trees import flatten
from cwps_jax.errors import CwpsError
from cwps_jax.learn import LearnedTask


def print_trainable_parameters(learned: LearnedTask | Mapping[str, Any]) -> None:
    """Prints how many parameters are trained, of how many, and of a learned task how many are stored.

    All parameters are those of the plain network with its head. The default method trains a whole child and
    its scores beside them, which is more than 100%, and stores only the open channels: what makes a task
    small is the second part of the line.

    Args:
        learned: a learned task, or the variables of a `ChannelShared`, of which nothing is stored yet; see
            `params_ratio` for what their gates would store.

    Raises:
        CwpsError: it is neither of the two.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, cwps_jax as cwps
        >>> net = cwps.ChannelShared(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]))
        >>> print_trainable_parameters(net.init(jax.random.key(0), jnp.ones((1, 3))))
        trainable params: 32 || all params: 26 || trainable%: 123.0769
    """
    if isinstance(learned, LearnedTask):
        everything, trained = _size(learned.variables["params"]), learned.record["trained"]
        kept = learned.stored.active + learned.stored.private + learned.stored.head
        stored = (
            f" || stored params: {kept:,} || stored%: {100 * kept / everything:.4f} || "
            f"stored bytes: {learned.stored.bits // 8:,}"
        )
    elif isinstance(learned, Mapping) and {"params", "masks"} <= learned.keys():
        everything, stored = _size(learned["params"]), ""
        trained = everything + _size(learned["masks"])
    else:
        raise CwpsError(
            f"print_trainable_parameters({type(learned).__name__}): give what learn_task returns, or the "
            "variables of a ChannelShared, with its params and masks"
        )
    share = 100 * trained / everything
    print(f"trainable params: {trained:,} || all params: {everything:,} || trainable%: {share:.4f}{stored}")


def _size(tree: Mapping[str, Any]) -> int:
    return sum(leaf.size for leaf in flatten(tree).values())
