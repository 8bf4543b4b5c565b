"""corrq_jax: trained networks in 1 to 8 bits a weight by maximal correlation, without data.

>>> import numpy as np
>>> import corrq_jax as corrq
>>> params = {"kernel": np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)}
>>> qparams, report = corrq.quantize(params, bits=4)
>>> params_hat = corrq.dequantize(qparams)
>>> round(corrq.correlation(params["kernel"], params_hat["kernel"]), 3)
0.995
"""

from importlib.metadata import version as _version

from corrq_jax.archive import Archive
from corrq_jax.array import quantize_array
from corrq_jax.config import Config
from corrq_jax.core.correlation import correlation
from corrq_jax.errors import CorrqError, FileFormatError, InputError, MissingDependencyError
from corrq_jax.matmul import matmul
from corrq_jax.packed import packed
from corrq_jax.report import Report, Row, Skipped
from corrq_jax.restoring import dequantize_file
from corrq_jax.sharded_loading import load_sharded
from corrq_jax.sharded_saving import save_sharded
from corrq_jax.storage import load, save
from corrq_jax.streaming import quantize_file
from corrq_jax.tensor import QuantizedTensor
from corrq_jax.tree import dequantize, quantize

__version__ = _version("corrq_jax")

__all__ = [
    "Archive",
    "Config",
    "CorrqError",
    "FileFormatError",
    "InputError",
    "MissingDependencyError",
    "QuantizedTensor",
    "Report",
    "Row",
    "Skipped",
    "correlation",
    "dequantize",
    "dequantize_file",
    "load",
    "load_sharded",
    "matmul",
    "packed",
    "quantize",
    "quantize_array",
    "quantize_file",
    "save",
    "save_sharded",
]
