import os
import pathlib
import stat
import subprocess
import sys
import textwrap
import types

import pytest

from corrq_jax import atomic
from corrq_jax.atomic import atomic_write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_at_the_end_only(tmp_path):
    target = tmp_path / "a.npz"
    with atomic_write(target, overwrite=False) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
        assert temporary.parent.parent == tmp_path
        assert temporary.suffix == ".npz"
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.npz"]


def test_overwrite_replaces(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with atomic_write(str(target), overwrite=True) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_an_existing_file_is_refused_before_any_work(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    context = atomic_write(target, overwrite=False)
    with pytest.raises(FileExistsError, match=r"exists already.*overwrite=True.*a'"):
        context.__enter__()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(atomic.pathlib.Path, "hardlink_to", _no_hard_links)
    target = tmp_path / "a"
    with (  # noqa: PT012
        pytest.raises(FileExistsError, match="exists already"),
        atomic_write(target, overwrite=False) as temporary,
    ):
        temporary.write_bytes(b"mine")
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert names(tmp_path) == ["a"]


def _no_hard_links(self, target):
    raise PermissionError(1, "Operation not permitted")


def test_filesystems_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.pathlib.Path, "hardlink_to", _no_hard_links)
    with atomic_write(tmp_path / "a", overwrite=False) as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failure_leaves_the_folder_as_it_was(tmp_path, error, old):
    target = tmp_path / "a"
    if old is not None:
        target.write_bytes(old)
    before = names(tmp_path)
    with pytest.raises(error), atomic_write(target, overwrite=True) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise error
    assert names(tmp_path) == before
    assert old is None or target.read_bytes() == old


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_the_end_leaves_the_folder_as_it_was(tmp_path, monkeypatch, step):
    target = tmp_path / "a"
    target.write_bytes(b"old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (atomic.pathlib.Path, step)), fail)
    with (
        pytest.raises(OSError, match="No space left"),
        atomic_write(target, overwrite=True) as temporary,
    ):
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"missing' does not exist; make it first"),
        atomic_write(tmp_path / "missing" / "a", overwrite=True),
    ):
        pass


def test_a_folder_is_refused(tmp_path):
    with (
        pytest.raises(IsADirectoryError, match="it is a folder; give a file name"),
        atomic_write(tmp_path, overwrite=True),
    ):
        pass
    assert names(tmp_path) == []


def test_a_symbolic_link_is_written_through(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link", overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_permissions_are_the_users_or_the_replaced_files(tmp_path):
    plain, target = tmp_path / "plain", tmp_path / "a"
    plain.write_bytes(b"")
    for expected in (stat.S_IMODE(plain.stat().st_mode), 0o640):
        with atomic_write(target, overwrite=True) as temporary:
            temporary.unlink()  # As writers do that rename a private file of their own.
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
        assert stat.S_IMODE(target.stat().st_mode) == expected
        target.chmod(0o640)


def test_the_longest_name_a_filesystem_takes(tmp_path):
    name = "n" * 251 + ".npz"
    with atomic_write(tmp_path / name, overwrite=False) as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    with atomic_write(tmp_path / "living", overwrite=False) as living:
        living.write_bytes(b"living")
        left = tmp_path / living.parent.name.replace("-writing-", "-writing-dead")
        left.mkdir()
        for name in ("lock", "new", ".tmp"):
            (left / name).write_bytes(b"half")
        with atomic_write(tmp_path / "another", overwrite=False) as another:
            another.write_bytes(b"another")
        assert not left.exists()
    assert (tmp_path / "living").read_bytes() == b"living"
    assert names(tmp_path) == ["another", "living"]


@pytest.mark.parametrize("fault", [OSError(95, "Operation not supported"), None])
def test_systems_without_file_locks(tmp_path, monkeypatch, fault):
    """There no work folder is ever taken for left."""

    def flock(*args):
        raise fault

    stand_in = fault and types.SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4)
    monkeypatch.setattr(atomic, "fcntl", stand_in)
    with atomic_write(tmp_path / "a", overwrite=False) as a:
        a.write_bytes(b"a")
        with atomic_write(tmp_path / "b", overwrite=False) as b:
            b.write_bytes(b"b")
        monkeypatch.undo()
        with atomic_write(tmp_path / "c", overwrite=False) as c:
            c.write_bytes(b"c")
    assert names(tmp_path) == ["a", "b", "c"]


def test_a_new_folder_that_is_taken_for_left_is_made_anew(tmp_path, monkeypatch):
    """Another process looks between the making of the folder and its lock."""
    made = []
    mkdtemp = atomic.tempfile.mkdtemp

    def removed_at_once(**options):
        folder = mkdtemp(**options)
        made.append(folder)
        if len(made) < 3:
            pathlib.Path(folder).rmdir()
        return folder

    monkeypatch.setattr(atomic.tempfile, "mkdtemp", removed_at_once)
    with atomic_write(tmp_path / "a", overwrite=False) as temporary:
        temporary.write_bytes(b"new")
    assert len(made) == 3
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    code = """
        import resource, sys
        from corrq_jax.atomic import atomic_write
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with atomic_write(sys.argv[1], overwrite=True) as temporary:
                temporary.write_bytes(bytes(100_000))
        except OSError as error:
            print(type(error).__name__, error.errno, error.filename)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"OSError 27 {target}\n"
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]
