"""What `corrq` compiles is kept for its next run."""

import os
import subprocess

import pytest
from command_line import COMMAND, write


def quantize(tmp_path, **environment):
    """Run `corrq quantize` with a cache folder of its own; its standard error."""
    source = tmp_path / "net.npz"
    write(source)
    command = [
        *COMMAND,
        "quantize",
        str(source),
        "-o",
        str(tmp_path / "out.safetensors"),
        "--force",
    ]
    known = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "XDG_CACHE"))}
    environment = {**known, **{k: str(v) for k, v in environment.items()}}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def programs(folder):
    return {path.name for path in folder.rglob("*-cache")}


@pytest.mark.parametrize("variable", ["CORRQ_CACHE", "XDG_CACHE_HOME"])
def test_a_second_run_compiles_nothing(tmp_path, variable):
    cache = tmp_path / "cache"
    first = quantize(tmp_path, **{variable: cache})
    kept = programs(cache)
    written = (tmp_path / "out.safetensors").read_bytes()
    assert any("fit_batch" in name for name in kept)
    second = quantize(tmp_path, **{variable: cache})
    assert programs(cache) == kept
    assert (tmp_path / "out.safetensors").read_bytes() == written
    assert "warning" not in first + second


def test_jax_may_have_been_told_of_another_folder(tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    quantize(tmp_path, JAX_COMPILATION_CACHE_DIR=theirs, CORRQ_CACHE=ours)
    assert not ours.exists()


def test_a_folder_that_cannot_be_made_changes_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "warning" not in quantize(tmp_path, CORRQ_CACHE=tmp_path / "file")
