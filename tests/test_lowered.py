"""What is handed to the compiler: activations stay NHWC, nothing is transposed on the way."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwps_jax.models import find
from cwps_jax.train.step import apply_model

# Exactly four: the gradient of a depthwise kernel moves an axis of 1 in five.
FOUR_AXES = re.compile(r"tensor<(\d+x){4}[a-z]")


def gradient_program(name: str, dtype: jnp.dtype) -> str:
    """Returns a backbone's loss and gradient as StableHLO, without compiling them."""
    model = find(name).create(10, dtype=dtype)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    other = {key: tree for key, tree in variables.items() if key != "params"}

    def loss(params, other, images):
        logits, changed = apply_model(model, params, other, images, train=True, mutable=list(other))
        return jnp.sum(logits), changed

    return jax.jit(jax.grad(loss, has_aux=True)).lower(variables["params"], other, images).as_text()


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "efficientnet_b0", "squeezenet1_1"])
def test_convolutional_families_transpose_no_activation(name):
    lines = gradient_program(name, jnp.bfloat16).splitlines()
    assert not [line for line in lines if "stablehlo.transpose" in line and FOUR_AXES.search(line)]
    convolutions = [line for line in lines if "stablehlo.convolution" in line]
    forward = [line for line in convolutions if "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line]
    # Backward passes read the same arrays by other axes; every forward one is NHWC and in bfloat16.
    assert len(forward) >= len(convolutions) // 3
    assert all(line.rstrip().endswith("xbf16>") for line in forward)


def test_a_transpose_would_be_seen():
    program = jax.jit(lambda x: jnp.swapaxes(x, 1, 3)).lower(np.zeros((2, 3, 4, 5), np.float32)).as_text()
    assert [line for line in program.splitlines() if "stablehlo.transpose" in line and FOUR_AXES.search(line)]
