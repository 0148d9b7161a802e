"""Weights files: every key used once, every leaf filled once, or all differences listed."""

import sys
import types
import zipfile

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cwps_jax import load_backbone, save_backbone
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.models import find
from cwps_jax.models.conversion import CONV, DENSE, FLAX, HEADS, NORM, PARAMETER, Entry, Table

NAME = "resnet8"


@pytest.fixture(scope="module")
def variables() -> dict:
    """Random variables of the smallest backbone, without compiling its initialisers."""
    model = find(NAME).create(10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 12, 12, 3), np.float32))
    rng = np.random.default_rng(0)
    return unflatten(
        {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flatten(shapes).items()}
    )


@pytest.fixture
def path(tmp_path, variables):
    """A good weights file; a test may write it anew with a fault."""
    save_backbone(tmp_path / "w.safetensors", NAME, variables)
    return tmp_path / "w.safetensors"


def refusal(path, **options) -> str:
    """Returns the message with which a file is refused: one line."""
    with pytest.raises(CwpsError) as error:
        load_backbone(options.pop("name", NAME), path, **options)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_the_round_trip_is_bit_identical(path, variables, tmp_path):
    model, loaded = load_backbone(NAME, path)
    assert model.num_classes == 10
    chex.assert_trees_all_equal(loaded, variables)
    save_backbone(tmp_path / "again.safetensors", NAME, loaded)
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_the_file_has_pytorchs_names_and_axes(path, variables):
    arrays = load_file(path)
    kernel = variables["params"]["stage2_block0"]["shortcut_conv"]["kernel"]
    assert kernel.shape == (1, 1, 16, 32)
    np.testing.assert_array_equal(arrays["layer2.0.downsample.0.weight"][5, 7, 0, 0], kernel[0, 0, 7, 5])
    np.testing.assert_array_equal(arrays["fc.weight"][3], variables["params"]["head"]["kernel"][:, 3])
    statistics = variables["batch_stats"]["stage1_block0"]["norm2"]["var"]
    np.testing.assert_array_equal(arrays["layer1.0.bn2.running_var"], statistics)
    assert arrays["bn1.num_batches_tracked"].dtype == np.int64


def test_a_head_of_another_size_is_left_out_only_when_asked_for(path, variables):
    model, loaded = load_backbone(NAME, path, num_classes=3)
    assert model.num_classes == 3
    head = loaded["params"].pop("head")
    assert head["kernel"].shape == (64, 3) and np.ptp(head["kernel"]) > 0
    wanted = {name: tree for name, tree in variables["params"].items() if name != "head"}
    chex.assert_trees_all_equal(loaded["params"], wanted)
    _, other = load_backbone(NAME, path, num_classes=3, seed=1)
    assert np.any(other["params"]["head"]["kernel"] != head["kernel"])
    _, same = load_backbone(NAME, path, num_classes=10)
    chex.assert_trees_all_equal(same, variables)


def test_a_file_without_a_head_needs_num_classes(path):
    arrays = {key: array for key, array in load_file(path).items() if not key.startswith("fc.")}
    save_file(arrays, path)
    assert "missing (2): fc.bias, fc.weight" in refusal(path)
    _, loaded = load_backbone(NAME, path, num_classes=3)
    assert loaded["params"]["head"]["bias"].shape == (3,)


def test_all_differences_are_listed(path):
    arrays = load_file(path)
    del arrays["layer1.0.conv1.weight"]
    arrays["bn1.weight"] = np.zeros(5, np.float32)
    arrays["layer9.0.conv1.weight"] = np.zeros(5, np.float32)
    save_file(arrays, path)
    line = refusal(path)
    assert "missing (1): layer1.0.conv1.weight" in line
    assert "surplus (1): layer9.0.conv1.weight" in line
    assert "wrong shape (1): bn1.weight is (5,), must be (16,)" in line


def test_another_architecture_and_other_images_are_refused(path):
    line = refusal(path, name="resnet20_cifar")
    assert "does not fit resnet20_cifar" in line and "missing" in line and "surplus" in line
    assert "conv1.weight is (16, 3, 3, 3), must be (16, 1, 3, 3)" in refusal(path, channels=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(path, value):
    arrays = load_file(path)
    arrays["layer1.0.conv2.weight"][0, 0, 0, 0] = value
    save_file(arrays, path)
    assert "layer1.0.conv2.weight has values that are not finite" in refusal(path)


def test_half_precision_is_widened_exactly_and_other_types_are_refused(path):
    arrays = load_file(path)
    arrays["fc.bias"] = arrays["fc.bias"].astype(np.float16)
    arrays["conv1.weight"] = arrays["conv1.weight"].astype(ml_dtypes.bfloat16)
    save_file(arrays, path)
    _, loaded = load_backbone(NAME, path)
    assert loaded["params"]["head"]["bias"].dtype == np.float32
    np.testing.assert_array_equal(loaded["params"]["head"]["bias"], arrays["fc.bias"].astype(np.float32))
    kernel = arrays["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(loaded["params"]["stem_conv"]["kernel"], kernel)
    for other, called in ((np.float64, "F64"), (np.int32, "I32")):
        save_file({**arrays, "fc.bias": np.zeros(10, other)}, path)
        assert f"fc.bias is {called}, must be one of float32" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x80\x04\x95 a pickle"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    for name, kind in (("w.safetensors", "safetensors"), ("w.npz", "npz")):
        (tmp_path / name).write_bytes(content)
        assert f"not a readable {kind} file" in refusal(tmp_path / name)


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a readable safetensors file" in refusal(path)


def test_a_pytorch_checkpoint_is_pointed_to_its_converter(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    assert "scripts/pth_to_safetensors.py" in refusal(tmp_path / "w.pth")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "no such weights file" in refusal(tmp_path / "w.safetensors")


def test_an_npz_where_the_family_has_none_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(3, np.float32))
    assert "weights of this backbone come as .safetensors" in refusal(tmp_path / "w.npz")


def test_an_npz_of_pickles_is_refused_by_its_header_alone(tmp_path):
    from cwps_jax.models.weights_file import WeightsFile

    np.savez(tmp_path / "w.npz", a=np.array([{}], object), b=np.zeros((2, 3), np.float32))
    file = WeightsFile(tmp_path / "w.npz")
    assert file.shapes == {"a": (1,), "b": (2, 3)}
    with pytest.raises(CwpsError, match="a is object, must be one of float32"):
        file.check_types({"b": None, "a": None})
    with pytest.raises(CwpsError, match="a cannot be read"):
        file.read("a")


def test_a_damaged_npz_is_refused(tmp_path):
    from cwps_jax.models.weights_file import WeightsFile

    rng = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "w.npz", a=rng.normal(size=5000).astype(np.float32))
    with zipfile.ZipFile(tmp_path / "w.npz") as archive:
        (member,) = archive.infolist()
    content = bytearray((tmp_path / "w.npz").read_bytes())
    content[member.header_offset + member.compress_size // 2] ^= 255
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(CwpsError, match="w.npz"):
        WeightsFile(tmp_path / "w.npz").read("a")


def test_the_hub_is_asked_for_owner_repo_and_file(path, monkeypatch):
    asked = []

    def hf_hub_download(repo, file):
        asked.append((repo, file))
        if file == "gone":
            raise FileNotFoundError("404")
        return str(path)

    hub = types.SimpleNamespace(hf_hub_download=hf_hub_download, __spec__=object())
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    load_backbone(NAME, "hf://owner/repo/folder/model.safetensors")
    assert asked == [("owner/repo", "folder/model.safetensors")]
    for weights, line in (
        ("hf://owner/repo/gone", "cannot be downloaded"),
        ("hf://owner", "hf://owner/repo"),
    ):
        with pytest.raises(CwpsError, match=line):
            load_backbone(NAME, weights)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CwpsError, match=r"cwps_jax\[hub\]"):
        load_backbone(NAME, "hf://owner/repo/file")


def test_without_weights_it_is_random_by_the_seed():
    model, first = load_backbone(NAME, num_classes=4)
    _, second = load_backbone(NAME, num_classes=4, seed=1)
    assert model.num_classes == 4
    assert np.any(first["params"]["head"]["kernel"] != second["params"]["head"]["kernel"])
    np.testing.assert_array_equal(first["batch_stats"]["stem_norm"]["var"], 1)


def test_unknown_names_are_refused_with_the_known_ones(tmp_path, variables):
    with pytest.raises(CwpsError, match="'resnet19' is not known; choose one of .*resnet18"):
        load_backbone("resnet19")
    with pytest.raises(CwpsError, match="ResNet has no option 'depth'; it has dtype"):
        load_backbone(NAME, depth=3)
    with pytest.raises(CwpsError, match="no key names 'caffe' to write; choose one of torchvision"):
        save_backbone(tmp_path / "w.safetensors", NAME, variables, keys="caffe")
    with pytest.raises(CwpsError, match="params/other/kernel: the table 'torchvision' has no entry"):
        save_backbone(tmp_path / "w.safetensors", NAME, {"params": {"other": {"kernel": np.zeros((2, 3))}}})


LEAVES = {
    "params/token": np.arange(4.0),
    "params/conv3/kernel": np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5),
    "params/block7/query/kernel": np.arange(6 * 2 * 3.0).reshape(6, 2, 3),
    "params/block7/key/kernel": 100 + np.arange(6 * 2 * 3.0).reshape(6, 2, 3),
    "params/block7/query/bias": np.arange(6.0).reshape(2, 3),
    "params/block7/key/bias": 10 + np.arange(6.0).reshape(2, 3),
    "params/block7/out/kernel": np.arange(2 * 3 * 6.0).reshape(2, 3, 6),
    "params/norm/scale": np.arange(3.0),
    "batch_stats/norm/mean": np.arange(3.0),
}


def test_every_kind_of_entry_against_pytorchs_definition():
    """y = x W^T + b for a linear layer, rows of a fused projection in their order."""
    table = Table(
        "test",
        (
            Entry("token", "cls", PARAMETER),
            Entry("conv{}", "layers.{}", CONV),
            Entry(("block{}/query", "block{}/key"), "blocks.{}.qk", HEADS),
            Entry("block{}/out", "blocks.{}.proj", DENSE),
            Entry("norm", "norm", NORM),
        ),
    )
    conversions = table.conversions(LEAVES)
    arrays = {key: one.to_array(LEAVES) for key, one in conversions.items()}
    assert {key: array.shape for key, array in arrays.items()} == {
        key: one.shape for key, one in conversions.items()
    }
    assert set(arrays) == {
        "cls", "layers.3.weight", "blocks.7.qk.weight", "blocks.7.qk.bias", "blocks.7.proj.weight",
        "norm.weight", "norm.running_mean",
    }  # fmt: skip
    assert table.counters(LEAVES) == {"norm.num_batches_tracked"}
    x = np.random.default_rng(0).normal(size=6)
    fused = arrays["blocks.7.qk.weight"] @ x + arrays["blocks.7.qk.bias"]
    for name, rows in (("query", fused[:6]), ("key", fused[6:])):
        ours = np.einsum("d,dhe->he", x, LEAVES[f"params/block7/{name}/kernel"])
        np.testing.assert_allclose(rows, (ours + LEAVES[f"params/block7/{name}/bias"]).ravel())
    ours = np.einsum("he,hed->d", x.reshape(2, 3), LEAVES["params/block7/out/kernel"])
    np.testing.assert_allclose(arrays["blocks.7.proj.weight"] @ x, ours)
    kernel = LEAVES["params/conv3/kernel"]
    assert arrays["layers.3.weight"][4, 3, 1, 2] == kernel[1, 2, 3, 4]
    back = {
        path: leaf for key, one in conversions.items() for path, leaf in one.to_leaves(arrays[key]).items()
    }
    assert back.keys() == LEAVES.keys()
    for path, leaf in back.items():
        np.testing.assert_array_equal(leaf, LEAVES[path])


def test_files_of_flax_models_keep_names_and_axes():
    table = Table("flax", (Entry("block7/out", "Block_7/Dense_0", FLAX),), ".npz")
    kernel = LEAVES["params/block7/out/kernel"]
    (key,) = conversions = table.conversions({"params/block7/out/kernel": kernel})
    assert key == "Block_7/Dense_0/kernel"
    np.testing.assert_array_equal(conversions[key].to_array(LEAVES), kernel)


def test_a_table_that_fills_a_key_twice_is_a_mistake():
    table = Table("bad", (Entry("a", "x", DENSE), Entry("b", "x", DENSE)))
    kernel = np.zeros((2, 3))
    with pytest.raises(AssertionError, match="filled twice"):
        table.conversions({"params/a/kernel": kernel, "params/b/kernel": kernel})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
def test_names_behind_a_wrapper_are_the_same_names(path, variables, prefix):
    arrays = load_file(path)
    save_file({prefix + key: array for key, array in arrays.items()}, path)
    chex.assert_trees_all_equal(load_backbone(NAME, path)[1], variables)
    # With one name outside, it is not known what the others are.
    save_file({**{prefix + key: array for key, array in arrays.items()}, "epoch": np.zeros(1)}, path)
    line = refusal(path)
    assert "and 23 more" in line or f"more, all of them {prefix}..." in line or "surplus" in line
    assert len(line) < 800


def test_a_file_without_a_head_gets_a_new_one_where_that_is_asked_for(path, variables):
    arrays = {key: array for key, array in load_file(path).items() if not key.startswith("fc.")}
    save_file(arrays, path)
    assert "missing (2): fc.bias, fc.weight" in refusal(path)
    _, loaded = load_backbone(NAME, path, headless=True)
    assert loaded["params"].keys() == variables["params"].keys()
    without = [{**tree["params"], "head": None} for tree in (loaded, variables)]
    chex.assert_trees_all_equal(*without)
    save_file({**arrays, "fc.bias": np.zeros(10, np.float32)}, path)  # half a head is a broken file
    assert "missing (1): fc.weight" in refusal(path, headless=True)


def test_a_git_lfs_pointer_is_called_so(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "a Git-LFS pointer, not the weights; run `git lfs pull`" in refusal(path)
