"""The peers of `corrq_jax.peers` beside the libraries that they follow, and beside each other.

First every peer against its library on the same weights: the largest difference of decoded
weights, the share of weights that differ, and the noise ``1 - rho**2`` of both. Then a table of
stored bits and noise on EfficientNet-Lite0 and on one heavy-tailed kernel.

    pip install qwix bitsandbytes hqq scikit-learn kmeans1d    # each is optional
    python benchmarks/peers.py                                 # two minutes on 2 cores
    python benchmarks/peers.py --only table
"""

import argparse
import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

import numpy as np

import corrq_jax as corrq
from corrq_jax import models
from corrq_jax.flax import functional
from corrq_jax.paths import flatten
from corrq_jax.peers import PEERS, peers, stored_bits
from corrq_jax.selection import default_select

Quantize = Callable[[np.ndarray, int], np.ndarray]
"""A (channels, inputs) matrix and bits to the decoded matrix, by a library."""

TABLE_BITS = (2, 3, 4, 8)
CLUSTERED = 100_000  # the largest tensor for scikit-learn and exact k-means


def qwix_quantizer(method: str, granularity: str, name: str = "int{}") -> Quantize:
    import jax
    import qwix

    def quantize(rows: np.ndarray, bits: int) -> np.ndarray:
        options: dict = {} if granularity == "tensor" else {"channelwise_axes": (0,)}
        if granularity == "groups":
            options["tiled_axes"] = {1: 64}
        quantized = qwix.quantize(rows, name.format(bits), calibration_method=method, **options)
        return np.asarray(jax.device_get(qwix.dequantize(quantized)))

    return quantize


def bitsandbytes_quantizer(double: bool) -> Quantize:
    """NF4 in blocks of 64.

    The CPU kernel that quantizes the scales to 8 bits does not always find the nearest level, so
    that a few scales in a thousand differ.
    """
    import torch
    from bitsandbytes import functional as bnb

    def quantize(rows: np.ndarray, bits: int) -> np.ndarray:
        codes, state = bnb.quantize_4bit(
            torch.from_numpy(rows.copy()),
            blocksize=64,
            quant_type="nf4",
            compress_statistics=double,
        )
        return bnb.dequantize_4bit(codes, state).numpy().reshape(rows.shape)

    return quantize


def hqq_quantizer(dtype: str) -> Quantize:
    """Hqq's solver; scales and zero points in float16, decoded in ``dtype``."""
    import torch
    from hqq.core.quantize import Quantizer, hqq_base_quant_config

    compute = getattr(torch, dtype)

    def quantize(rows: np.ndarray, bits: int) -> np.ndarray:
        options = hqq_base_quant_config(nbits=bits, group_size=64)["weight_quant_params"]
        codes, meta = Quantizer.quantize(
            torch.from_numpy(rows.copy()), device="cpu", bitpack=False, **options
        )
        for name in ("scale", "zero"):
            meta[name] = meta[name].half().to(compute)
        meta["compute_dtype"] = compute
        return Quantizer.dequantize(codes, meta).float().numpy()

    return quantize


def sklearn_quantizer() -> Quantize:
    from sklearn.cluster import KMeans

    def quantize(rows: np.ndarray, bits: int) -> np.ndarray:
        # The settings of coremltools' palettization.
        model = KMeans(2**bits, init="k-means++", tol=1e-2, n_init=1, random_state=0)
        codes = model.fit_predict(rows.reshape(-1, 1))
        return model.cluster_centers_.ravel()[codes].reshape(rows.shape)

    return quantize


def kmeans1d_quantizer() -> Quantize:
    import kmeans1d

    def quantize(rows: np.ndarray, bits: int) -> np.ndarray:
        codes, centroids = kmeans1d.cluster(rows.ravel(), 2**bits)
        return np.asarray(centroids)[np.asarray(codes)].reshape(rows.shape)

    return quantize


INTEGERS = tuple(
    (f"int {name}, {label}", "qwix", lambda m=m, g=g: qwix_quantizer(m, g), bits)
    for name, m, bits in (("absmax", "absmax", (2, 3, 4, 8)), ("min-max", "minmax", (4, 8)))
    for label, g in (("tensor", "tensor"), ("channel", "channel"), ("groups of 64", "groups"))
)
LIBRARIES = (
    *INTEGERS,
    ("NF4, channel", "qwix", lambda: qwix_quantizer("absmax", "channel", "nf4"), (4,)),
    ("NF4, groups of 64", "qwix", lambda: qwix_quantizer("absmax", "groups", "nf4"), (4,)),
    ("NF4, blocks of 64", "bitsandbytes", lambda: bitsandbytes_quantizer(False), (4,)),
    ("NF4, blocks of 64, double", "bitsandbytes", lambda: bitsandbytes_quantizer(True), (4,)),
    ("HQQ, blocks of 64", "hqq", lambda: hqq_quantizer("float32"), (1, 2, 3, 4, 5, 6, 8)),
    ("HQQ, blocks of 64", "hqq (float16)", lambda: hqq_quantizer("float16"), (2, 3, 4, 8)),
    ("k-means, tensor", "sklearn", sklearn_quantizer, (2, 3, 4, 6)),
    ("k-means, tensor", "kmeans1d", kmeans1d_quantizer, (2, 3, 4, 6, 8)),
)
"""Peer, library, its quantizer, bits to compare at."""


def heavy_tailed(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Student's t with 4 degrees of freedom times a log-normal scale of each output channel."""
    random = np.random.default_rng(seed)
    w = random.standard_t(4, shape) * np.exp(0.5 * random.standard_normal(shape[-1]))
    return (w / math.sqrt(math.prod(shape[:-1]))).astype(np.float32)


def network() -> dict[str, np.ndarray]:
    """The kernels of EfficientNet-Lite0."""
    entries, _ = flatten(functional(models.load("efficientnet_lite0"))[1])
    return {path: np.asarray(leaf) for path, leaf in entries if default_select(path, leaf)}


def as_rows(w: np.ndarray) -> np.ndarray:
    """(channels, inputs) in PyTorch's order, of a kernel in Flax's."""
    return np.ascontiguousarray(np.moveaxis(w, (-1, -2), (0, 1)).reshape(w.shape[-1], -1))


def kernels() -> Iterator[tuple[str, np.ndarray]]:
    """Matrices to compare on: their groups of 64 are whole, as the libraries want."""
    random = np.random.default_rng(1)
    yield "normal 256x512", random.normal(0, 0.05, (256, 512)).astype(np.float32)
    yield "Student 128x3x3x64", as_rows(heavy_tailed((3, 3, 64, 128)))
    real = [(path, w) for path, w in network().items() if (w.size // w.shape[-1]) % 64 == 0]
    for path, w in (min(real, key=lambda item: item[1].size), max(real, key=lambda i: i[1].size)):
        yield path, as_rows(w)


def noise(w: np.ndarray, w_hat: np.ndarray) -> float:
    return 1 - max(corrq.correlation(w, w_hat), 0) ** 2


def compare_with_libraries() -> None:
    print("Each peer beside its library; differences in standard deviations of the weights")
    print(f"{'peer':26}  {'library':20}  {'kernel':24}  bits  largest  differ    noise  library's")
    matrices = list(kernels())
    for name, library, make, widths in LIBRARIES:
        package = library.split()[0]
        if importlib.util.find_spec(package) is None:
            print(f"{name:26}  {package:20}  not installed")
            continue
        distribution = {"sklearn": "scikit-learn"}.get(package, package)
        label = library.replace(package, f"{package} {version(distribution)}")
        quantize, (peer,) = make(), peers([name])
        for kernel, rows in matrices:
            if package in ("sklearn", "kmeans1d") and rows.size > CLUSTERED:
                continue
            for bits in widths:
                own, theirs = peer.quantize(rows, bits, channel_axis=0)[0], quantize(rows, bits)
                apart = np.abs(own - theirs) / rows.std()
                print(
                    f"{name:26}  {label:20}  {kernel[-24:]:24}  {bits:4}  {apart.max():7.1e}  "
                    f"{(apart > 1e-5).mean():6.1e}  {noise(rows, own):.6f}  "
                    f"{noise(rows, theirs):.6f}",
                    flush=True,
                )


def table(title: str, params: dict[str, np.ndarray]) -> None:
    size = sum(w.size for w in params.values())
    print(f"\n{title}: {len(params)} tensors, {size:,} weights")
    print(f"{'peer':26}  bits  stored bits  mean 1-rho^2  ns/weight")
    for bits in TABLE_BITS:
        for peer in PEERS:
            if bits not in peer.bits:
                continue
            started = time.perf_counter()
            _, rows = peer.quantize_tree(params, bits)
            seconds = time.perf_counter() - started
            print(
                f"{peer.name:26}  {bits:4}  {stored_bits(rows):11.3f}  "
                f"{np.mean([row.noise for row in rows]):12.5f}  {1e9 * seconds / size:9.1f}",
                flush=True,
            )
        _, report = corrq.quantize(params, bits)
        mean = np.mean([row.noise for row in report])
        stored = report.bits_per_weight
        print(f"{'(corrq optimal, tensor)':26}  {bits:4}  {stored:11.3f}  {mean:12.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("libraries", "table"), help="one part of the output")
    only = parser.parse_args().only
    if only != "table":
        compare_with_libraries()
    if only != "libraries":
        table("EfficientNet-Lite0", network())
        table("Heavy tails", {"kernel": heavy_tailed((3, 3, 512, 512))})


if __name__ == "__main__":
    main()
