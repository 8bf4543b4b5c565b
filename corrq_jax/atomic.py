"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays there.
    fcntl = None

# What os.link answers where a filesystem has no hard links (FAT, some network mounts).
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}

# What the system says of a full disk, without naming a file; Windows has no quota of its own.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}

_WORK = ".corrq-writing-"
_LOCK = "lock"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[pathlib.Path]:
    """Yields a temporary path near `path`; on success it becomes `path` in one step.

    The temporary file is in a hidden folder beside `path` (so the last step is a rename within
    one filesystem) and keeps `path`'s suffix, which some writers insist on. When the block ends,
    the file is flushed to disk and renamed. When the block raises, for a full disk or for
    anything else, the temporary file is removed and an earlier `path` is as it was. A symbolic
    link is written through, and a replaced file's permissions are kept.

    A process that is killed leaves its hidden folder; the next one that writes beside it removes
    it, where the system has file locks.

    Args:
        path: the file to write; its folder must exist.
        overwrite: whether an existing file may be replaced.

    Yields:
        The path of an existing, empty file to write to.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False (also when it appears while the
            block runs).
        FileNotFoundError: the folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.
        OSError: the folder cannot be written to, or the disk is full.
    """
    target = target_of(path, overwrite=overwrite)
    with _work_folder(target.parent) as folder:
        temporary = folder / f"new{target.suffix}"
        temporary.touch()
        mode = (target if target.exists() else temporary).stat().st_mode
        try:
            yield temporary
        except OSError as error:
            if error.errno in _FULL and error.filename is None:
                error.filename = os.fspath(target)
            raise
        temporary.chmod(stat.S_IMODE(mode))  # A writer may have put a private file in its place.
        _flush_to_disk(temporary)
        _publish(temporary, target, overwrite=overwrite)
    _flush_folder(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields an empty folder near `path`; on success it becomes `path` in one step.

    As `atomic_write`, but nothing that exists is replaced.

    Args:
        path: the folder to make; the one it is in must exist.

    Yields:
        The path of an empty folder to write to.

    Raises:
        FileExistsError: `path` exists.
        FileNotFoundError: the folder that `path` is in does not exist.
        OSError: that folder cannot be written to, or the disk is full.
    """
    target = new_folder_of(path)
    with _work_folder(target.parent) as work:
        folder = work / "new"
        folder.mkdir()
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
        folder.rename(target)
    _flush_folder(target.parent)


@contextlib.contextmanager
def _work_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder, locked as long as this process writes there and lives."""
    remove_left(parent)
    folder, lock = _new_folder(parent)
    try:
        yield folder
    finally:
        _remove(folder, lock)


def remove_left(parent: pathlib.Path) -> None:
    """Removes what killed processes have left when writing to this folder."""
    for left in parent.glob(f"{_WORK}*"):
        _remove_if_left(left)


def lock_folder(folder: pathlib.Path) -> IO[bytes] | None:
    """Locks a folder, which is made if need be, until the file that this gives is closed.

    Returns:
        The open file; None if the system cannot lock.

    Raises:
        BlockingIOError: another process has locked it.
    """
    while True:
        folder.mkdir(exist_ok=True)
        name = folder / _LOCK
        # Until it is locked, the process that has it may remove it.
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            lock = stack.enter_context(name.open("ab"))
            if not _locks(lock):
                lock.close()  # Windows removes no file that is open.
                name.unlink()
                return None
            if os.path.samestat(os.fstat(lock.fileno()), name.stat()):
                stack.pop_all()
                return lock


def remove_locked(folder: pathlib.Path, lock: IO[bytes] | None) -> None:
    """Removes a folder that `lock_folder` locked, in which nothing else may be any more."""
    try:
        if lock is not None:
            (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        if lock is None or not (folder / _LOCK).exists():
            raise
        # Another process has it now.
    finally:
        if lock is not None:
            lock.close()


def _new_folder(parent: pathlib.Path) -> tuple[pathlib.Path, IO[bytes]]:
    """A folder and the file in it that is locked, if the system can; it is never seen empty."""
    while True:
        folder = pathlib.Path(tempfile.mkdtemp(prefix=_WORK, dir=parent))
        name = folder / _LOCK
        # Another process may take it for left until it is locked, and remove it.
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            lock = name.open("xb")
            if not _locks(lock):
                lock.close()
                name.rename(folder / "unlocked")
                return folder, lock
            if name.exists():
                return folder, lock


def _remove_if_left(folder: pathlib.Path) -> None:
    """Removes the work folder of a process that has died: nobody holds its lock."""
    with contextlib.suppress(OSError):
        try:
            lock = (folder / _LOCK).open("rb+")
        except FileNotFoundError:
            folder.rmdir()  # only if it is empty
        else:
            with lock:
                if _locks(lock):
                    _remove(folder, lock)


def _locks(file: IO[bytes]) -> bool:
    """Locks an open file until it is closed; False if the system cannot.

    Raises:
        BlockingIOError: another process has locked it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _remove(folder: pathlib.Path, lock: IO[bytes]) -> None:
    """Removes a work folder; the lock last, so that another process can go on when it is killed."""
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name != _LOCK:
                file.unlink()
        (folder / _LOCK).unlink(missing_ok=True)
    lock.close()  # Network filesystems keep a file that is open, under another name.
    with contextlib.suppress(OSError):
        folder.rmdir()


def target_of(path: str | os.PathLike[str], *, overwrite: bool) -> pathlib.Path:
    """The file to write, behind any symbolic link, or the reason why it cannot be written.

    Raises:
        OSError: as `atomic_write`.
    """
    target = _resolved(path)
    if target.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "cannot write a file here, it is a folder; give a file name", str(path)
        )
    if target.exists() and not overwrite:
        raise _exists(path)
    return target


def new_folder_of(path: str | os.PathLike[str]) -> pathlib.Path:
    """The folder to make, behind any symbolic link, or the reason why it cannot be made.

    Raises:
        OSError: as `atomic_folder`.
    """
    target = _resolved(path)
    if target.exists():
        raise FileExistsError(
            errno.EEXIST, "it exists already; choose another name, or remove it first", str(path)
        )
    return target


def _resolved(path: str | os.PathLike[str]) -> pathlib.Path:
    """What is written to, behind any symbolic link; the folder that it is in has to exist."""
    target = pathlib.Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT,
            f"the folder {str(target.parent)!r} does not exist; make it first, then write",
            str(path),
        )
    return target


def _exists(path: str | os.PathLike[str]) -> FileExistsError:
    return FileExistsError(
        errno.EEXIST,
        "the file exists already; choose another name, or allow overwriting (overwrite=True)",
        str(path),
    )


def _flush_to_disk(path: pathlib.Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _publish(temporary: pathlib.Path, target: pathlib.Path, *, overwrite: bool) -> None:
    """Gives the finished file its name."""
    if overwrite:
        temporary.replace(target)
        return
    # A rename would silently replace a file that appeared meanwhile; a hard link refuses to.
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        raise _exists(target) from None
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if target.exists():
            raise _exists(target) from None
        temporary.replace(target)


def _flush_folder(folder: pathlib.Path) -> None:
    """Makes the rename itself durable, where the platform can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
