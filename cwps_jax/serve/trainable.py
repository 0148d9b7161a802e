"""The numbers of trained and stored parameters of a network, in a line like that of PEFT."""

from collections.abc import Mapping
from typing import Any

from cwps_jax.core.trees import flatten
from cwps_jax.errors import CwpsError
from cwps_jax.learn import LearnedTask


def print_trainable_parameters(learned: LearnedTask | Mapping[str, Any]) -> None:
    """Prints the numbers of trained parameters and of all parameters, and for a learned task of stored ones.

    All parameters are those of the plain network with its head. The default method trains a whole child and
    its scores in addition, which is more than 100%, and stores only the open channels: the second part of the
    line shows how small a task is.

    Args:
        learned: a learned task, or the variables of a `ChannelShared`, of which nothing is stored yet; see
            `params_ratio` for the share that their gates would store.

    Raises:
        CwpsError: `learned` is neither of the two.

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
