"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import pathlib
import secrets
import stat
from collections.abc import Iterator

# What os.link answers where a filesystem has no hard links (FAT, some network mounts).
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; on success it becomes `path` in one step.

    The temporary file is in the same folder (so the last step is a rename within one
    filesystem) and keeps `path`'s suffix, which some writers insist on. When the block ends,
    the file is flushed to disk and renamed. When the block raises, for a full disk or for
    anything else, the temporary file is removed and an earlier `path` is as it was. A symbolic
    link is written through, and a replaced file's permissions are kept.

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
    target = _target(path, overwrite=overwrite)
    temporary = target.with_name(f".corrq-{secrets.token_hex(8)}{target.suffix}")
    # O_EXCL with mode 0666 rather than mkstemp: the result then has the user's usual permissions.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = (target if target.exists() else temporary).stat().st_mode
    try:
        yield temporary
        temporary.chmod(stat.S_IMODE(mode))  # A writer may have put a private file in its place.
        _flush_to_disk(temporary)
        _publish(temporary, target, overwrite=overwrite)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


def _target(path: str | os.PathLike[str], *, overwrite: bool) -> pathlib.Path:
    """The file to write, behind any symbolic link, or the reason why it cannot be written."""
    target = pathlib.Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "cannot write a file here, it is a folder; give a file name", str(path)
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT,
            f"the folder {str(target.parent)!r} does not exist; make it first, then write",
            str(path),
        )
    if target.exists() and not overwrite:
        raise _exists(path)
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
    else:
        temporary.unlink()


def _flush_folder(folder: pathlib.Path) -> None:
    """Makes the rename itself durable, where the platform can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
