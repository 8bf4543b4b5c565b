"""Folders of Hugging Face: quantized, and restored to files that its own readers take."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

import corrq_jax as corrq
from corrq_jax.readers import open_weights, read_weights

BF16 = ml_dtypes.bfloat16


def weights(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape, dtype=BF16):
        return rng.normal(size=shape).astype(dtype)

    return {
        "embed.weight": normal(50, 16),
        "layers.0.q.weight": normal(16, 16),
        "layers.0.norm.weight": normal(16),
        "layers.1.q.weight": normal(16, 16),
        "head.weight": normal(50, 16, dtype=np.float16),
        "position_ids": np.arange(12)[None],
    }


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {
    FIRST: ["embed.weight", "layers.0.q.weight", "position_ids"],
    SECOND: ["layers.0.norm.weight", "layers.1.q.weight", "head.weight"],
}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A network in two shards, with what lies beside them in such folders."""
    folder = tmp_path / "net"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "onnx").mkdir()
    arrays = weights()
    for name, tensors in SHARDS.items():
        save_file({t: arrays[t] for t in tensors}, folder / name, metadata={"format": "pt"})
    weight_map = {t: name for name, tensors in SHARDS.items() for t in tensors}
    total = sum(a.nbytes for a in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights once more")
    (folder / "onnx" / "model.onnx").write_bytes(b"and again")
    return folder


def files(folder):
    found = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix() for file in found}


def test_shards_are_read_as_one(folder):
    found, expected = read_weights(folder), weights()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_goes_there_and_back(folder, tmp_path):
    quantized, back = tmp_path / "q", tmp_path / "back"
    report = corrq.quantize_file(folder, quantized, corrq.Config(bits=4))
    others = {"config.json", "tokenizer.json", "1_Pooling/config.json", INDEX}
    assert files(quantized) == others | {"corrq.safetensors", "corrq.json"}
    qparams, expected = corrq.quantize(weights(), bits=4)
    corrq.save(tmp_path / "expected", qparams, report=expected)
    assert (quantized / "corrq.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()
    assert report.file_nbytes == (tmp_path / "expected").stat().st_size

    corrq.dequantize_file(quantized, back)
    assert files(back) == others | SHARDS.keys()
    for name in others:
        assert (back / name).read_bytes() == (folder / name).read_bytes()
    params = corrq.dequantize(qparams)
    for shard, tensors in SHARDS.items():
        with safetensors.safe_open(back / shard, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
        found = load_file(back / shard)
        assert found.keys() == set(tensors)
        for name in tensors:
            assert found[name].dtype == weights()[name].dtype
            np.testing.assert_array_equal(found[name], np.asarray(params[name]))
    assert {p.name for p in tmp_path.iterdir()} == {"net", "q", "back", "expected"}


def test_a_folder_with_a_single_file(folder, tmp_path):
    for file in (*SHARDS, INDEX):
        (folder / file).unlink()
    save_file(weights(), folder / "model.safetensors")
    save_file(weights(1), folder / "consolidated.safetensors")
    corrq.quantize_file(folder, tmp_path / "q", corrq.Config(bits=8))
    corrq.dequantize_file(tmp_path / "q", tmp_path / "back")
    assert "consolidated.safetensors" not in files(tmp_path / "back")
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert corrq.correlation(weights()["head.weight"], found["head.weight"]) > 0.9999


def test_to_and_from_single_files(folder, tmp_path):
    corrq.quantize_file(folder, tmp_path / "q.safetensors")
    corrq.quantize_file(folder, tmp_path / "q")
    single = (tmp_path / "q.safetensors").read_bytes()
    assert (tmp_path / "q" / "corrq.safetensors").read_bytes() == single
    corrq.dequantize_file(tmp_path / "q", tmp_path / "back.safetensors")
    assert read_weights(tmp_path / "back.safetensors").keys() == weights().keys()


KILLED = """
    import os, signal, sys
    import corrq_jax as corrq

    def kill(path, done, total):
        if done > 0.6 * total:
            os.kill(os.getpid(), signal.SIGKILL)

    corrq.quantize_file(sys.argv[1], sys.argv[2], progress=kill)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_goes_on(folder, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), folder, tmp_path / "q"]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "q").exists()
    assert list((tmp_path / ".q.parts").glob("*.part.safetensors"))
    corrq.quantize_file(folder, tmp_path / "q")
    corrq.quantize_file(folder, tmp_path / "expected")
    for name in files(tmp_path / "expected"):
        assert (tmp_path / "q" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"net", "q", "expected"}


def without_a_shard(folder):
    (folder / min(SHARDS)).unlink()


def with_half_a_shard(folder):
    shard = folder / min(SHARDS)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def with_a_tensor_more(folder):
    save_file({**weights(), "more": np.zeros(2)}, folder / min(SHARDS))


def with_a_tensor_twice(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["third"] = "third.safetensors"
    save_file({"embed.weight": np.zeros(2)}, folder / "third.safetensors")
    (folder / INDEX).write_text(json.dumps(index))


def with_two_indices(folder):
    (folder / "other.safetensors.index.json").write_text("{}")


def without_an_index(folder):
    (folder / INDEX).unlink()


def with_an_index_of(**record):
    return lambda folder: (folder / INDEX).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (without_a_shard, corrq.FileFormatError, "'model-00001-of-00002.safetensors' is not there"),
        (with_half_a_shard, corrq.FileFormatError, "model-00001.*, or a damaged one"),
        (with_a_tensor_more, corrq.FileFormatError, "its tensors are not those that"),
        (with_a_tensor_twice, corrq.FileFormatError, "'embed.weight' is in two files"),
        (with_two_indices, corrq.InputError, r"which of model\.safe.*give one of the files"),
        (without_an_index, corrq.InputError, "which of model-00001"),
        (with_an_index_of(), corrq.FileFormatError, "not an index"),
        (with_an_index_of(weight_map={}), corrq.FileFormatError, "names no file"),
        (with_an_index_of(weight_map={"a": f"../{FIRST}"}), corrq.FileFormatError, "not the name"),
        (with_an_index_of(weight_map={"a": 3}), corrq.FileFormatError, "not an index"),
    ],
)  # fmt: skip
def test_folders_that_do_not_fit(folder, tmp_path, change, error, message):
    change(folder)
    with pytest.raises(error, match=message):
        corrq.quantize_file(folder, tmp_path / "q")
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_a_link_to_nothing_is_named(folder, tmp_path):
    (folder / "vocabulary").symlink_to("nowhere")
    with pytest.raises(OSError, match=r"^\S*net/vocabulary: it cannot be copied"):
        corrq.quantize_file(folder, tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_folders_are_not_replaced(folder, tmp_path):
    (tmp_path / "q").mkdir()
    with pytest.raises(FileExistsError, match="choose another name"):
        corrq.quantize_file(folder, tmp_path / "q", overwrite=True)
    (tmp_path / "q").rmdir()
    corrq.quantize_file(folder, tmp_path / "q")
    with pytest.raises(FileExistsError, match="choose another name"):
        corrq.dequantize_file(tmp_path / "q", folder, overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        corrq.dequantize_file(tmp_path / "q", tmp_path / "no" / "back")
    with pytest.raises(corrq.InputError, match="quantized already"):
        corrq.quantize_file(tmp_path / "q", tmp_path / "twice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"a folder without corrq\.json"),
        ("", "damaged"),
        ("[]", "damaged"),
        ('{"version": 2, "weights": "new"}', "upgrade"),
        ('{"version": 1, "weights": [{"name": "../x", "tensors": [], "metadata": null}]}', "damag"),
        ('{"version": 1, "weights": [{"name": "x", "tensors": ["y"], "metadata": null}]}', "fit"),
        ('{"version": 1, "weights": [{"name": "x", "tensors": [], "metadata": {"a": 1}}]}', "dam"),
        ('{"version": 1, "weights": [{"name": "x"}]}', "damaged"),
    ],
)
def test_a_damaged_layout(folder, tmp_path, text, message):
    quantized = tmp_path / "q"
    corrq.quantize_file(folder, quantized)
    (quantized / "corrq.json").unlink()
    if text is not None:
        (quantized / "corrq.json").write_text(text)
    with pytest.raises(corrq.FileFormatError, match=message):
        corrq.dequantize_file(quantized, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_progress_of_restoring_comes_to_its_end(folder, tmp_path):
    calls = []
    corrq.quantize_file(folder, tmp_path / "q")
    corrq.dequantize_file(
        tmp_path / "q", tmp_path / "back.safetensors", progress=lambda *a: calls.append(a)
    )
    total = sum(a.nbytes for a in weights().values())
    assert {path for path, _, _ in calls} == weights().keys()
    assert calls[-1][1:] == (total, total)


def test_the_command_line(folder, tmp_path, done, failed):
    out = done("quantize", folder, "-o", tmp_path / "q", "--bits", "8")
    assert "left out: onnx, pytorch_model.bin\n" in out
    assert "layers.1.q.weight" in done("inspect", tmp_path / "q")
    done("dequantize", tmp_path / "q", "-o", tmp_path / "back")
    assert files(tmp_path / "back") >= SHARDS.keys()
    assert "exists" in failed("quantize", folder, "-o", tmp_path / "q", "--force")


def test_a_folder_without_weights_is_no_network(tmp_path):
    (tmp_path / "net").mkdir()
    with pytest.raises(IsADirectoryError, match="folder where a weight file is needed"):
        corrq.quantize_file(tmp_path / "net", tmp_path / "q")
    with pytest.raises(IsADirectoryError), open_weights(pathlib.Path(tmp_path / "net")):
        pass
