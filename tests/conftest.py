"""Eight fake CPU devices, a cache of compiled programs, and the tiny model that the tests share."""

import os
import pathlib
import shutil

import compiling

# Before JAX is imported.
os.environ["XLA_FLAGS"] = " ".join(
    (os.environ.get("XLA_FLAGS", ""), compiling.FLAGS, "--xla_force_host_platform_device_count=8")
).strip()
os.environ.setdefault("CWPS_TEST_CACHE", str(pathlib.Path.home() / ".cache" / "cwps_jax_tests"))
if "PYTEST_XDIST_WORKER" in os.environ:  # one for each: JAX does not write its files atomically
    os.environ["CWPS_TEST_CACHE"] += "/" + os.environ["PYTEST_XDIST_WORKER"]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["CWPS_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stages

from cwps_jax import modules
from cwps_jax.core.channels import Layout
from cwps_jax.data.task import TaskData
from cwps_jax.store import Pool
from cwps_jax.store.lock import locked


class TinyModel(nn.Module):
    """Two convolutions, batch norm and a head: the smallest model with every kind of leaf."""

    classes: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(6, (3, 3), use_bias=False, dtype=self.dtype, name="conv1")(images.astype(self.dtype))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(x))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, dtype=self.dtype, name="conv2")(x))
        return nn.Dense(self.classes, name="head")(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))


def random_split(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns images (count, 8, 8, 1) of noise, float32, and labels (count,) of three classes, int32."""
    images = np.random.default_rng(seed).normal(size=(count, 8, 8, 1)).astype(np.float32)
    return {"image": images, "label": np.arange(count, dtype=np.int32) % 3}


def random_task() -> TaskData:
    """Returns a task of 96 and 24 such images."""
    return TaskData.from_arrays(random_split(96, 96), random_split(24, 24), classes=3)


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    return TinyModel()


@pytest.fixture(scope="session")
def tiny_layout(tiny_model: TinyModel) -> Layout:
    return modules.channel_layout(tiny_model, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))


@pytest.fixture(scope="session")
def tiny_variables(tiny_model: TinyModel) -> dict:
    """Initial variables on the host: {"params": ..., "batch_stats": ...}."""
    return jax.device_get(jax.jit(tiny_model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))


@pytest.fixture(scope="session")
def moved():
    """Returns a function (tree, scale, seed) -> the tree with normal noise of that scale on every leaf."""
    return stages.moved


@pytest.fixture(scope="session")
def served_pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """The pool of `served.make_pool`, made once for all processes, to be left as it is; beside it is DATA."""
    import served  # not above: it imports scikit-learn, which most tests can do without

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = base / "served_once", base / "served_once.made"
    with locked(base / "served_once.lock", "the served pool is being made"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            served.make_pool(folder)
            made.touch()
    return Pool.open(folder / "pool")


@pytest.fixture(scope="module")
def own_served_pool(served_pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """A copy of it for each module, with the pictures that its records name; it may be changed."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(served_pool.folder.parent, folder, dirs_exist_ok=True)
    index = folder / "pool" / "index.json"
    index.write_text(index.read_text().replace(str(served_pool.folder.parent), str(folder)))
    return Pool.open(folder / "pool")


@pytest.fixture(scope="session")
def served_files(served_pool: Pool) -> list[str]:
    """Paths of the test pictures of a task of `served_pool`, sorted: first the scans of a class."""
    folder = served_pool.folder.parent / "DATA" / "negative" / "test"
    return sorted(str(file) for file in folder.glob("*/[!.]*"))


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channel rules that a test registers are forgotten after it."""
    monkeypatch.setattr(modules, "_RULES", dict(modules._RULES))
