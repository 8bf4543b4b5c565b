"""What is fuzzed: for each kind of file how damaged ones are made, read, and read independently."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import spec_reader
import torch_files
from fuzz_mutations import damaged
from fuzz_others import (
    h5_again,
    keras_again,
    make_h5,
    make_keras,
    make_npz,
    make_safetensors,
    make_torch_legacy,
    make_torch_zip,
    npz_again,
    read_keras,
    read_twice,
)
from fuzz_saved import make_own, plain

import corrq_jax as corrq
from corrq_jax import entropy
from corrq_jax.readers import read_weights


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
        suffix: of its files.
        make: a damaged input of a random.Random.
        read: what is tested, given the path; a CorrqError is a refusal.
        again: the same, given the input's bytes, read in an independent way; it may raise
            anything for what should have been refused.
        is_library: whether crashes, hangs and memory are those of a library known not to be proof.
    """

    suffix: str
    make: Callable[[Any], bytes]
    read: Callable[[pathlib.Path], Any]
    again: Callable[[bytes], Any]
    is_library: bool = False


@functools.cache
def _streams():
    rng = np.random.default_rng(0)
    cases = [rng.binomial(n - 1, 0.3, size) for n, size in ((4, 40), (200, 300), (2, 9), (3, 0))]
    cases.append(np.r_[np.zeros(700, int), 1])
    return [(entropy.encode(c.astype(np.uint8)).tobytes(), c.size) for c in cases]


def make_stream(rng):
    """Number of the codes, and their stream."""
    stream, size = rng.choice(_streams())
    if rng.random() < 0.9:
        stream = damaged(rng, stream)
    if rng.random() < 0.3:
        size = rng.choice((size + 1, size - 1, 0, 2 * size, rng.randrange(5000)))
    return json.dumps(max(size, 0)).encode().ljust(40) + stream


def _parts(data):
    return np.frombuffer(data[40:], np.uint8), json.loads(data[:40])


def read_stream(path):
    try:
        return {"codes": entropy.decode(*_parts(path.read_bytes()))}
    except ValueError as error:  # as `corrq.load` does
        raise corrq.FileFormatError(f"{path}: {error}") from None


KINDS = {
    "own": Kind(".safetensors", make_own, lambda p: plain(corrq.load(p)), spec_reader.read),
    "safetensors": Kind(
        ".safetensors", make_safetensors, read_weights, safetensors.numpy.load
    ),
    "npz": Kind(".npz", make_npz, read_twice, npz_again),
    "torch": Kind(".pth", make_torch_zip, read_weights, torch_files.read),
    "torch_old": Kind(".pth", make_torch_legacy, read_weights, torch_files.read),
    "stream": Kind(".stream", make_stream, read_stream,
                   lambda data: {"codes": spec_reader.decode(*_parts(data))}),
    "h5": Kind(".h5", make_h5, read_keras, h5_again, is_library=True),
    "keras": Kind(".keras", make_keras, read_keras, keras_again, is_library=True),
}  # fmt: skip


def same(a, b):
    """Whether two readings agree, to the last bit; dtypes in any byte order."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if not isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a == b
    a, b = np.asarray(a), np.asarray(b)
    dtypes = (x.dtype.newbyteorder("=") for x in (a, b))
    return (
        len(set(dtypes)) == 1
        and a.shape == b.shape
        and a.astype(a.dtype.newbyteorder("=")).tobytes()
        == b.astype(b.dtype.newbyteorder("=")).tobytes()
    )
