"""TAPS is cwps at the grain of layers with a straight-through gate, the pre-trained parent and no warm-up."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods_shared import effective, run, tiny

from cwps_jax.core import masks
from cwps_jax.core.trees import flatten, select
from cwps_jax.methods import Cwps, Taps
from cwps_jax.methods.method import Begun

RATE = 0.1


@dataclasses.dataclass(frozen=True)
class SoftStageAlone(Cwps):
    """The soft stage of cwps from the pre-trained model on, with TAPS's penalty."""

    name: ClassVar[str] = "soft stage alone"

    def stages(self, network, training):
        return (dataclasses.replace(super().stages(network, training)[1], epochs=training.epochs),)

    def penalty(self, gates, scores, child):
        one_a_layer = jnp.concatenate([jnp.ravel(score) for score in jax.tree.leaves(scores)])
        return jnp.sum(jnp.abs(one_a_layer)) / len(one_a_layer)

    def _search(self, moment):
        child, layout = moment.start["params"], moment.network.layout
        scores = masks.init_scores(layout, "straight_through", "layer")
        return Begun(
            {"params": child, "masks": jax.device_get(scores)},
            {"parent": select(child, layout.layer_paths)},
        )


def soft_stage(lambda_):
    return SoftStageAlone(
        granularity="layer",
        estimator="straight_through",
        score_optimizer="sgd",
        score_learning_rate=RATE,
        lambda_=lambda_,
    )


def scores_of(trained):
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(trained.finished.moment.own["masks"])])


@pytest.mark.parametrize("lambda_", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_three_steps_of_taps_are_three_soft_steps_of_cwps_by_layer(lambda_, decay):
    # One step an epoch, so that the loss of each is told.
    options = {"epochs": 3, "train": 16, "learning_rate": RATE, "budget": 1.0, "weight_decay": decay}
    ours, seen = run(tiny(), Taps(lambda_=lambda_, free_epochs=0), **options)
    theirs, expected = run(tiny(), soft_stage(lambda_), **options)
    assert [one.stage for one in seen] == ["taps"] * 3 and len(expected) == 3
    for field in ("loss", "metric", "private", "lambda_"):
        np.testing.assert_allclose(
            [getattr(one, field) for one in seen], [getattr(one, field) for one in expected], rtol=1e-6
        )
    own, same = (flatten(trained.finished.moment.own) for trained in (ours, theirs))
    assert own.keys() == same.keys()
    for path in own:
        np.testing.assert_allclose(own[path], same[path], rtol=1e-5, atol=1e-7, err_msg=path)
        assert np.any(own[path] != flatten(tiny().variables).get(path, 0.15)), path
    # At the larger lambda the penalty has closed gates within the three steps.
    assert np.all(scores_of(ours) >= 0.1) == (lambda_ < 1)


def test_without_a_penalty_every_gate_stays_open_and_every_channel_is_kept():
    trained, seen = run(tiny(), Taps(lambda_=0.0, free_epochs=0), epochs=4, learning_rate=RATE)
    assert np.all(scores_of(trained) >= 0.1)
    assert [one.private for one in seen] == [1.0] * 4


def test_the_penalty_counts_only_after_the_free_epochs():
    options = {"epochs": 4, "learning_rate": RATE}
    free, seen = run(tiny(), Taps(lambda_=0.0, free_epochs=0), **options)
    _, until_then = run(tiny(), Taps(lambda_=0.8, free_epochs=3), **options)
    penalised, at_once = run(tiny(), Taps(lambda_=0.8, free_epochs=0), **options)
    late, _ = run(tiny(), Taps(lambda_=0.8, free_epochs=3), **options)
    assert [one.lambda_ for one in until_then] == pytest.approx([0, 0, 0, 0.8])
    assert [one.lambda_ for one in at_once] == pytest.approx([0.8] * 4)
    assert [one.loss for one in until_then[:3]] == [one.loss for one in seen[:3]]
    assert at_once[1].loss != seen[1].loss
    assert scores_of(penalised).sum() < scores_of(late).sum() < scores_of(free).sum()


def test_the_penalty_is_the_mean_of_the_scores_sizes_over_the_layers():
    stage = Taps().stages(tiny().trainer.network, tiny().moment().training)[0]
    begun = stage.begin(tiny().moment())
    own = {**begun.own, "masks": {"conv1": {"kernel": np.full((1,) * 4, 0.5, np.float32)},
                                  "conv2": {"kernel": np.full((1,) * 4, -0.3, np.float32)}}}  # fmt: skip
    computed = effective(stage, own, begun.frozen)
    assert computed.penalty == pytest.approx(0.4)
    # A closed gate takes the layer's bias from the pre-trained model, too.
    moved = {**own, "params": jax.tree.map(lambda leaf: leaf + 1, own["params"])}
    params = flatten(effective(stage, moved, begun.frozen).params)
    start = flatten(tiny().variables["params"])
    changed = {path for path in params if np.any(params[path] != start[path])}
    assert changed == {path for path in start if not path.startswith("conv2")}
