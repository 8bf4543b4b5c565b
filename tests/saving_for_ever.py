"""Saves one of two trees and then the other, again and again, in processes that get killed.

    python saving_for_ever.py KIND FILE

Each line on stdin is a time in seconds: a process starts to save and is killed (SIGKILL) after it;
then the line "killed" comes out. Forks of a process that has imported everything start at once.
"""

import itertools
import os
import signal
import sys
import time
import warnings

import numpy as np

import corrq_jax as corrq
from corrq_jax.readers import write_weights
from corrq_jax.tensor import QuantizedTensor


def trees():
    """Two trees, of half a megabyte and of twice that, none of whose bytes say which it is."""
    rng = np.random.default_rng(1)
    return [{str(n): rng.normal(size=8000 * size) for n in range(8)} for size in (1, 2)]


def quantized(tree):
    """Codes and levels beside the floats, not what a search would find."""
    levels = np.arange(256, dtype=np.float32)
    codes = {name: array.view(np.uint8) for name, array in tree.items()}
    return {
        "tensors": {n: QuantizedTensor(c, levels, c.shape, "float32", 8) for n, c in codes.items()},
        "floats": tree,
    }


def save(kind, path, tree):
    if kind == "save":
        corrq.save(path, quantized(tree))
    else:
        write_weights(path, tree, overwrite=True)


def main(kind, path):
    warnings.simplefilter("ignore")  # JAX warns of forks; nothing here starts its threads.
    both = trees()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            for tree in itertools.cycle(both):
                save(kind, path, tree)
        time.sleep(float(line))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print("killed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
