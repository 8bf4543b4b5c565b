"""What `corrq` compiles is kept for its next run."""

import pytest
from command_line import in_process, write


@pytest.fixture(autouse=True)
def jax_knows_no_folder(monkeypatch):
    """Not the one that the tests share."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")


def quantize(tmp_path, *options, **environment):
    """Run `corrq quantize` on a small network; the bytes of its output."""
    source, output = write(tmp_path / "net.npz"), tmp_path / "out.safetensors"
    done = in_process("quantize", source, "-o", output, "--force", *options, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return output.read_bytes()


def programs(folder):
    return {path.name for path in folder.rglob("*-cache")}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The folder of what a first run compiled, and the bytes of its output."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_COMPILATION_CACHE_DIR")
        return folder / "cache", quantize(folder, CORRQ_CACHE=str(folder / "cache"))


def test_a_second_run_compiles_nothing(first_run, tmp_path):
    cache, output = first_run
    kept = programs(cache)
    assert any("fit_batch" in name for name in kept)
    assert quantize(tmp_path, CORRQ_CACHE=str(cache)) == output
    assert programs(cache) == kept


def test_a_damaged_program_is_compiled_anew(first_run, tmp_path):
    cache, output = first_run
    for path in cache.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:100])
    assert quantize(tmp_path, CORRQ_CACHE=str(cache)) == output


def test_jax_may_have_been_told_of_another_folder(tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    quick = ("--grid", "linear", "--fit", "range")
    quantize(tmp_path, *quick, JAX_COMPILATION_CACHE_DIR=str(theirs), CORRQ_CACHE=str(ours))
    assert not ours.exists()


def test_a_folder_that_cannot_be_made_changes_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    quantize(tmp_path, "--grid", "linear", "--fit", "range", CORRQ_CACHE=str(tmp_path / "file"))


def test_help_and_version_leave_no_folder(tmp_path):
    for word in ("--help", "--version"):
        assert in_process(word, CORRQ_CACHE=str(tmp_path / "cache")).returncode == 0
    assert not (tmp_path / "cache").exists()
