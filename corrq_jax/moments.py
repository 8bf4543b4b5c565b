"""Moment matching: the shift that other kernels bring about, corrected without data.

Quantized kernels change the mean and the variance of each channel of their layer's output.
`corrq_jax.wiring.trace` predicts both from the network alone; `match_moments` lets the
normalization or the bias after the kernel take up the difference.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.errors import InputError
from corrq_jax.paths import flatten
from corrq_jax.report import Matched
from corrq_jax.tensor import is_quantized
from corrq_jax.wiring import Site, Wiring, trace

__all__ = ["Matched", "Site", "Wiring", "match_moments", "trace"]


def match_moments(wiring: Wiring, params: Any, qparams: Any) -> tuple[Any, Matched]:
    """Corrects running moments and biases for the kernels of ``qparams``.

    With d the difference of a layer's expected output means, quantized less trained, a
    normalization's running mean grows by d; without one, the bias loses d. The running variance
    s^2 becomes ``g^2 s^2 + v(W_q - g W)``, g being what is left of the trained kernel W in the
    quantized W_q, and v the expected variance of a kernel's output: what is left of the signal
    keeps the variance that training measured, and only that of the noise is predicted. All of it
    is for a channel each (docs/method.md, section 9).

    Args:
        wiring: of the network, from `trace`.
        params: the trained parameters that were traced.
        qparams: the same tree with other kernels, `corrq_jax.QuantizedTensor` or arrays.

    Returns:
        A tree like ``qparams``, with other running moments and biases, made from those of
        ``params``, so that matching again changes nothing; and the report.

    Raises:
        InputError: a tree has other paths or shapes than the one that was traced.

    >>> import jax
    >>> def apply(params, x):
    ...     return x @ params["kernel"] + params["bias"]
    >>> params = {"kernel": np.ones((4, 1), np.float32), "bias": np.zeros(1, np.float32)}
    >>> example = jax.ShapeDtypeStruct((1, 4), np.float32)
    >>> wiring = trace(apply, params, example, input_mean=2.0)
    >>> changed = params | {"kernel": np.full((4, 1), 0.5, np.float32)}
    >>> matched, report = match_moments(wiring, params, changed)
    >>> matched["bias"], report.biases
    (array([4.], dtype=float32), ('kernel',))
    """
    trained, _ = _checked(wiring, params, "params")
    found, treedef = _checked(wiring, qparams, "qparams")
    new: dict[str, Any] = {}
    reached: dict[str, list[str]] = {"norms": [], "biases": []}
    unreached = dict(wiring.unreached)
    for site in wiring.sites:
        encoded = [path for path in site.targets if is_quantized(found[path])]
        if not site.targets or encoded:
            what = f"{encoded[0]} is quantized" if encoded else "no normalization or bias after it"
            unreached[site.kernel] = what
            continue
        new |= _corrected(site, trained, found)
        reached["norms" if len(site.targets) == 2 else "biases"].append(site.kernel)
    leaves = [new.get(path, leaf) for path, leaf in found.items()]
    report = Matched(tuple(reached["norms"]), tuple(reached["biases"]), unreached)
    return jax.tree_util.tree_unflatten(treedef, leaves), report


def _checked(wiring: Wiring, tree: Any, argument: str) -> tuple[dict[str, Any], Any]:
    """The leaves of a tree by path, and its structure."""
    entries, treedef = flatten(tree)
    shapes = {path: _shape(leaf) for path, leaf in entries}
    wrong = [
        *(f"{path} is missing" for path in wiring.shapes if path not in shapes),
        *(f"{path} is unknown" for path in shapes if path not in wiring.shapes),
        *(
            f"{path} has shape {shapes[path]} instead of {shape}"
            for path, shape in wiring.shapes.items()
            if shapes.get(path, shape) != shape
        ),
    ]
    if wrong:
        raise InputError(f"{argument} is not the tree that was traced: {'; '.join(wrong[:5])}")
    return dict(entries), treedef


def _shape(leaf: Any) -> tuple[int, ...]:
    """Of a stack of tensors that of the array that it stands for."""
    stack = leaf.codes.shape[:-1] if is_quantized(leaf) else ()
    return (*stack, *np.shape(leaf))


def _corrected(site: Site, trained: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """New values for the site's targets."""
    kernel, new_kernel = _decoded(trained[site.kernel]), _decoded(found[site.kernel])
    (mean, variance), (new_mean, new_variance) = map(site.output_moments, (kernel, new_kernel))
    values = [_decoded(trained[path]) for path in site.targets]
    if len(values) == 1:
        changes = [mean - new_mean]
    else:
        changed = site.output_moments(new_kernel - kernel)[1]
        gain, noise = _gain_and_noise(variance, new_variance, changed)
        changes = [new_mean - mean, values[1].ravel() * (gain**2 - 1) + noise]
    return {
        path: _like(found[path], value, change)
        for path, value, change in zip(site.targets, values, changes, strict=True)
    }


def _gain_and_noise(
    variance: np.ndarray, new_variance: np.ndarray, changed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is left of the trained kernel in the new one, and the variance of the rest's output.

    All are float64[outputs]: the expected variances of the outputs of the trained kernel, of the
    new one and of their difference. They are values of a quadratic form, in which the rest is
    orthogonal to the trained kernel. One that gives no variance tells nothing: gain 1, no noise.
    """
    common = (variance + new_variance - changed) / 2  # exact for an unchanged kernel
    is_live = variance > 0
    gain = np.divide(common, variance, out=np.ones_like(variance), where=is_live)
    noise = np.where(is_live, new_variance - gain**2 * variance, 0)
    return gain, noise.clip(0)  # rounding may leave less than nothing


def _decoded(leaf: Any) -> np.ndarray:
    return np.asarray(leaf.dequantize() if is_quantized(leaf) else leaf, np.float64)


def _like(leaf: Any, value: np.ndarray, change: np.ndarray) -> Any:
    """A changed value as an array like the leaf."""
    new = (value + change.reshape(value.shape)).astype(leaf.dtype)
    return jnp.asarray(new) if isinstance(leaf, jax.Array) else new
