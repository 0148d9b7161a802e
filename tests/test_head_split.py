"""A forward pass cut at the head: the same outputs, and one program for models that differ in it alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TinyModel

from cwps_jax import models
from cwps_jax.core.trees import flatten, merge, select
from cwps_jax.modules import channel_layout
from cwps_jax.parallel import Parallel
from cwps_jax.train.evaluation import Predictor, measure
from cwps_jax.train.head_split import split_at_head
from cwps_jax.train.objectives import accuracy

HEAD = ("head/kernel", "head/bias")


def variables_of(model: nn.Module, images: np.ndarray, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map(lambda leaf: rng.uniform(0.01, 0.1, leaf.shape).astype(leaf.dtype), dict(shapes))


def cut(model: nn.Module, images: np.ndarray, head: tuple[str, ...] = HEAD):
    """Returns the two functions, the outputs that they give together, and the model's own."""
    variables = variables_of(model, images)
    params = variables.pop("params")
    own, others = select(params, head), select(params, [path for path in flatten(params) if path not in head])

    def forward(head, rest, images):
        return model.apply({"params": merge(rest["params"], head), **rest["other"]}, images)

    rest = {"params": others, "other": variables}
    before, after = split_at_head(forward, own, rest, images)
    outputs = jax.jit(after)(own, rest, jax.jit(before)(rest, images))
    whole = jax.jit(model.apply)({"params": params, **variables}, images)
    return (
        jax.jit(before).lower(rest, images),
        jax.jit(after).lower(own, rest, before(rest, images)),
        outputs,
        whole,
    )


def images_of(count: int, side: int = 8, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, side, side, channels)).astype(np.float32)


@pytest.mark.parametrize("name", ["resnet8", "squeezenet1_1", "vit_nano4"])
def test_a_backbone_is_cut_where_its_head_begins(name):
    before, after, outputs, whole = cut(
        models.create(name, 5),
        images_of(4, 32, 3),
        channel_layout(models.create(name, 5), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)).head_paths,
    )
    np.testing.assert_array_equal(outputs, whole)
    assert before.cost_analysis()["flops"] > 50 * after.cost_analysis()["flops"]


class Standardised(nn.Module):
    """A head that reads images too, after a layer whose kernel is computed from its parameters."""

    @nn.compact
    def __call__(self, images):
        kernel = self.param("kernel", nn.initializers.normal(), (64, 6))
        features = images.reshape(len(images), -1) @ (kernel - kernel.mean(0))
        logits = nn.Dense(3, name="head")(features) / (1 + jnp.abs(kernel).sum())
        return {"logits": logits, "brightness": images.mean((1, 2, 3)), "features": features}


class Jitted(nn.Module):
    """A model that is one compiled call to whoever looks at it from outside."""

    @nn.compact
    def __call__(self, images):
        return nn.jit(TinyModel)(name="inner")(images)


@pytest.mark.parametrize(
    ("model", "head"), [(Standardised(), HEAD), (Jitted(), tuple(f"inner/{path}" for path in HEAD))]
)
def test_a_model_of_any_form_keeps_its_outputs(model, head):
    _, _, outputs, whole = cut(model, images_of(5), head)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6), outputs, whole)


def test_there_is_no_cut_where_the_batch_is_not_the_leading_axis():
    def forward(head, rest, images):
        return head * images.mean()

    assert split_at_head(forward, jnp.ones(3), {}, jnp.ones((4, 2))) is None


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_models_that_differ_in_their_heads_share_all_before_them(mode):
    parallel, programs, images = Parallel(mode, tuple(jax.devices()[:2])), {}, images_of(7)
    compiled = []
    for classes in (3, 5, 3):
        model = TinyModel(classes=classes)
        variables = variables_of(model, images, seed=len(compiled))
        predict = Predictor(model, parallel, head=HEAD, programs=programs)
        logits = predict(variables, {"image": images}, 4)
        alone = Predictor(model, parallel, head=HEAD)(variables, {"image": images}, 4)
        assert logits.tobytes() == alone.tobytes(), "the outputs depend on who compiled"
        np.testing.assert_allclose(logits, model.apply(variables, images), rtol=1e-4, atol=1e-6)
        compiled.append(sum(program.compilations for program in programs.values()))
    assert compiled == [2, 3, 3]
    # What differs before the head is another program, and not taken for this one.
    other = TinyModel(dtype=jnp.bfloat16)
    Predictor(other, parallel, head=HEAD, programs=programs)(variables, {"image": images}, 4)
    assert sum(program.compilations for program in programs.values()) == 4  # its head is equal


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_a_program_is_lowered_once_to_be_compared_and_compiled(mode):
    lowered, programs, images = [], {}, images_of(8)
    predict = Predictor(TinyModel(), Parallel(mode, tuple(jax.devices()[:2])), head=HEAD, programs=programs)
    variables = variables_of(TinyModel(), images)

    def heard(event: str, seconds: float, *, fun_name: str = "", **_: object) -> None:
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            lowered.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        predict(variables, {"image": images}, 4)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert len(lowered) == sum(program.compilations for program in programs.values()) == 2


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_a_metrics_mean_is_over_real_items_alone(count):
    rng = np.random.default_rng(count)
    label, logits = rng.integers(0, 3, count), rng.normal(size=(count, 3)).astype(np.float32)
    split = {"image": np.zeros((count, 1)), "label": label}
    assert measure(accuracy, logits, split) == pytest.approx(np.mean(logits.argmax(1) == label), rel=1e-12)
