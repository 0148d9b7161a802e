"""Channel-wise parameter sharing: warm-up, search and soft masks, hard masks (METHOD, "Four stages")."""

import functools

import jax

from cwps_jax.config import TrainConfig
from cwps_jax.core import masks as core_masks
from cwps_jax.core.compact import unpack
from cwps_jax.core.mixing import mix
from cwps_jax.core.trees import Tree
from cwps_jax.methods.method import Effective, Frozen, Method, Moment, Stage, all_open, whole_child
from cwps_jax.search.composite import composite

_hardened = jax.jit(core_masks.harden, static_argnames=("layout", "budget", "estimator"))


def cwps(config: TrainConfig) -> Method:
    """Returns the stages of CWPS; the composite parent model search opens the soft stage."""
    warm_up = max(1, round(config.epochs * config.warm_up_share))
    hard = max(1, round(config.epochs * config.hard_share))
    soft = max(1, config.epochs - warm_up - hard)
    soft_rule = _soft_rule(config.estimator, config.compensate, config.max_temperature)
    compact = config.hard_form == "compact"
    hard_rule = _compact_rule if compact else _dense_rule
    return Method(
        "cwps",
        (
            Stage("warm-up", warm_up, whole_child, all_open),
            Stage("soft", soft, soft_rule, _search, penalised=True),
            Stage("hard", hard, hard_rule, _harden, reestimates_norms=True, compact=compact),
        ),
    )


@functools.cache  # one rule for equal settings, so that tasks share the compiled step
def _soft_rule(estimator: core_masks.Estimator, compensate: bool, maximum: float) -> Effective:
    def soft(child: Tree, masks: Tree, frozen: Frozen, temperature: jax.Array) -> tuple[Tree, Tree | None]:
        gates = core_masks.gates(
            masks, temperature, estimator=estimator, compensate=compensate, maximum=maximum
        )
        return mix(frozen.parent, child, gates), gates

    return soft


def _dense_rule(child: Tree, masks: Tree, frozen: Frozen, temperature: jax.Array) -> tuple[Tree, Tree | None]:
    return mix(frozen.parent, child, frozen.gates), frozen.gates


def _compact_rule(
    child: Tree, masks: Tree, frozen: Frozen, temperature: jax.Array
) -> tuple[Tree, Tree | None]:
    return unpack(child, frozen.parent, frozen.gates, frozen.placed), frozen.gates


def _search(moment: Moment) -> tuple[Tree, Frozen]:
    parent, sources = composite(moment.layout, moment.child, moment.pool.models, moment.config.search)
    scores = core_masks.init_scores(moment.layout, moment.config.estimator)
    return scores, Frozen(parent=parent, sources=sources)


def _harden(moment: Moment) -> tuple[Tree, Frozen]:
    config = moment.config
    gates = _hardened(moment.masks, moment.layout, config.budget, estimator=config.estimator)
    frozen = Frozen(moment.frozen.parent, gates, moment.frozen.sources)
    return {}, frozen
