"""What a tree is, as JSON that outlives the code that made it."""

import hashlib

import numpy as np

from corrq_jax.tensor import QuantizedTensor


def describe(node):
    """Containers as they are; of an array dtype, shape and the SHA-256 of its bytes.

    Of a quantized tensor the weights, decoded, and what else the file says of it.
    """
    if node is None:
        return None
    if isinstance(node, dict):
        return {"dict": [[key, describe(node[key])] for key in sorted(node)]}
    if isinstance(node, list | tuple):
        return {type(node).__name__: [describe(child) for child in node]}
    if isinstance(node, QuantizedTensor):
        kept = {"bits": node.bits, "coding": node.coding, "levels": _array(node.levels)}
        return {"quantized": kept, "weights": _array(node.dequantize())}
    return _array(node)


def _array(array):
    array = np.asarray(array)
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.sha256(data.tobytes()).hexdigest()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": digest}
