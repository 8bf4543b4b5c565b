"""Ways to quantize weights, this library's and others', as the benchmarks time and measure them."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np

_CONVOLUTIONS = [
    *((3, 3, 3, 64), (3, 3, 64, 64), (3, 3, 64, 128), (3, 3, 128, 128), (3, 3, 128, 256)),
    *((3, 3, 256, 256),) * 2,
    (3, 3, 256, 512),
    *((3, 3, 512, 512),) * 5,
]
TREES = {
    "vgg16": [*_CONVOLUTIONS, (25088, 4096), (4096, 4096), (4096, 1000)],
    "convolutions": _CONVOLUTIONS,
    "kernel": [(3, 3, 512, 512)],
}
"""Shapes of the tree: VGG-16's kernels (138 M weights), its convolutions (14.7 M), one (2.36 M)."""

BITS = 4
GROUP = 64
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to quantize.

    Attributes:
        name: what the table shows.
        prepare: imports what it needs, and returns the function to time; that takes the weights and
            returns what the other functions need.
        decode: makes weights of that again, not timed.
        stored: bits of codes, packed as tightly as they can be, and of all scales, zero points,
            centroids and levels, in the dtypes that the library gives.
        held: bytes of the arrays as the library leaves them in memory.
        packages: modules that have to be installed.
        on_tree: whether it can bear the whole tree; if not it gets one kernel.
        on_kernel: whether it is of use on one kernel.
        in_rows: whether it wants matrices of (outputs, inputs), PyTorch's order.
    """

    name: str
    prepare: Callable[[], Callable[[dict], Any]]
    decode: Callable[[Any], dict]
    stored: Callable[[Any], float]
    held: Callable[[Any], int]
    packages: tuple[str, ...] = ()
    on_tree: bool = False
    on_kernel: bool = True
    in_rows: bool = False

    @property
    def absent(self) -> str | None:
        """The first package that is not installed."""
        return next((p for p in self.packages if not _is_installed(p)), None)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of "a.b" without a
        return False


def _one(function: Callable[[np.ndarray], Any]) -> Callable[[dict], dict]:
    return lambda weights: {path: function(w) for path, w in weights.items()}


def _ours(name: str, **options: Any) -> Contender:
    def prepare():
        import corrq_jax as corrq

        return lambda weights: corrq.quantize(weights, **{"bits": BITS, **options})

    def decode(result: Any) -> dict:
        import corrq_jax as corrq

        return corrq.dequantize(result[0])

    return Contender(
        f"corrq {name}",
        prepare,
        decode,
        lambda result: sum(8.0 * row.nbytes for row in result[1]),
        lambda result: sum(leaf.nbytes for leaf in result[0].values()),
        ("corrq_jax",),
        on_tree=True,
        on_kernel="bits_per_weight" not in options,  # a budget is for several
    )


# k-means: (codes, centroids, shape) of each tensor.


def _prepare_kmeans1d():
    import kmeans1d

    return _one(lambda w: (*kmeans1d.cluster(w.ravel(), 2**BITS), w.shape))


def _prepare_flash1dkmeans():
    import flash1dkmeans

    def cluster(w):
        centroids, codes = flash1dkmeans.kmeans_1d(w.ravel(), 2**BITS, random_state=0)
        return codes, centroids, w.shape

    return _one(cluster)


def _prepare_sklearn():
    from sklearn.cluster import KMeans

    def cluster(w):
        # The settings of coremltools' palettization.
        model = KMeans(2**BITS, init="k-means++", tol=1e-2, n_init=1, random_state=0)
        codes = model.fit_predict(w.reshape(-1, 1))
        return codes, model.cluster_centers_.ravel(), w.shape

    return _one(cluster)


def _k_means(name: str, prepare: Callable, package: str) -> Contender:
    def decode(result: dict) -> dict:
        return {
            path: np.asarray(centroids, np.float32)[np.asarray(codes)].reshape(shape)
            for path, (codes, centroids, shape) in result.items()
        }

    def stored(result: dict) -> float:
        return sum(BITS * len(codes) + 32 * len(table) for codes, table, _ in result.values())

    def held(result: dict) -> int:
        parts = [np.asarray(part) for codes, table, _ in result.values() for part in (codes, table)]
        return sum(part.nbytes for part in parts)

    return Contender(name, prepare, decode, stored, held, (package,))


def _prepare_qwix():
    import jax
    import qwix

    def absmax(w):
        return qwix.quantize(w, f"int{BITS}", channelwise_axes=(w.ndim - 1,))

    jitted = jax.jit(absmax)
    return _one(lambda w: jax.block_until_ready(jitted(w)))


def _decode_qwix(result: dict) -> dict:
    import qwix

    return {path: np.asarray(qwix.dequantize(q)) for path, q in result.items()}


def _stored_qwix(result: dict) -> float:
    return sum(BITS * q.qvalue.size + 8 * q.scale.nbytes for q in result.values())


def _held_qwix(result: dict) -> int:
    # JAX counts half a byte for an int4; on a CPU it takes a whole one.
    arrays = [np.asarray(part) for q in result.values() for part in (q.qvalue, q.scale)]
    return sum(array.size * array.dtype.itemsize for array in arrays)


# QLoRA (Dettmers et al., 2023), appendix E.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


def _prepare_nf4():
    boundaries = (NF4[1:] + NF4[:-1]) / 2

    def quantize(w):
        scale = np.abs(w).max(axis=tuple(range(w.ndim - 1)))
        return np.searchsorted(boundaries, w / scale).astype(np.uint8), scale

    return _one(quantize)


def _decode_nf4(result: dict) -> dict:
    return {path: NF4[codes] * scale for path, (codes, scale) in result.items()}


def _stored_nf4(result: dict) -> float:
    return sum(4 * codes.size + 32 * scale.size for codes, scale in result.values())


def _held_nf4(result: dict) -> int:
    return sum(codes.nbytes + scale.nbytes for codes, scale in result.values())


# The libraries of PyTorch pack their codes: what they hold is what they store.


def _torch(name: str, package: str, quantize: Callable, decode: Callable, arrays: Callable):
    """A contender whose ``arrays`` of a quantized tensor are all there is of it."""

    def prepare():
        import torch

        one = quantize()
        return _one(lambda w: one(torch.from_numpy(w)))

    def held(result: dict) -> int:
        return sum(a.numel() * a.element_size() for q in result.values() for a in arrays(q))

    return Contender(
        name,
        prepare,
        lambda result: {path: decode(q).float().numpy() for path, q in result.items()},
        lambda result: 8.0 * held(result),
        held,
        ("torch", package),
        on_tree=True,
        in_rows=True,
    )


def _bitsandbytes(name: str, double: bool) -> Contender:
    def quantize():
        from bitsandbytes import functional

        return lambda w: functional.quantize_4bit(
            w, blocksize=GROUP, quant_type="nf4", compress_statistics=double
        )

    def decode(q):
        from bitsandbytes import functional

        return functional.dequantize_4bit(*q)

    def arrays(q):
        codes, state = q
        scales = [state.absmax]
        if state.nested:
            scales += [state.state2.absmax, state.offset]
        return [codes, *scales]

    return _torch(name, "bitsandbytes", quantize, decode, arrays)


def _hqq() -> Contender:
    """Scales and zero points in float16, as `HQQLinear` keeps them by default.

    Channels in place of groups where there are an odd number of groups, which it cannot pack.
    """

    def quantize():
        import torch
        from hqq.core.quantize import Quantizer, hqq_base_quant_config

        options = hqq_base_quant_config(nbits=BITS, group_size=GROUP)["weight_quant_params"]

        def one(w):
            group = GROUP if w.numel() % (2 * GROUP) == 0 else None
            codes, meta = Quantizer.quantize(w, device="cpu", **options | {"group_size": group})
            meta |= {"scale": meta["scale"].half(), "zero": meta["zero"].half()}
            return codes, meta | {"compute_dtype": torch.float32}

        return one

    def decode(q):
        from hqq.core.quantize import Quantizer

        codes, meta = q
        wide = {name: meta[name].float() for name in ("scale", "zero")}
        return Quantizer.dequantize(codes, meta | wide)

    return _torch(
        "hqq, groups of 64", "hqq", quantize, decode, lambda q: [q[0], q[1]["scale"], q[1]["zero"]]
    )


def _quanto() -> Contender:
    """Groups where they divide the inputs, as the library asks, else channels."""

    def quantize():
        from optimum.quanto import MaxOptimizer, qint4, quantize_weight

        def one(w):
            group = GROUP if w.shape[1] % GROUP == 0 else None
            scale, shift = MaxOptimizer()(w, qint4, 0, group)
            return quantize_weight(w, qint4, 0, scale, shift, group, optimized=False)

        return one

    return _torch(
        "optimum-quanto, groups of 64",
        "optimum.quanto",
        quantize,
        lambda q: q.dequantize(),
        lambda q: [q._data._data, q._scale, q._shift],
    )


_BUDGET = {"bits": None, "bits_per_weight": float(BITS)}

_ALL = (
    _ours("optimal"),
    _ours("linear + correlation", grid="linear"),
    _ours("exponential + correlation", grid="exponential"),
    _ours("channel scales", granularity="channel"),
    _ours("groups of 64", granularity=GROUP),
    _ours("trellis-coded", coding="trellis"),
    _ours("budget", **_BUDGET),
    _ours("budget, channel scales", **_BUDGET, granularity="channel"),
    _ours("budget, entropy-coded", **_BUDGET, coding="entropy"),
    _k_means("kmeans1d", _prepare_kmeans1d, "kmeans1d"),
    _k_means("flash1dkmeans", _prepare_flash1dkmeans, "flash1dkmeans"),
    _k_means("scikit-learn KMeans", _prepare_sklearn, "sklearn"),
    Contender(
        "qwix int4 absmax, per channel",
        _prepare_qwix,
        _decode_qwix,
        _stored_qwix,
        _held_qwix,
        ("qwix",),
        on_tree=True,
    ),
    Contender("NF4 in NumPy, per channel", _prepare_nf4, _decode_nf4, _stored_nf4, _held_nf4),
    _bitsandbytes("bitsandbytes NF4, blocks of 64", double=False),
    _bitsandbytes("bitsandbytes NF4, double", double=True),
    _hqq(),
    _quanto(),
)
CONTENDERS = {contender.name: contender for contender in _ALL}


def make_weights(shapes: list[tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Heavy-tailed weights, made in pieces so that no memory but their own is needed.

    Student's t with 4 degrees of freedom, times a scale of each output channel that is log-normal.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for i, shape in enumerate(shapes):
        w = np.empty(shape, np.float32)
        flat = w.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            part[:] = rng.standard_t(4, part.size)
        w *= np.exp(0.5 * rng.standard_normal(shape[-1])).astype(np.float32)
        w /= math.sqrt(math.prod(shape[:-1]))
        weights[f"layer{i:02}/kernel"] = w
    return weights


def in_rows(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same kernels as matrices of (outputs, inputs), the inputs in PyTorch's order.

    >>> in_rows({"w": np.arange(8).reshape(1, 2, 2, 2)})["w"].tolist()
    [[0, 4, 2, 6], [1, 5, 3, 7]]
    """
    rows = {}
    for path, w in weights.items():
        ahead = tuple(range(w.ndim - 2))  # kernels of convolutions: height, width, inputs, outputs
        rows[path] = w.transpose(w.ndim - 1, w.ndim - 2, *ahead).reshape(w.shape[-1], -1).copy()
    return rows


def correlation(w: np.ndarray, w_hat: np.ndarray) -> float:
    """Pearson's rho in float64, in pieces."""
    a, b = w.reshape(-1), np.asarray(w_hat).reshape(-1)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} weights, {b.size} quantized ones")
    means = a.mean(dtype=np.float64), b.mean(dtype=np.float64)
    sums = np.zeros(3)
    for start in range(0, a.size, CHUNK):
        x = a[start : start + CHUNK] - means[0]
        y = b[start : start + CHUNK] - means[1]
        sums += x @ y, x @ x, y @ y
    return float(sums[0] / math.sqrt(sums[1] * sums[2]))
