"""What is special to ViTs and Mixers: their image size, and their weights in others' names and axes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import erf
from test_families import CASES, images_of, model_of, trained_logits, variables_of

from cwps_jax import models
from cwps_jax.core.trees import flatten
from cwps_jax.errors import CwpsError
from cwps_jax.models.pretrained import load_backbone, save_backbone
from cwps_jax.models.tokens import Mlp
from cwps_jax.models.vit import resize_position_embedding
from cwps_jax.modules import channel_layout

SIDE = 8  # of the families' small models: four patches
WIDTH, HEADS = 8, 2

# timm 1.0.31, resample_abs_pos_embed of sin(0.37 * i**2), i counting tokens: 4 x 4 to 3 x 3, 3 x 3 to 5 x 5.
RESAMPLED = {
    (4, 3): """
        0.0 0.6121788620948792 0.33478444814682007 -0.6075661778450012 -0.3325604796409607
        0.02867721952497959 -0.35208189487457275 -0.5920808911323547 0.31132543087005615
        0.6605373620986938""",
    (3, 5): """
        0.0 0.367250919342041 0.6996688842773438 1.057917833328247 0.23550620675086975 -0.35201725363731384
        0.07577604800462723 0.37222713232040405 0.7598209977149963 0.42059987783432007 0.1507348120212555
        -0.3951887786388397 -0.19251230359077454 0.17388948798179626 0.5289616584777832 0.7228103876113892
        -0.5818793773651123 -0.6086398959159851 -0.620549201965332 -0.45634710788726807 -0.34588587284088135
        -0.6518548130989075 -0.8202868700027466 -1.081109642982483 -1.1234142780303955 -1.1215823888778687""",
}


@pytest.fixture(params=["vit", "mixer"])
def family(request) -> str:
    return request.param


@pytest.fixture
def small(monkeypatch):
    """The families' small models, loaded and saved by their families' names."""
    for name in ("vit", "mixer"):
        monkeypatch.setitem(models.BACKBONES, name, CASES[name].small)


def gelu(x: np.ndarray, approximate: bool) -> np.ndarray:
    if approximate:
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + erf(x / np.sqrt(2)))


def norm(w: dict, name: str, x: np.ndarray) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * w[f"{name}/scale"] + w[f"{name}/bias"]


def dense(w: dict, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def mlp(w: dict, name: str, x: np.ndarray, approximate: bool) -> np.ndarray:
    return dense(w, f"{name}/Dense_1", gelu(dense(w, f"{name}/Dense_0", x), approximate))


def patches(w: dict, name: str, images: np.ndarray) -> np.ndarray:
    rows = [images[:, i : i + 4, j : j + 4] for i in range(0, SIDE, 4) for j in range(0, SIDE, 4)]
    return np.einsum("pbhwc,hwcd->bpd", rows, w[f"{name}/kernel"]) + w[f"{name}/bias"]


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def vit_reference(w: dict, images: np.ndarray, approximate: bool) -> np.ndarray:
    """The original ViT in NumPy, from its own names."""
    x = patches(w, "embedding", images)
    x = np.concatenate([np.repeat(w["cls"], len(x), axis=0), x], axis=1)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    for block in (f"Transformer/encoderblock_{i}" for i in range(2)):
        y = norm(w, f"{block}/LayerNorm_0", x)
        query, key, value = (
            np.einsum("btd,dhk->bthk", y, w[f"{block}/MultiHeadDotProductAttention_1/{one}/kernel"])
            + w[f"{block}/MultiHeadDotProductAttention_1/{one}/bias"]
            for one in ("query", "key", "value")
        )
        share = softmax(np.einsum("bqhk,bthk->bhqt", query, key) / np.sqrt(WIDTH // HEADS))
        y = np.einsum("bhqt,bthk->bqhk", share, value)
        out = f"{block}/MultiHeadDotProductAttention_1/out"
        x = x + np.einsum("bqhk,hkd->bqd", y, w[f"{out}/kernel"]) + w[f"{out}/bias"]
        x = x + mlp(w, f"{block}/MlpBlock_3", norm(w, f"{block}/LayerNorm_2", x), approximate)
    return dense(w, "head", norm(w, "Transformer/encoder_norm", x)[:, 0])


def mixer_reference(w: dict, images: np.ndarray, approximate: bool) -> np.ndarray:
    """The original Mixer in NumPy, from its own names."""
    x = patches(w, "stem", images)
    for block in ("MixerBlock_0", "MixerBlock_1"):
        y = norm(w, f"{block}/LayerNorm_0", x).transpose(0, 2, 1)
        x = x + mlp(w, f"{block}/token_mixing", y, approximate).transpose(0, 2, 1)
        x = x + mlp(w, f"{block}/channel_mixing", norm(w, f"{block}/LayerNorm_1", x), approximate)
    return dense(w, "head", norm(w, "pre_head_layer_norm", x).mean(axis=1))


REFERENCES = {"vit": vit_reference, "mixer": mixer_reference}


@pytest.mark.parametrize("approximate", [False, True])
def test_an_original_file_computes_what_the_original_does(family, approximate, small, tmp_path):
    """The reference reads the file by the names and axes that the original has, not by our table."""
    leaves = flatten(variables_of(family))
    table = next(one for one in CASES[family].small.tables if one.suffix == ".npz")
    arrays = {key: one.to_array(leaves) for key, one in table.conversions(leaves).items()}
    np.savez(tmp_path / "original.npz", **arrays)
    model, loaded = load_backbone(family, tmp_path / "original.npz", approximate_gelu=approximate)
    logits = jax.jit(model.apply)(loaded, images_of(family))
    exact = {key: array.astype(np.float64) for key, array in arrays.items()}
    np.testing.assert_allclose(logits, REFERENCES[family](exact, images_of(family), approximate), atol=1e-5)
    other = REFERENCES[family](exact, images_of(family), not approximate)
    assert np.abs(logits - other).max() > 5e-5


@pytest.mark.parametrize(
    ("keys", "weight", "bias"),
    [
        ("timm", "blocks.1.attn.qkv.weight", "blocks.1.attn.qkv.bias"),
        (
            "torchvision",
            "encoder.layers.encoder_layer_1.self_attention.in_proj_weight",
            "encoder.layers.encoder_layer_1.self_attention.in_proj_bias",
        ),
    ],
)
def test_query_key_and_value_are_one_matrix_in_torch_files(keys, weight, bias, small, tmp_path):
    variables = variables_of("vit")
    save_backbone(tmp_path / "w.safetensors", "vit", variables, keys=keys)
    arrays = load_file(tmp_path / "w.safetensors")
    x = np.random.default_rng(1).standard_normal(WIDTH).astype(np.float32)
    attention = variables["params"]["block1"]["attention"]
    expected = [
        np.einsum("d,dhk->hk", x, attention[name]["kernel"]) + attention[name]["bias"]
        for name in ("query", "key", "value")
    ]
    np.testing.assert_allclose(arrays[weight] @ x + arrays[bias], np.ravel(expected), atol=1e-6)


@pytest.mark.parametrize(("old", "new"), RESAMPLED)
def test_a_position_embedding_is_resampled_as_timm_does(old, new):
    tokens = np.arange(1 + old * old, dtype=np.float32)
    one = np.sin(0.37 * tokens**2).reshape(1, -1, 1)
    array = np.concatenate([one, np.full_like(one, 3), -one], axis=2)
    resized = resize_position_embedding(array, (1, 1 + new * new, 3))
    expected = np.array(RESAMPLED[old, new].split(), np.float32)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized[0, :, 0], expected, atol=1e-5)
    np.testing.assert_allclose(resized[0, :, 1], 3, atol=1e-5)
    np.testing.assert_array_equal(resized[0, :, 2], -resized[0, :, 0])
    np.testing.assert_array_equal(resized[0, 0], array[0, 0])


@pytest.mark.parametrize("shape", [(1, 10, 4), (1, 11, 3), (1, 0, 3), (2, 10, 3), (10, 3)])
def test_an_array_that_is_no_square_of_this_width_is_not_resampled(shape):
    assert resize_position_embedding(np.zeros(shape, np.float32), (1, 17, 3)) is None
    assert resize_position_embedding(np.zeros((1, 10, 3), np.float32), (1, 16, 3)) is None


def test_a_vit_file_of_another_image_size_is_resampled(small, tmp_path):
    variables = variables_of("vit")
    save_backbone(tmp_path / "w.safetensors", "vit", variables)
    model, loaded = load_backbone("vit", tmp_path / "w.safetensors", image_size=12)
    position = loaded["params"].pop("position_embedding")
    rest = {name: leaf for name, leaf in variables["params"].items() if name != "position_embedding"}
    chex.assert_trees_all_equal(loaded["params"], rest)
    old = variables["params"]["position_embedding"]
    np.testing.assert_array_equal(position, resize_position_embedding(old, (1, 10, WIDTH)))
    images = jax.ShapeDtypeStruct((1, 12, 12, 3), jnp.float32)
    jax.eval_shape(model.apply, {"params": {**rest, "position_embedding": position}}, images)


@pytest.mark.parametrize(
    ("name", "path", "key"),
    [("vit", "position_embedding", "pos_embed"), ("mixer", "block0/token_mixing/dense1/kernel", None)],
)
def test_variables_of_another_image_size_are_refused(name, path, key, small, tmp_path):
    """Applied as they are, with both shapes; a file too, where it cannot be resampled."""
    shape = flatten(variables_of(name)["params"])[path].shape
    wanted = (1, 10, WIDTH) if name == "vit" else (9, WIDTH // 2)
    with pytest.raises(CwpsError) as error:
        refuse(name, (1, 12, 12, 3))
    assert f"{path} has shape {shape}, these images need {wanted}" in str(error.value)
    assert "\n" not in str(error.value)
    save_backbone(tmp_path / "w.safetensors", name, variables_of(name))
    arrays = load_file(tmp_path / "w.safetensors")
    if key:
        arrays[key] = arrays[key][:, :4]
        save_file(arrays, tmp_path / "w.safetensors")
    with pytest.raises(CwpsError, match="wrong shape") as error:
        load_backbone(name, tmp_path / "w.safetensors", image_size=12)
    assert "\n" not in str(error.value)


def refuse(name: str, shape: tuple[int, ...], **options) -> None:
    jax.eval_shape(
        model_of(name, **options).apply, variables_of(name), jax.ShapeDtypeStruct(shape, np.float32)
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 10, 10, 3), "images are 10 x 10 px, not a multiple of patch_size = 4"),
        ((1, 2, 2, 3), "images are 2 x 2 px, not a multiple of patch_size = 4"),
        ((1, 4, 16, 3), "images are 4 x 16 px, must be square"),
    ],
)
@pytest.mark.parametrize("remat", [False, True])
def test_images_that_do_not_fit_the_patches_are_refused(family, shape, message, remat):
    with pytest.raises(CwpsError, match=message):
        refuse(family, shape, remat=remat)


def test_what_has_channels_in_a_vit_and_what_each_task_keeps():
    layout = channel_layout(model_of("vit"), jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32))
    gates = {layer.path.removesuffix("/kernel"): layer.gate_shape for layer in layout.layers}
    block = {
        **{f"attention/{name}": (1, HEADS, WIDTH // HEADS) for name in ("query", "key", "value")},
        "attention/out": (1, 1, WIDTH),
        "mlp/dense1": (1, 4 * WIDTH),
        "mlp/dense2": (1, WIDTH),
    }
    expected = {f"block{i}/{path}": shape for i in range(2) for path, shape in block.items()}
    assert gates == {**expected, "patch_embedding": (1, 1, 1, WIDTH)}
    norms = {path for path in layout.private_paths if "norm" in path}
    assert set(layout.private_paths) - norms == {"class_token", "position_embedding"}
    assert len(norms) == 10


def test_dropout_is_in_each_branch_and_behind_the_position_embedding():
    """All dropped: what the head reads of a ViT is its last norm's bias, of a Mixer its unmixed patches."""
    params = variables_of("vit")["params"]
    expected = dense(flatten(params), "head", params["norm"]["bias"])
    logits = trained_logits("vit", variables_of("vit"), dropout=1.0)
    np.testing.assert_allclose(logits, np.broadcast_to(expected, logits.shape), atol=1e-6)
    flat = flatten(variables_of("mixer")["params"])
    tokens = norm(flat, "norm", patches(flat, "patch_embedding", images_of("mixer")))
    logits = trained_logits("mixer", variables_of("mixer"), dropout=1.0)
    np.testing.assert_allclose(logits, dense(flat, "head", tokens.mean(axis=1)), atol=1e-5)


def test_dropout_is_behind_both_layers_of_an_mlp():
    """Layers that copy: each of the two keeps half of the items, and doubles them."""
    copies = {"kernel": np.eye(400, dtype=np.float32), "bias": np.zeros(400, np.float32)}
    module, keys = Mlp(400, dropout=0.5, train=True), {"dropout": jax.random.key(0)}
    x = np.full((1, 400), 8, np.float32)  # GELU leaves it as it is
    y = module.apply({"params": {"dense1": copies, "dense2": copies}}, x, rngs=keys)
    assert set(np.unique(np.round(y, 3))) == {0, 32}
    assert abs((np.asarray(y) > 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)
