"""Files quantized tensor by tensor: the bytes of the functions, whenever the run was killed."""

import os
import signal
import subprocess
import sys
import textwrap

import command_line
import h5py
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import corrq_jax as corrq
from corrq_jax import menu, parts
from corrq_jax.core.density import CHUNK
from corrq_jax.lazy import Bands, LazyArray
from corrq_jax.readers import read_weights, safetensors_file
from corrq_jax.streaming import nested

LARGE = 20_000  # instead of a million weights, from which on densities are kept


def network():
    """Tensors of all kinds: each dtype, few values, constant, small, and more than one piece."""
    rng = np.random.default_rng(0)
    arrays = command_line.arrays()
    arrays["wide"] = rng.standard_t(4, (1100, 1000)).astype(ml_dtypes.bfloat16)
    arrays["middle"] = rng.normal(size=(200, 150)).astype(np.float32)
    arrays["double"] = rng.normal(size=(40, 50)) * 1e-200
    arrays["tiny"] = (rng.normal(size=(40, 50)) * 1e-35).astype(np.float32)
    arrays["two"] = np.sign(rng.normal(size=(30, 40))).astype(np.float32)
    arrays["constant"] = np.full((9, 9), 0.5, np.float16)
    arrays["empty"] = np.zeros((0, 3), np.float32)
    arrays["steps"] = np.arange(12).reshape(3, 4)
    return arrays


def in_memory(source, target, **options):
    """The bytes that the functions make of a file."""
    tree, report = corrq.quantize(nested(read_weights(source), source), **options)
    corrq.save(target, tree, report=report)
    return target.read_bytes()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(network(), path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 3},
        {"bits": {"wide": 8, "*": 2}, "grid": "linear", "fit": "range", "levels": "grid"},
        {"bits": 4, "coding": "entropy"},
        {"granularity": "channel"},
        {"granularity": 64, "select": ("wide", "blocks")},
        {"bits_per_weight": 3.5},
        {"max_bytes": "600kB", "coding": "entropy", "granularity": "auto"},
        {"mean_correlation": 0.99, "granularity": "auto"},
    ],
    ids=str,
)
def test_gives_the_bytes_of_the_functions(source, tmp_path, monkeypatch, options):
    monkeypatch.setattr(parts, "_LARGE", LARGE)
    target = tmp_path / "q.safetensors"
    report = corrq.quantize_file(source, target, corrq.Config(**options))
    assert target.read_bytes() == in_memory(source, tmp_path / "expected", **options)
    assert report.file_nbytes == target.stat().st_size
    assert {p.name for p in tmp_path.iterdir()} == {source.name, target.name, "expected"}


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_of_other_formats(tmp_path, suffix):
    path, target = tmp_path / f"net{suffix}", tmp_path / "q.safetensors"
    arrays = {n: a for n, a in network().items() if a.dtype != ml_dtypes.bfloat16}
    if suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    corrq.quantize_file(path, target, corrq.Config(bits=3))
    assert target.read_bytes() == in_memory(path, tmp_path / "expected", bits=3)


def test_one_tensor_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """Where only whole tensors can be read, nothing holds what was read before."""
    import gc
    import weakref

    source = tmp_path / "net.h5"
    with h5py.File(source, "w") as file:
        file.update({**network(), "wide": network()["wide"].astype(np.float16)})
    monkeypatch.setattr(Bands, "part", lambda *_: None)
    held, read = [], []
    load = LazyArray.__array__

    def watched(array, dtype=None, copy=None):
        gc.collect()
        alive = [ref() for ref in held if ref() is not None]
        assert sum(a.nbytes for a in alive) == 0
        values = load(array, dtype, copy)
        if values.nbytes > 1000:
            held.append(weakref.ref(values))
            read.append(array)
        return values

    monkeypatch.setattr(LazyArray, "__array__", watched)
    gc.collect()
    gc.freeze()  # what other tests left: looking through it at each read would take a minute
    try:
        config = corrq.Config(select=("wide", "blocks"))
        corrq.quantize_file(source, tmp_path / "q.safetensors", config)
    finally:
        gc.unfreeze()
    assert read


def test_of_safetensors_no_more_than_a_piece_is_read(source, tmp_path, monkeypatch):
    read, sizes = safetensors_file.read_values, []

    def watched(path, entry):
        values = read(path, entry)
        if path == source:
            sizes.append(values.size)
        return values

    monkeypatch.setattr(safetensors_file, "read_values", watched)
    config = corrq.Config(select="wide", granularity=64)
    corrq.quantize_file(source, tmp_path / "q.safetensors", config)
    assert max(sizes) == CHUNK < network()["wide"].size


def test_progress_comes_to_its_end(source, tmp_path):
    calls = []
    config = corrq.Config(bits=3)
    report = corrq.quantize_file(
        source, tmp_path / "q.safetensors", config, progress=lambda *a: calls.append(a)
    )
    done = [done for _, done, _ in calls]
    assert done == sorted(done)
    arrays = network()
    chosen = [row.path for row in report] + ["constant"]
    assert {total for _, _, total in calls} == {2 * sum(arrays[p].nbytes for p in chosen)}
    # Constant tensors are not encoded.
    assert done[-1] == calls[0][2] - arrays["constant"].nbytes
    assert {path for path, _, _ in calls} == set(chosen)


KILLED = """
    import os, signal, sys
    import corrq_jax as corrq
    from corrq_jax import parts

    source, target, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
    parts._LARGE = 20_000
    sync = os.fsync

    def kill(descriptor):
        global calls
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = kill  # before and after each file gets its name
    corrq.quantize_file(source, target, corrq.Config(bits_per_weight=3.5))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_goes_on(source, tmp_path, monkeypatch):
    target = tmp_path / "q.safetensors"
    expected = in_memory(source, tmp_path / "expected", bits_per_weight=3.5)
    folder = tmp_path / ".q.safetensors.parts"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    # The densities of 2 tensors are kept, and the codes of 8. Killed before the second density, the
    # third code, and the whole file get their names.
    for calls, finished in ((5, 1), (7, 2 + 2), (15, 2 + 8)):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), source, target, str(calls)]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert not target.exists()
        assert len(list(folder.glob("*.part.safetensors"))) == finished
    monkeypatch.setattr(parts, "_LARGE", LARGE)
    encoded, measured = [], []
    monkeypatch.setattr(parts.menu, "encode", lambda o, f=menu.encode: encoded.append(o) or f(o))
    monkeypatch.setattr(
        parts.tree, "measure", lambda p, *a, f=parts.tree.measure: measured.append(p) or f(p, *a)
    )
    report = corrq.quantize_file(source, target, corrq.Config(bits_per_weight=3.5))
    assert target.read_bytes() == expected
    assert len(report) == 8
    assert encoded == []
    assert not {"middle", "wide"} & set(measured)
    assert not folder.exists()


def test_parts_of_another_source_are_not_used(source, tmp_path):
    target = tmp_path / "q.safetensors"

    def stop(path, done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    for seed in (0, 1):
        save_file(command_line.arrays(seed), source)
        with pytest.raises(KeyboardInterrupt):
            corrq.quantize_file(source, target, progress=stop)
        assert list((tmp_path / ".q.safetensors.parts").glob("*.part.safetensors"))
    corrq.quantize_file(source, target)
    assert target.read_bytes() == in_memory(source, tmp_path / "expected")


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_a_target_is_made_by_one_at_a_time(source, tmp_path):
    target = tmp_path / "q.safetensors"

    def again(path, done, total):
        with pytest.raises(corrq.InputError, match=r"q\.safetensors: another process is making"):
            corrq.quantize_file(source, target)

    corrq.quantize_file(source, target, progress=again)
    assert target.read_bytes() == in_memory(source, tmp_path / "expected")
    assert not (tmp_path / ".q.safetensors.parts").exists()


def test_other_options_go_on_with_what_was_measured(source, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_LARGE", LARGE)
    target = tmp_path / "q.safetensors"

    def stop(path, done, total):
        if done == total:
            raise KeyboardInterrupt

    select = ("middle", "wide")
    with pytest.raises(KeyboardInterrupt):
        corrq.quantize_file(source, target, corrq.Config(bits=3, select=select), progress=stop)
    expected = in_memory(source, tmp_path / "expected", bits=5, select=select)
    monkeypatch.setattr(parts.tree, "measure", None)
    corrq.quantize_file(source, target, corrq.Config(bits=5, select=select))
    assert target.read_bytes() == expected


def test_a_source_that_changes_is_noticed(source, tmp_path):
    target = tmp_path / "q.safetensors"

    def touch(path, done, total):
        if done == total:
            os.utime(source, (1, 1))

    with pytest.raises(corrq.InputError, match=r"net\.safetensors has changed while it was read"):
        corrq.quantize_file(source, target, corrq.Config(select="wide"), progress=touch)
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


def test_errors_leave_nothing_behind(source, tmp_path):
    before = source.stat().st_size
    target = tmp_path / "q.safetensors"
    with pytest.raises(corrq.InputError, match="smallest possible"):
        corrq.quantize_file(source, target, corrq.Config(bits_per_weight=0.1))
    with pytest.raises(FileNotFoundError, match=r"no such weight file.*none\.npz"):
        corrq.quantize_file(tmp_path / "none.npz", target)
    assert [p.name for p in tmp_path.iterdir()] == [source.name]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        corrq.quantize_file(source, tmp_path / "no" / "q.safetensors")
    arrays = network()
    arrays["stem/kernel"][0, 0, 0, 0] = np.nan
    save_file(arrays, tmp_path / "nan.safetensors")
    with pytest.raises(corrq.InputError, match="stem/kernel: 1 NaN"):
        corrq.quantize_file(tmp_path / "nan.safetensors", target)
    with pytest.raises(FileExistsError, match="exists"):
        corrq.quantize_file(source, source)
    assert {p.name for p in tmp_path.iterdir()} == {source.name, "nan.safetensors"}
    assert source.stat().st_size == before


@pytest.mark.parametrize("coding", ["packed", "entropy"])
def test_what_is_quantized_already_is_an_error(coding, source, tmp_path):
    quantized, again = tmp_path / "q.safetensors", tmp_path / "again.safetensors"
    corrq.quantize_file(source, quantized, corrq.Config(select="middle", coding=coding))
    with pytest.raises(corrq.InputError, match=r"q\.safetensors is quantized already"):
        corrq.quantize_file(quantized, again)
    assert not again.exists()


def test_a_folder_of_something_else_is_not_removed(source, tmp_path):
    folder = tmp_path / ".q.safetensors.parts"
    folder.mkdir()
    (folder / "mine").write_text("keep")
    with pytest.raises(OSError, match=r"not empty|exists"):
        corrq.quantize_file(source, tmp_path / "q.safetensors")
    assert (folder / "mine").read_text() == "keep"


def test_a_damaged_part_is_made_anew(source, tmp_path):
    target = tmp_path / "q.safetensors"

    def stop(path, done, total):
        if done > 0.9 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corrq.quantize_file(source, target, progress=stop)
    for file in (tmp_path / ".q.safetensors.parts").glob("*.part.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    corrq.quantize_file(source, target)
    assert target.read_bytes() == in_memory(source, tmp_path / "expected")
