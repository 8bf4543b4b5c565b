"""SIGKILL at random points of saving: the old file or the new one, never a broken one."""

import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import saving_for_ever
from stored_trees import same

import corrq_jax as corrq
from corrq_jax.readers import read_weights

SCRIPT = pathlib.Path(saving_for_ever.__file__)
ROUNDS = 40

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork")


@pytest.mark.parametrize(("kind", "suffix"), [("save", ".safetensors"), ("write", ".safetensors"),
                                              ("write", ".npz")])  # fmt: skip
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path, kind, suffix):
    path = tmp_path / f"net{suffix}"
    load = corrq.load if kind == "save" else read_weights
    both = saving_for_ever.trees()
    expected = [saving_for_ever.quantized(t) for t in both] if kind == "save" else both
    durations = []
    for tree in (both[1], both[0]):
        start = time.perf_counter()
        saving_for_ever.save(kind, path, tree)
        durations.append(time.perf_counter() - start)
    outcomes, left = [], 0
    command = [sys.executable, str(SCRIPT), kind, str(path)]
    rng = random.Random(0)
    with subprocess.Popen(command, text=True, bufsize=1, stdin=-1, stdout=-1) as process:
        for i in range(5 * ROUNDS):
            longest = 4 * min(durations) * 2 ** (i // ROUNDS)
            print(rng.uniform(0, longest), file=process.stdin)
            assert process.stdout.readline() == "killed\n"
            found = load(path)
            outcomes.append([same(found, tree) for tree in expected])
            others = [p for p in tmp_path.iterdir() if p != path]
            left += len(others)
            assert len(others) <= 1  # the next writer takes away what a killed one left
            # A busy machine is slower now than it was above: longer rounds come then.
            if i >= ROUNDS - 1 and np.any(outcomes, axis=0).all() and left > ROUNDS // 10:
                break
        process.stdin.close()
    assert all(sum(outcome) == 1 for outcome in outcomes)
    # The kills came before the first save was done, after it, and in the middle of one.
    assert np.any(outcomes, axis=0).all()
    assert left > ROUNDS // 10
    saving_for_ever.save(kind, path, both[1])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
