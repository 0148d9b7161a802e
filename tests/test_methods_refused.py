"""What a method cannot do is refused in one clear line, before anything is written."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import pytest
from methods_shared import CONFIG, Setting, files_hash, run, task, tiny, vit

import cwps_jax as cwps
from cwps_jax.config import run_config
from cwps_jax.methods import (
    L2P,
    Adapter,
    Atlas,
    Ba2,
    Cwps,
    DualPrompt,
    Lora,
    PackNet,
    Piggyback,
    Ssf,
    Taps,
)

RUN = {"tasks": ("loops",), "source": "digits", "compare": ()}


class Depthwise(nn.Module):
    """A convolution, a depthwise and a grouped one."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(images))
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=2, name="grouped")(x))
        return nn.Dense(3, name="head")(jnp.mean(x, axis=(1, 2)))


class Renamed(nn.Module):
    """A transformer of one attention whose head has another name."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = images.reshape(len(images), 8, 8)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x)
        return nn.Dense(3, name="classifier")(x[:, 0])


@pytest.fixture(scope="module")
def depthwise():
    trainer = cwps.make_trainer(Depthwise(), task(), config=CONFIG)
    return Setting(Depthwise(), 8, trainer, trainer.new_variables(0))


@pytest.fixture(scope="module")
def renamed():
    config = dataclasses.replace(CONFIG, head="classifier")
    trainer = cwps.make_trainer(Renamed(), task(), config=config)
    return Setting(Renamed(), 8, trainer, trainer.new_variables(0))


@pytest.fixture
def refuses(tmp_path):
    """Returns a function that asks for a task and expects one line, with nothing changed on the disk."""

    def ask(where, method, match, **options):
        pool = where.new_pool(tmp_path / "pool")
        before, config = files_hash(pool.folder), dataclasses.replace(CONFIG, method=method, **options)
        with pytest.raises(cwps.CwpsError, match=match) as refused:
            data = task(where.size)
            cwps.learn_task(pool, "task", where.model, data, config=config, trainer=where.trainer)
        assert "\n" not in str(refused.value)
        assert files_hash(pool.folder) == before
        assert cwps.Pool.open(pool.folder).tasks == pool.tasks == ()

    return ask


@pytest.mark.parametrize("method", [L2P(), DualPrompt()])
def test_prompts_on_a_convolutional_network(refuses, method):
    refuses(tiny(), method, f"^method {method.name}: prompts need a Vision Transformer, .* no attention")


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        (Lora(layers=("block9/*",)), {}, r"^config.lora.layers = \('block9/\*',\): no kernel of this"),
        (Lora(layers=()), {}, r"^config.lora.layers = \(\): no kernel of this backbone"),
        (Atlas(head_from="birds"), {}, "^config.atlas.head_from = 'birds': no such task in the pool"),
        (Atlas(), {"epochs": 1}, "^config.epochs = 1: atlas needs at least 2, one per stage"),
        (Taps(), {"epochs": 3}, "^config.epochs = 3: TAPS has no penalty for 3 epochs"),
        (PackNet(), {"epochs": 1}, "^config.epochs = 1: packnet needs at least 2, one per stage"),
        (Cwps(), {"epochs": 2}, "^config.epochs = 2: cwps needs at least 3, one per stage"),
        (Cwps(), {"budget": 0.01}, r"^budget 0.01: norms and other private parameters alone cost 0.0237"),
        ("lara", {}, "^method 'lara' is not known; choose one of cwps, finetune, probe"),
        (3, {}, "^config.method = 3: must be a method's name, or a Method with its settings"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_backbone_or_the_config(refuses, method, options, match):
    refuses(tiny(), method, match, **options)


def test_taps_without_a_penalty_needs_no_epochs_for_it():
    _, seen = run(tiny(), Taps(lambda_=0.0), epochs=2, train=16)
    assert len(seen) == 2


def test_grouped_kernels_have_no_low_rank_form_and_may_be_left_out(refuses, depthwise):
    refuses(
        depthwise,
        Lora(),
        r"^config.lora.layers = \('\*',\): depthwise/kernel is of a grouped or depthwise convolution",
    )
    trained, _ = run(depthwise, Lora(layers=("stem/*",)), epochs=1, train=16)
    assert trained.finished.moment.own["lora_a"].keys() == {"stem"}


def test_adapters_and_switches_leave_grouped_kernels_out(depthwise, refuses):
    assert Adapter().added(depthwise.moment())["adapters"].keys() == {"stem"}
    # Nor has the stem, which sees grey images, input channels to choose from.
    refuses(
        depthwise, Ba2(), "^method ba2: this backbone has no layer whose input channels could be switched"
    )


def test_adapters_need_a_convolution_to_stand_beside(refuses):
    refuses(vit(), Adapter(), "^method adapter: this backbone has no convolution of odd size above 1")


def test_prompts_need_blocks_that_are_there(refuses):
    method = DualPrompt(general_blocks=(7,), expert_blocks=())
    refuses(vit(), method, "^config.dualprompt: this backbone has 3 attentions, none of which is in")


def test_l2p_needs_the_name_of_the_models_head(refuses, renamed):
    refuses(
        renamed,
        L2P(),
        "^config.l2p.head = 'head': the model has no such head; give the name in config.head",
        head="classifier",
    )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Lora(rank=0), "^config.lora.rank = 0: must be at least 1"),
        (lambda: Lora(rank="8"), "^config.lora.rank = '8': must be a whole number"),
        (lambda: Lora(layers="*"), r"^config.lora.layers = '\*': must be a tuple of a string"),
        (lambda: Taps(lambda_=-1.0), "^config.taps.lambda_ = -1.0: must be at least 0"),
        (lambda: Taps(free_epochs=-1), "^config.taps.free_epochs = -1: must be at least 0"),
        (lambda: Piggyback(ternary=1), "^config.piggyback.ternary = 1: must be true or false"),
        (lambda: Piggyback(learning_rate=-1.0), "^config.piggyback.learning_rate = -1.0: must be at least 0"),
        (lambda: PackNet(free_share=1.5), r"^config.packnet.free_share = 1.5: must be in \[0, 1\]"),
        (lambda: Ssf(weight_decay=-1.0), "^config.ssf.weight_decay = -1.0: must be at least 0"),
        (lambda: Atlas(head_share=2.0), r"^config.atlas.head_share = 2.0: must be in \[0, 1\]"),
        (lambda: Ba2(budget=0.0), "^config.ba2.budget = 0.0: must be above 0 and at most 1"),
        (lambda: Ba2(budget=1.1), "^config.ba2.budget = 1.1: must be above 0 and at most 1"),
        (lambda: L2P(top=11), "^config.l2p.top = 11: must be at most config.l2p.prompts = 10"),
        (lambda: DualPrompt(general_length=0), "^config.dualprompt.general_length = 0: must be at least 1"),
        (lambda: Cwps(granularity="block"), "^config.cwps.granularity = 'block': must be one of 'channel', "),
        (lambda: Cwps(stage_rates=(1.0,)), r"^config.cwps.stage_rates = \(1.0,\): must be three factors"),
        (lambda: Cwps(warm_up_share=0.6, hard_share=0.4), "warm_up_share .* must be below 1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(make, match):
    with pytest.raises(cwps.CwpsError, match=match) as refused:
        make()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"method": "lora", "taps": {"lambda_": 2.0}}, "^config.taps: settings of a method that"),
        ({"method": "lora", "lora": {"rnk": 2}}, "^config.lora.rnk .* did you mean config.lora.rank"),
        ({"method": "lora", "lora": {"lambda_": 2.0}}, "^config.lora.lambda_ is not known"),
        ({"method": "lora", "lora": 2}, "^config.lora = 2: must be keys and values"),
        ({"method": "lora", "lora": {"rank": 2.5}}, "^config.lora.rank = 2.5: must be a whole number"),
        ({"method": "lara"}, "^method 'lara' is not known; choose one of cwps, "),
        ({"lara": {"rank": 2}}, "^config.lara is not known"),
        ({"compare": ("probe", "lara")}, "^method 'lara' is not known"),
        ({"compare": ("packnet",)}, "^config.compare: packnet builds on what it stored of earlier tasks"),
        ({"overrides": {"loops": {"lora": {"rnk": 2}}}}, "^config.overrides.loops: config.lora.rnk is not"),
        ({"overrides": {"loops": {"method": "lora"}}}, "^config.overrides.loops.method: all tasks share it"),
        ({"overrides": {"loops": {"lora": {"rank": 2}}}}, "^config.overrides.loops: config.lora: settings"),
    ],
)  # fmt: skip
def test_a_runs_config_that_cannot_be(given, match):
    with pytest.raises(cwps.CwpsError, match=match) as refused:
        run_config({**RUN, **given})
    assert "\n" not in str(refused.value)


def test_a_method_that_the_run_does_not_use_may_stand_in_its_config_at_its_defaults():
    assert run_config({**RUN, "method": "lora", "taps": {"lambda_": 1.0}}).train.method == Lora()
