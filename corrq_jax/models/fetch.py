"""Published weights into a folder on this disk: whole, verified, continued after an interruption.

The file is collected under `<name>.part` in the cache folder and gets its name when it is whole
and has the published hash, so what lies under that name is never a piece and never a wrong file.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import os
import pathlib
import sys
import urllib.parse
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from corrq_jax.cache import VARIABLE, cache_folder
from corrq_jax.errors import FileFormatError, InputError, require
from corrq_jax.models.published import Published

if TYPE_CHECKING:
    import requests

__all__ = ["fetch"]

_TIMEOUT_S = (10.0, 30.0)  # to connect, and without a single byte after that
_CHUNK_BYTES = 1 << 16  # what an interruption can lose of what came


def fetch(published: Published, *, cache: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Downloads a published file, or finds it in the cache.

    - A file that is there is verified and not downloaded again. It may have been put there by
      hand. If its hash is wrong, it is left as it is, and an error says so.
    - A transfer that breaks off leaves its part in the cache, and the next call asks the server
      for the rest only. If the whole then has a wrong hash, it is downloaded once more from the
      start.
    - Of processes that fetch the same file at once, one downloads; the others wait for it. They
      agree through a lock on the empty file `<name>.lock`, which stays; the lock itself ends with
      its process.
    - Progress is shown on a terminal and in a notebook.

    A file without a published hash cannot be verified, and `published.hash` is None for those who
    want to know. It is accepted only from https without a redirect, or from this machine; only
    with the length that the server announced; and it is never put together from two transfers,
    as nothing would show that they belong together. That it has all the arrays of the network is
    for the reader to check.

    Args:
        published: what to fetch, for instance `PUBLISHED["vgg16"]`.
        cache: folder for the file, made where needed; by default `corrq_jax.cache.cache_folder`.

    Returns:
        Path of the file.

    Raises:
        FileFormatError: the file has a wrong hash, the one downloaded or the one in the cache.
        InputError: the file has no hash, and its URL is not https.
        ConnectionError: the file cannot be downloaded; the message says what to download and
            where to put it.
        OSError: the cache folder cannot be written to.
        MissingDependencyError: pooch or tqdm is not installed.
    """
    pooch = require("pooch", "models")
    require("tqdm", "models")  # before the transfer, not in the middle of it
    folder = pathlib.Path(cache).expanduser().absolute() if cache else cache_folder()
    path = folder / published.file
    if path.exists():  # also in a folder that is read-only
        _check_existing(published, path)
        return path
    _check_url(published, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    store = pooch.create(
        path.parent,
        base_url="",
        registry={published.file: published.hash},
        urls={published.file: published.url},
        allow_updates=False,
    )
    deliver = functools.partial(_deliver, published=published, path=path)
    with _locked(path.with_name(f"{path.name}.lock")), _quiet(pooch.get_logger()):
        # Looks again whether the file is there: another process may have brought it meanwhile.
        store.fetch(published.file, downloader=deliver)
    return path


def _check_existing(published: Published, path: pathlib.Path) -> None:
    found = _hash(published, path)
    if found != published.hash:
        raise FileFormatError(
            f"{path}: this is not the file that {published.url} is known for: its hash is {found}, "
            f"not {published.hash}. It is left as it is. Move it away and run again to download "
            "the published file; to use it all the same, give its path as the weights"
        )


def _check_url(published: Published, path: pathlib.Path) -> None:
    """Without a hash, what vouches for the file is that nobody stands between it and us."""
    url = urllib.parse.urlsplit(published.url)
    if published.hash is None and url.scheme != "https" and not _is_loopback(url.hostname or ""):
        raise InputError(
            f"{published.url}: no hash of this file is known, so it is downloaded over https "
            f"only; give an https address, or put the file at {path} yourself"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _deliver(url: str, output: str, _: object, *, published: Published, path: pathlib.Path) -> None:
    """Pooch's downloader: puts the whole, verified file at `output`, which pooch then renames."""
    part = path.with_name(f"{path.name}.part")
    if published.hash is None:
        part.unlink(missing_ok=True)
    requests = require("requests", "models")
    try:
        continued = _transfer(published, part)
        found = _hash(published, part)
        if continued and found != published.hash:
            # The old part may be of another content; only a transfer in one piece can tell.
            part.unlink()
            _transfer(published, part)
            found = _hash(published, part)
    except requests.RequestException as error:
        raise ConnectionError(_advice(published, path, part, error)) from error
    if found != published.hash:
        part.unlink()
        raise FileFormatError(
            f"{url}: the file that came has the hash {found}, but {published.hash} is expected; "
            "it was thrown away. Something between may have answered instead of the server (a "
            "login page, a proxy), or the published file has changed: run again, and if the hash "
            f"stays wrong, put the right file at {path} from another source"
        )
    part.replace(output)


def _hash(published: Published, path: pathlib.Path) -> str | None:
    """The hash of a file, written as the published one; None where none is published."""
    if published.hash is None:
        return None
    algorithm = published.hash.partition(":")[0]
    return f"{algorithm}:{require('pooch', 'models').file_hash(path, alg=algorithm)}"


def _advice(
    published: Published, path: pathlib.Path, part: pathlib.Path, error: requests.RequestException
) -> str:
    """What to do when nothing more comes; the reason is last, as it can be long."""
    kept = part.stat().st_size if part.exists() and published.hash else 0
    again = f" ({kept} bytes are kept in {part} and are not sent again)" if kept else ""
    known = f", with the hash {published.hash}" if published.hash else ""
    return (
        f"cannot download {published.url}. Run again when there is a connection{again}, or "
        f"download that file on another machine and put it at {path}{known}. "
        f"The reason: {_reason(error)}"
    )


def _reason(error: requests.RequestException) -> object:
    """The fault itself, out of urllib3's sentence about retries or its pair of texts."""
    cause = error.args[0] if error.args else error
    if isinstance(cause, Exception):
        return getattr(cause, "reason", None) or (cause.args[0] if cause.args else cause)
    return error


def _transfer(published: Published, part: pathlib.Path) -> bool:
    """Downloads into `part`, what is missing of it where the server can do that.

    Returns:
        Whether the earlier content of `part` was kept.
    """
    requests = require("requests", "models")
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # pieces of the file itself, not of its compression
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(
        published.url,
        headers=headers,
        stream=True,
        timeout=_TIMEOUT_S,
        allow_redirects=published.hash is not None,
    ) as response:
        if start and response.status_code == 416:
            return True  # nothing lies beyond the part: it is whole, or it is wrong
        continued = start > 0 and response.status_code == 206
        if not continued and response.status_code != 200:
            raise requests.HTTPError(f"the server answered {response.status_code}")
        if published.hash is None and "Content-Length" not in response.headers:
            raise requests.HTTPError("the server does not say how long the file is")
        _save(response, part, start if continued else 0)
    return continued


def _save(response: requests.Response, part: pathlib.Path, start: int) -> None:
    """Appends the answer to the first `start` bytes of `part`; those are all of it, or none."""
    length = response.headers.get("Content-Length")
    total = None if length is None else start + int(length)
    bar = require("tqdm", "models").tqdm(
        desc=part.stem,
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        # None: shown on a terminal only. A notebook, whose stderr is none, shows it, too.
        disable=False if "ipykernel" in sys.modules else None,
    )
    with bar, part.open("ab" if start else "wb") as file:
        for chunk in response.iter_content(_CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
        if total is not None and file.tell() != total:  # old versions of urllib3 do not notice
            raise require("requests", "models").ConnectionError(
                f"{file.tell()} bytes came of {total}"
            )


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock that all processes heed; it ends with the file, also when a process dies."""
    with path.open("ab") as file:
        try:
            _wait_for_lock(file)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot lock this file ({error.strerror}); name a folder on a local disk in "
                f"the environment variable {VARIABLE}",
                str(path),
            ) from error
        yield


if sys.platform == "win32":

    def _wait_for_lock(file: IO[bytes]) -> None:
        import errno
        import msvcrt

        while True:
            try:  # gives up after ten seconds, with the error of a deadlock
                return msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
            except OSError as error:
                if error.errno != errno.EDEADLK:
                    raise

else:

    def _wait_for_lock(file: IO[bytes]) -> None:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without pooch's lines on stderr, where an error of the command line is the only line."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
