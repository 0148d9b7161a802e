"""A model that is not ours, from its layout to a pool of two tasks: one journey, over many models."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping

import chex
import flax.linen as nn
import foreign_models as models
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo

import cwps_jax as cwps
from cwps_jax.core.trees import flatten, select, unflatten
from cwps_jax.train.evaluation import outputs_sha256


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and what its user knows of it.

    Attributes:
        model: the model, without variables.
        channels: {path of a kernel: its output channels}, counted by hand.
        private: what each task keeps for itself, by path, without norms.
        settings: of `TrainConfig`.
        per_pixel: whether there is one output a pixel.
    """

    model: nn.Module
    channels: Mapping[str, int]
    private: set[str] = dataclasses.field(default_factory=set)
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    per_pixel: bool = False


def block(prefix: str, copies: int = 1) -> dict[str, int]:
    attention = f"{prefix}/MultiHeadDotProductAttention_0"
    channels = {f"{attention}/{name}/kernel": 6 for name in ("query", "key", "value", "out")}
    channels |= {f"{prefix}/widen/kernel": 12, f"{prefix}/narrow/kernel": 6}
    return {path: copies * count for path, count in channels.items()}


def tokens_and_scales(prefix: str) -> set[str]:
    return {"cls_token", "pos_embed", f"{prefix}/layer_scale_1", f"{prefix}/layer_scale_2"}


QUERY = "block/MultiHeadDotProductAttention_0/query"

CASES = {
    "convolutions": Case(
        models.ConvNet(),
        {"Conv_0/kernel": 6, "Conv_1/kernel": 8, "Dense_0/kernel": 10},
        settings={"head": "classifier"},
    ),
    "transformer with private queries": Case(
        models.VisionTransformer(),
        {path: count for path, count in block("block").items() if path != f"{QUERY}/kernel"}
        | {"patch_embed/kernel": 6},
        private=tokens_and_scales("block") | {f"{QUERY}/kernel", f"{QUERY}/bias"},
        settings={"private": ("*query*",)},
    ),
    "scanned transformer": Case(
        models.VisionTransformer(scanned=True),
        {"patch_embed/kernel": 6, **block("blocks", copies=2)},
        private=tokens_and_scales("blocks"),
    ),
    "encoder and decoder": Case(
        models.EncoderDecoder(),
        {f"{name}/kernel": 8 for name in ("stem", "grouped", "depthwise")}
        | {f"{name}/kernel": 6 for name in ("up", "swapped")},
        per_pixel=True,
    ),
    "layers of one's own": Case(models.OwnLayers(), {"conv/kernel": 6, "pairs/weight": 8}),
    "modules made in setup": Case(
        models.Classifier(models.Encoder((5, 7))),
        {
            "encoder/stages_0/conv/kernel": 5,
            "encoder/stages_1/conv/kernel": 7,
            "encoder/project/layers_0/kernel": 9,
        },
    ),
}


def per_pixel_loss(logits, batch):
    return optax.sigmoid_binary_cross_entropy(logits, batch["label"]).mean((1, 2))


def per_pixel_accuracy(logits, batch):
    return jnp.mean((logits > 0) == (batch["label"] > 0.5), axis=(1, 2))


def task(seed: int, per_pixel: bool) -> cwps.TaskData:
    """Returns images of three patterns under noise, with the pattern's number or the pattern as the label."""
    rng = np.random.default_rng(seed)
    patterns = np.sign(rng.normal(size=(3, 4, 4))).repeat(2, axis=1).repeat(2, axis=2)

    def split(count):
        label = np.arange(count, dtype=np.int32) % 3
        images = patterns[label] + 0.3 * rng.normal(size=(count, 8, 8))
        label = (patterns[label] > 0).astype(np.float32) if per_pixel else label
        return {"image": images[..., None].astype(np.float32), "label": label}

    return cwps.TaskData(split(96), split(16), split(16), None if per_pixel else 3)


@dataclasses.dataclass(frozen=True)
class Journey:
    """What came of it.

    Attributes:
        case: the model and what its user knows of it.
        config, trainer: by which two tasks were learned.
        pretrained: the model's variables at the start.
        data: of the first task.
        folder: of the pool.
        first, second: the tasks.
        files: {path: bytes} of the pool's arrays before the second task.
    """

    case: Case
    config: cwps.TrainConfig
    trainer: cwps.Trainer
    pretrained: Mapping
    data: cwps.TaskData
    folder: pathlib.Path
    first: cwps.LearnedTask
    second: cwps.LearnedTask
    files: Mapping[pathlib.Path, bytes]

    @property
    def layout(self) -> cwps.Layout:
        return self.trainer.layout

    @property
    def net(self) -> cwps.ChannelShared:
        return cwps.ChannelShared(self.case.model, head=self.config.head, private=self.config.private)

    def logits(self, variables: Mapping) -> np.ndarray:
        """Returns the plain model's outputs for the first task's test images."""
        return self.trainer.predictor(self.case.model)(variables, self.data.test, 8)

    def changed_channels(self, before: Mapping, after: Mapping) -> dict[str, np.ndarray]:
        """Returns which channels of each layer differ in any weight or bias between two trees."""
        before, after = flatten(before), flatten(after)
        found = {}
        for layer in self.layout.layers:
            rest = tuple(axis for axis, size in enumerate(layer.gate_shape) if size == 1)
            moved = np.any(before[layer.path] != after[layer.path], axis=rest).ravel()
            for bias in layer.leaves[1:]:
                moved |= np.ravel(before[bias] != after[bias])
            found[layer.path] = moved
        return found


@pytest.fixture(scope="module", params=CASES)
def journey(request, tmp_path_factory) -> Journey:
    case = CASES[request.param]
    method = cwps.methods.Cwps(search_distance="l2")
    config = cwps.TrainConfig(
        method=method, epochs=3, batch_size=8, budget=0.6, learning_rate=0.05, **case.settings
    )
    data = [task(seed, case.per_pixel) for seed in (1, 2)]
    objectives = {"loss": per_pixel_loss, "metric": per_pixel_accuracy} if case.per_pixel else {}
    trainer = cwps.make_trainer(case.model, data[0], config=config, **objectives)
    pretrained = trainer.new_variables(seed=0)
    folder = tmp_path_factory.mktemp("plug_and_play") / "pool"
    pool = cwps.Pool.create(folder, pretrained, trainer.layout)
    first = cwps.learn_task(pool, "first", case.model, data[0], config=config, trainer=trainer)
    files = {path: path.read_bytes() for path in folder.glob("*/**/*") if path.is_file()}
    second = cwps.learn_task(pool, "second", case.model, data[1], config=config, trainer=trainer)
    return Journey(case, config, trainer, pretrained, data[0], folder, first, second, files)


def test_every_output_channel_has_one_score_and_what_has_none_is_private(journey):
    case, layout = journey.case, journey.layout
    variables = jax.eval_shape(journey.net.init, jax.random.key(0), journey.data.test["image"])
    scores = {path: math.prod(leaf.shape) for path, leaf in flatten(variables["masks"]).items()}
    assert scores == case.channels
    assert {path for path in layout.private_paths if "norm" not in path.lower()} == case.private
    assert {path.split("/")[0] for path in layout.head_paths} == {journey.config.head}


def test_channel_shared_is_the_plain_model_on_mixed_parameters(journey, moved):
    case, images = journey.case, journey.data.test["image"]
    child = moved(journey.pretrained["params"], 0.3, 1)
    parent = moved(select(journey.pretrained["params"], journey.layout.layer_paths), 0.3, 2)
    masks = moved(jax.device_get(cwps.init_scores(journey.layout)), 1.0, 3)
    other = {key: tree for key, tree in journey.pretrained.items() if key != "params"}

    @jax.jit
    def both():
        shared = {"params": child, "parent": parent, "masks": masks, **other}
        mixed = cwps.mix(parent, child, cwps.gates(masks, 2.0))
        plain = [case.model.apply({"params": params, **other}, images) for params in (mixed, child)]
        return journey.net.apply(shared, images, temperature=2.0), *plain

    ours, mixed, child_alone = both()
    np.testing.assert_allclose(ours, mixed, rtol=1e-5, atol=1e-6)
    assert np.abs(ours - child_alone).max() > 1e-2


def test_a_pool_that_is_opened_afresh_gives_the_same_logits_bit_by_bit(journey):
    pool = cwps.Pool.open(journey.folder)
    for learned in (journey.first, journey.second):
        stored = pool.effective(learned.name)
        chex.assert_trees_all_equal(stored, learned.variables)
        np.testing.assert_array_equal(journey.logits(stored), journey.logits(learned.variables))
    assert np.any(journey.logits(stored) != journey.logits(journey.pretrained))


def test_the_second_task_changes_nothing_of_the_first(journey):
    assert journey.files
    for path, content in journey.files.items():
        assert path.read_bytes() == content, path
    pool = cwps.Pool.open(journey.folder)
    now = outputs_sha256(journey.logits(pool.effective("first")))
    assert now == pool.version("first").record["logits_sha256_when_learned"]


def test_what_a_task_keeps_is_below_its_budget_and_counted_by_hand(journey):
    """Closed channels are the parent's; the open ones, and the private leaves, are what is counted."""
    start, learned = journey.pretrained["params"], journey.first.variables["params"]
    moved = journey.changed_channels(start, learned)
    gates = {
        path: np.ravel(gate) for path, gate in flatten(cwps.Pool.open(journey.folder).gates("first")).items()
    }
    assert gates.keys() == moved.keys()
    for path, gate in gates.items():
        assert not np.any(moved[path] & ~gate), path
    assert 0 < sum(gate.sum() for gate in gates.values()) < sum(journey.case.channels.values())
    sizes = {
        path: leaf.size for path, leaf in flatten(start).items() if path not in journey.layout.head_paths
    }
    kept = sum(sizes[path] for path in journey.layout.private_paths)
    for layer in journey.layout.layers:
        kept += gates[layer.path].mean() * sum(sizes[leaf] for leaf in layer.leaves)
    assert journey.first.params_ratio == pytest.approx(kept / sum(sizes.values()))
    assert journey.first.params_ratio <= journey.config.budget
    start, learned = flatten(start), flatten(learned)
    for path in journey.layout.private_paths:
        assert np.any(start[path] != learned[path]), path


def test_the_parent_takes_the_channels_of_an_earlier_task_where_it_is_nearest(journey):
    pool = cwps.Pool.open(journey.folder)
    start, first = (
        flatten(tree) for tree in (journey.pretrained["params"], journey.first.variables["params"])
    )
    # Nine tenths of the way from the pre-trained model to the first task, wherever that has moved.
    child = unflatten({path: start[path] + np.float32(0.9) * (first[path] - start[path]) for path in start})
    search = cwps.Search(distance="l2")
    parent, sources = cwps.composite_parent(child, pool, search)
    assert pool.pooled().names == ("pretrained", "first", "second")
    moved = journey.changed_channels(start, first)
    assert any(np.any(channels) for channels in moved.values())
    for path, channels in moved.items():
        np.testing.assert_array_equal(sources[path].model, channels, err_msg=path)
    chex.assert_trees_all_equal(parent, select(journey.first.variables["params"], journey.layout.layer_paths))


@pytest.mark.parametrize("layer", [models.StandardisedConv(4), models.Bilinear(4)])
def test_mixing_a_users_layer_is_choosing_its_outputs(layer):
    images = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    parent, child = (layer.init(jax.random.key(seed), images)["params"] for seed in (1, 2))
    (kernel,) = cwps.channel_layout(layer, images).layers
    chosen = np.array([True, False, True, True])
    gates = {kernel.path: chosen.reshape(kernel.gate_shape)}
    mixed = layer.apply({"params": cwps.mix(parent, child, gates)}, images)
    theirs, own = (layer.apply({"params": params}, images) for params in (parent, child))
    np.testing.assert_allclose(mixed, np.where(chosen, own, theirs), rtol=1e-5, atol=1e-6)


class LocalNetwork(nn.Module):
    """A layer of flax's that no rule covers: every place of its output has a kernel of its own."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(3, name="head")(nn.ConvLocal(4, (3, 3), name="local")(images).mean((1, 2)))


def test_a_layer_that_no_rule_covers_is_refused_until_a_rule_is_added(own_rules):
    model, data = LocalNetwork(), task(1, per_pixel=False)
    images = data.test["image"]
    for door in (
        lambda: cwps.channel_layout(model, images),
        lambda: cwps.ChannelShared(model).init(jax.random.key(0), images),
        lambda: cwps.make_trainer(model, data),
    ):
        with pytest.raises(cwps.CwpsError, match=r"^local/\w+: .*@cwps_jax.channel_rule\(ConvLocal\)"):
            door()

    @cwps.channel_rule(nn.ConvLocal)
    def local(module):
        return {"kernel": (-4, -3, -1), "bias": (-3, -2, -1)}

    (layer,) = cwps.channel_layout(model, images).layers
    assert layer.gate_shape == (8, 8, 1, 4)
    parent, child = (model.init(jax.random.key(seed), images)["params"] for seed in (1, 2))
    gates = zoo.random_gates(cwps.channel_layout(model, images), 3)
    mixed = cwps.mix(parent, child, gates)["local"]
    found, own, theirs = (
        nn.ConvLocal(4, (3, 3)).apply({"params": one}, images)
        for one in (mixed, child["local"], parent["local"])
    )
    np.testing.assert_allclose(
        found, np.where(gates["local"]["kernel"][:, :, 0], own, theirs), rtol=1e-5, atol=1e-6
    )
