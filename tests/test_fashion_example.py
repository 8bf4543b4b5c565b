"""The Fashion-MNIST example, on a few pictures: it trains, records what it did, and measures."""

import gzip
import pathlib
import re
import runpy
import struct
import sys

import numpy as np
import pytest
from flax import nnx

from corrq_jax import models
from corrq_jax.data import fashion_mnist
from corrq_jax.readers import write_weights

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "fashion_mnist"


@pytest.fixture
def few(tmp_path):
    """A folder with Fashion-MNIST's files of made-up pictures: a bright row tells the class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 484), ("t10k", 100)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), 2 * labels + 4] = 255
        for what, array, magic in (("images-idx3", images, 2051), ("labels-idx1", labels, 2049)):
            header = struct.pack(f">{1 + array.ndim}I", magic, *array.shape)
            path = tmp_path / f"{split}-{what}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes(), 1))
    return tmp_path


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs one of the example's programs: what it prints."""

    def call(name, *words):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE / name), *map(str, words)])
        runpy.run_path(str(EXAMPLE / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_training(script, few, tmp_path):
    out = tmp_path / "net.safetensors"
    words = ("--data", few, "--held-out", "100", "--epochs", "8")
    printed = script("train.py", out, *words)
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", printed)]
    assert len(losses) == 8
    assert losses[-1] < losses[0] / 2
    assert out.with_suffix(".log").read_text() == printed
    assert f"command: python examples/fashion_mnist/train.py {out} --data {few}" in printed
    # What is loaded gives the accuracy that was recorded.
    test = fashion_mnist.read_fashion_mnist("test", few)
    prepared = ((test.images - np.float32(72.9404)) / np.float32(90.0212))[..., None]
    right = (models.load("fashion_resnet", out)(prepared).argmax(1) == test.labels).sum()
    assert f"test: {right}.00 %" in printed


@pytest.mark.parametrize("out", ["net.out", "missing/net.safetensors"])
def test_training_refuses_a_file_that_it_could_not_write(script, few, tmp_path, out, capsys):
    with pytest.raises(SystemExit):
        script("train.py", tmp_path / out, "--data", few)
    printed = capsys.readouterr()
    assert f"{out}: name a .safetensors file in a folder that exists" in printed.err
    assert "epoch" not in printed.out


def test_measuring(script, few, tmp_path):
    weights, folder = tmp_path / "random.safetensors", tmp_path / "kept"
    state = nnx.state(models.create("fashion_resnet"), (nnx.Param, nnx.BatchStat))
    leaves = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    write_weights(weights, {path: leaf.get_value() for path, leaf in leaves.items()})
    words = (
        folder,
        "--weights",
        weights,
        "--data",
        few,
        "--method",
        "optimal",
        "--method",
        "mixed bits",
    )
    printed = script("evaluate.py", *words, "--bits", "4", "2.5")
    *_, head, rule, optimal, mixed = printed.splitlines()
    assert (head, rule) == ("| method | 4 | 2.5 |", "|---|---|---|")
    figures = r"\d+\.\d \[\d+\.\d, \d+\.\d\]; [+-]\d+\.\d to [+-]\d+\.\d"
    assert re.fullmatch(rf"\| optimal \| {figures} \|  \|", optimal)
    assert re.fullmatch(rf"\| mixed bits \| {figures} \| {figures} \|", mixed)
    assert len(list(folder.iterdir())) == 3
    assert script("evaluate.py", *words, "--bits", "4", "2.5").splitlines()[-2:] == [optimal, mixed]
