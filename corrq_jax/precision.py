"""A network in another precision, such as bfloat16, which accelerators multiply fastest."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from corrq_jax.errors import InputError

Apply = Callable[[Any, jax.Array], jax.Array]

DTYPES = ("bfloat16", "float16", "float32")


def in_dtype(apply: Apply, dtype: Any) -> Apply:
    """The same network, computing in another dtype; hashable, and equal for equal arguments.

    Inside, and so inside the compiled step, all floating parameters and floating images are cast
    to `dtype`, those of normalizations too. A dataclass among the parameters that stands for an
    array, with fields `shape` and `dtype` as a `corrq_jax.QuantizedTensor` has, gets the other
    `dtype` and keeps its arrays: kernels are decoded as ever and rounded once. The network then
    computes in `dtype` wherever it follows its inputs, as Flax does with ``dtype=None``; what it
    casts itself, and integer images, stay as they are. The logits are cast to float32.

    Args:
        apply: a pure function `(params, images) -> logits`; hashable.
        dtype: "bfloat16", "float16" or "float32".

    Returns:
        A function of the same parameters and images.

    Raises:
        InputError: `dtype` is another.

    >>> import jax, jax.numpy as jnp
    >>> half = in_dtype(jnp.matmul, "bfloat16")
    >>> print(jax.make_jaxpr(half)(jnp.ones((2, 3)), jnp.ones((3, 4))).eqns[0].outvars[0].aval)
    bfloat16[2,3]
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in DTYPES:
        raise InputError(f"dtype is {name}; give one of {', '.join(DTYPES)}, or None to evaluate")
    return _InDtype(apply, name)


@dataclasses.dataclass(frozen=True)
class _InDtype:
    """A network and the dtype that it computes in."""

    apply: Apply
    dtype: str

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        params, images = jax.tree.map(self._cast, (params, images), is_leaf=_stands_for_an_array)
        return self.apply(params, images).astype(jnp.float32)

    def _cast(self, leaf: Any) -> Any:
        if not _is_floating(leaf):
            return leaf
        if _stands_for_an_array(leaf):
            return dataclasses.replace(leaf, dtype=self.dtype)
        return jnp.asarray(leaf, self.dtype)


def _stands_for_an_array(node: Any) -> bool:
    fields = dataclasses.fields(node) if dataclasses.is_dataclass(node) else ()
    return {"shape", "dtype"} <= {field.name for field in fields}


def _is_floating(leaf: Any) -> bool:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    # Keys of random generators have a dtype that is none of NumPy's.
    return jnp.issubdtype(jnp.dtype(dtype) if isinstance(dtype, str) else dtype, jnp.floating)
