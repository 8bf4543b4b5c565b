"""Files and processes for the command line's tests."""

import csv
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from corrq_jax.results import Run

REPORT = {"index.html", "results.json", "results.csv"}
COMMAND = (sys.executable, "-c", "from corrq_jax.cli import main; main()")


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "stem/kernel": rng.normal(size=(3, 3, 8, 16)).astype(np.float32),
        "stem/bias": rng.normal(size=16).astype(np.float32),
        "blocks/10/kernel": rng.laplace(size=(32, 40)).astype(np.float32),
        "blocks/2/kernel": rng.normal(size=(32, 24)).astype(np.float16),
    }


def write_keras(path, named):
    """As Keras 3 does: datasets in nested groups below layers/."""
    with h5py.File(path, "w") as file:
        for name, array in named.items():
            file[f"layers/{name}"] = array


def write(path):
    named = arrays()
    if path.suffix == ".npz":
        np.savez(path, **named)
    elif path.suffix == ".safetensors":
        save_file(named, path)
    elif path.suffix == ".h5":
        write_keras(path, named)
    else:
        raise NotImplementedError(path)
    return path


def in_process(*words, **environment):
    """Runs a command in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdin=subprocess.DEVNULL,
    )


def in_terminal(command, columns):
    """What a command prints on a terminal of this width."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, stdout=follower, stderr=follower, env=environment, check=True)
    os.close(follower)
    parts = []
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # Linux says so that nothing writes to it any more
            break
        if not part:
            break
        parts.append(part)
    os.close(leader)
    return b"".join(parts).decode()


def check_report(folder, methods):
    """That a report is whole, of these methods: the run that it is of."""
    files = {path.name for path in folder.iterdir()}
    assert files > REPORT
    pictures = files - REPORT - {"fashion_resnet"}
    assert pictures
    for name in pictures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    run = Run.from_json((folder / "results.json").read_text())
    assert [r.method for r in run.results] == methods
    with (folder / "results.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == methods
    assert run.network in (folder / "index.html").read_text()
    return run
