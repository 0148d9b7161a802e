"""Prompts: the backbone stands, each image is answered by itself, and the prompts are read as they should."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from methods_shared import (
    LEARNED,
    PROMPTING,
    first_stage,
    images_of,
    learned,
    logits,
    noisy,
    run,
    task,
    vit,
)

from cwps_jax import methods
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.methods.prompts import Prefixed
from cwps_jax.models.vit import Block


def network(name):
    """Returns the model with prompts, and what was learned of it."""
    return LEARNED[name].wrap(vit().model), dict(learned(True).tasks[name].variables)


@pytest.mark.parametrize("name", PROMPTING)
def test_the_backbone_of_a_task_is_the_pretrained_one_to_the_bit(name):
    _, variables = network(name)
    found, start = variables["params"], vit().variables["params"]
    assert np.any(found["head"]["kernel"] != start["head"]["kernel"])
    rest = [{key: tree for key, tree in params.items() if key != "head"} for params in (found, start)]
    chex.assert_trees_all_equal(*rest)


@pytest.mark.parametrize("name", PROMPTING)
def test_an_image_alone_is_answered_as_among_sixty_four(name):
    model, variables = network(name)
    images = images_of(64, 11, 12)
    apply = jax.jit(model.apply)
    alone = np.concatenate([apply(variables, image[None]) for image in images])
    np.testing.assert_allclose(logits(model, variables, images), alone, atol=1e-5)


@pytest.mark.parametrize("name", PROMPTING)
def test_prompts_change_the_logits_of_every_image(name):
    model, variables = network(name)
    images = images_of(16, 11, 12)
    plain = logits(vit().model, {"params": variables["params"]}, images)
    assert np.all(np.abs(logits(model, variables, images) - plain).max(axis=1) > 1e-3)


@jax.jit
def inputs_of(params, images):
    """Returns what the plain model's first block and its head read."""
    kept = {}

    def keep(next_function, args, kwargs, context):
        if context.module.name in ("block0", "head") and context.method_name == "__call__":
            kept[context.module.name] = args[0]
        return next_function(*args, **kwargs)

    with nn.intercept_methods(keep):
        vit().model.apply({"params": params}, images)
    return kept


def nearest_by_cosine(variables, images):
    """Returns each image's cosines with the keys, largest first, and whose they are, by NumPy alone."""
    query = np.asarray(inputs_of(variables["params"], images)["head"], np.float64)
    keys = np.asarray(variables["keys"]["keys"], np.float64)
    cosine = query @ keys.T / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(keys, axis=1)
    order = np.argsort(-cosine, axis=1)
    return np.take_along_axis(cosine, order, 1), order


def test_l2p_chooses_the_nearest_keys_by_cosine_and_is_pulled_to_them():
    model, variables = network("l2p")
    variables["keys"] = noisy(variables["keys"], 1.0, 5)
    images, top = images_of(16, 11, 12), LEARNED["l2p"].top
    cosines, order = nearest_by_cosine(variables, images)
    assert len({tuple(sorted(row[:top])) for row in order}) > 1  # images differ in what they choose
    apply = jax.jit(lambda variables: model.apply(variables, images, mutable=["losses"]))
    before, sown = apply(variables)
    (pull,) = jax.tree.leaves(sown)
    np.testing.assert_allclose(pull, -cosines[:, :top].sum(axis=1), atol=1e-5)
    # A prompt changes the answers of exactly those images that chose it.
    for number in range(LEARNED["l2p"].prompts):
        prompts = np.array(variables["prompts"]["prompts"])
        prompts[number] += 1
        after, _ = apply({**variables, "prompts": {"prompts": prompts}})
        changed = np.any(np.asarray(before) != np.asarray(after), axis=1)
        np.testing.assert_array_equal(changed, np.any(order[:, :top] == number, axis=1))


def test_l2p_prompts_stand_behind_the_class_token_and_their_mean_is_read():
    model, variables = network("l2p")
    variables["keys"] = noisy(variables["keys"], 1.0, 5)
    images = images_of(16, 11, 12)
    _, order = nearest_by_cosine(variables, images)
    prompts = variables["prompts"]["prompts"][order[:, : LEARNED["l2p"].top]].reshape(len(images), -1, 64)
    tokens = inputs_of(variables["params"], images)["block0"]
    expected = behind_prompts(variables["params"], tokens, prompts)
    np.testing.assert_allclose(logits(model, variables, images), expected, rtol=1e-4, atol=1e-4)


@jax.jit
def behind_prompts(params, tokens, prompts):
    """Returns the logits of images by the blocks themselves, with each image's prompts put in by hand."""
    x = jnp.concatenate([tokens[:, :1], prompts, tokens[:, 1:]], axis=1)
    for block in ("block0", "block1", "block2"):
        x = Block(4).apply({"params": params[block]}, x)
    answer = x[:, 1 : 1 + prompts.shape[1]].mean(axis=1)
    answer = nn.LayerNorm(epsilon=1e-6).apply({"params": params["norm"]}, answer)
    return answer @ params["head"]["kernel"] + params["head"]["bias"]


def test_l2p_keys_are_trained_by_their_pull_alone_and_those_never_chosen_stand():
    method = methods.L2P(prompts=6, length=2, top=2, learning_rate=0.3)
    trained, _ = run(vit(), method, epochs=1, train=16)
    _, begun = first_stage(method, vit().moment())
    start, keys = begun.own["keys"]["keys"], trained.finished.moment.own["keys"]["keys"]
    variables = {"params": vit().variables["params"], "keys": begun.own["keys"]}
    cosines, order = nearest_by_cosine(variables, task(12, train=16).train["image"])
    chosen = sorted(set(order[:, :2].ravel()))
    assert 0 < len(chosen) < 6
    np.testing.assert_array_equal(np.flatnonzero(np.any(keys != start, axis=1)), chosen)
    # One step of Adam goes along the gradient: the chosen cosines have grown.
    after, _ = nearest_by_cosine({**variables, "keys": {"keys": keys}}, task(12, train=16).train["image"])
    assert after[:, :2].sum() > cosines[:, :2].sum() + 0.01


def test_prefixed_attention_is_attention_with_keys_and_values_put_before_its_own():
    kind, layout = zoo.KINDS["attention"], zoo.layout("attention")
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    prefixes = {"attention": {"key": draw(4, 2, 3), "value": draw(4, 2, 3)}}
    params, x = zoo.random_params(layout, 1), draw(*kind.shape)
    found = Prefixed(kind.model).apply({"params": params, "prefixes": prefixes}, x)
    p, own = params["attention"], prefixes["attention"]
    query, key, value = (
        np.einsum("btd,dhf->bthf", x, p[name]["kernel"]) + p[name]["bias"]
        for name in ("query", "key", "value")
    )
    longer = lambda one, prefix: np.concatenate([np.broadcast_to(prefix, (2, 4, 2, 3)), one], axis=1)
    key, value = longer(key, own["key"]), longer(value, own["value"])
    weights = np.exp(np.einsum("bqhf,bkhf->bhqk", query, key) / np.sqrt(3))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhf->bqhf", weights, value)
    expected = np.einsum("bqhf,hfd->bqd", mixed, p["out"]["kernel"]) + p["out"]["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_dualprompt_puts_its_prompts_into_the_blocks_that_it_names():
    method = methods.DualPrompt(general_blocks=(2,), expert_blocks=(0, 7), general_length=3, expert_length=4)
    _, begun = first_stage(method, vit().moment())
    shapes = {path: leaf.shape for path, leaf in flatten(begun.own["prefixes"]).items()}
    assert shapes == {
        f"block{block}/attention/{name}": (length, 4, 16)
        for block, length in ((0, 4), (2, 3))
        for name in ("key", "value")
    }
    model, images = method.wrap(vit().model), images_of(4, 11, 12)
    flat = flatten(begun.own["prefixes"])
    variables = {"params": vit().variables["params"]}
    before = logits(model, {**variables, "prefixes": unflatten(flat)}, images)
    for path in flat:  # each is read
        after = logits(model, {**variables, "prefixes": unflatten({**flat, path: flat[path] + 1})}, images)
        assert np.abs(after - before).max() > 1e-4, path
