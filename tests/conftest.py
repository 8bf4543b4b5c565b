"""Fixtures of the command line's tests, and TFDS data sets, written without TensorFlow."""

import dataclasses
import functools
import gc
import io
import logging
import os
import sys
import types
import warnings
from importlib.resources import abc

import jax
import numpy as np
import pytest
from command_line import write
from flax import nnx
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache
from pictures import jpeg

from corrq_jax import cli, fidelity
from corrq_jax.cli import app
from corrq_jax.data import batches
from corrq_jax.flax import functional

# How long an example takes tells how busy the machine is.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Scripts that tests run in processes of their own, on other devices.
collect_ignore = ["saved_bytes.py", "sharded_checks.py", "sharded_storage_checks.py"]


def pytest_collection_finish():
    """Let the garbage collector pass over modules and tests, and come less often.

    With the default thresholds it looks at millions of objects again and again while networks are
    traced, for up to a seventh of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Tests neither read nor write the user's cache folder; commands that they start share one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORRQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def compiled_once(tmp_path_factory):
    """What takes long to compile is compiled once, for all workers and processes of a run."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # of the run that started this one, or the user's
        yield
        return
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled"
    seconds = 0.2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(seconds))
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
        compilation_cache.reset_cache()  # something may have compiled without
        yield


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process as the shell would: (exit code, stdout, stderr)."""
    # It would be told to keep what all later tests compile.
    monkeypatch.setattr(app, "keep_compiled", lambda: None)

    def call(*words):
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        monkeypatch.setattr(sys, "argv", ["corrq", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return (stopped.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def done(run):
    """Runs a command that has to succeed: its stdout."""

    def call(*words):
        code, out, err = run(*words)
        assert (code, err) == (0, "")
        return out

    return call


@pytest.fixture
def failed(run):
    """Runs a command that has to fail with one line on stderr: that line."""

    def call(*words):
        code, out, err = run(*words)
        assert (code, out) == (1, "")
        assert err.startswith("corrq: error: ")
        assert err.count("\n") == 1
        return err

    return call


@pytest.fixture
def npz(tmp_path):
    return write(tmp_path / "net.npz")


class TinyNet(nnx.Module):
    """A convolution with a normalization, and a classifier."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 32, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(32, use_running_average=True, rngs=rngs)
        self.last = nnx.Linear(32, 64, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.conv(x))).mean(axis=(1, 2)))


@pytest.fixture
def tiny_network(monkeypatch):
    """Takes the place of the real network and its photos."""

    def subject(name, data=None, weights=None):
        images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
        apply, params = functional(TinyNet(nnx.Rngs(0)))
        pictures = list(batches(images, np.full(6, -1, np.int32), 4))
        return fidelity.Subject(name, apply, params, pictures, views=2)

    monkeypatch.setattr(fidelity, "subject", subject)


@pytest.fixture
def four_photos(monkeypatch):
    """The real network with the first of its photos, read once, in batches as they are always."""
    whole = fidelity.subject

    @functools.cache
    def subject(*args, **options):
        found = whole(*args, **options)
        images, labels, mask = found.pictures[0]
        first = images, labels, mask & (np.arange(len(mask)) < 40)
        return dataclasses.replace(found, pictures=[first])

    monkeypatch.setattr(fidelity, "subject", subject)


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Prepares a TFDS data set of given pictures: prepare(name, split, [(bytes, label, file)])."""
    import tensorflow_datasets as tfds

    # TFDS 4.9.10 imports importlib_resources, which it does not require, for this one class.
    stand_in = types.ModuleType("importlib_resources")
    stand_in.abc = abc
    monkeypatch.setitem(sys.modules, "importlib_resources", stand_in)
    monkeypatch.setattr(logging.getLogger("absl"), "disabled", True)
    tfds.disable_progress_bar()

    def prepare(name, split, pictures, file_format="array_record"):
        examples = [
            (str(number), {"image": io.BytesIO(data), "label": label} | file)
            for number, (data, label, file) in enumerate(pictures)
        ]
        builder = tfds.builder(name, data_dir=tmp_path, file_format=file_format)
        # Instead of downloading: TFDS writes these, in the order of hashes of their keys.
        monkeypatch.setattr(
            type(builder), "_split_generators", lambda self, manager: {split: iter(examples)}
        )
        builder.download_and_prepare()
        return tmp_path

    return prepare


@pytest.fixture
def imagenette(prepare):
    """Four pictures, the third damaged, of tench, church, church and tench, in some order."""
    wnids = ["n01440764", "n03028079", "n03028079", "n01440764"]
    data = [jpeg(0), jpeg(80), b"damaged", jpeg(240)]
    return prepare(
        "imagenette", "validation", [(d, w, {}) for d, w in zip(data, wnids, strict=True)]
    )
