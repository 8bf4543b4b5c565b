"""A file of weights to a quantized file, one tensor in memory at a time."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from corrq_jax import model_folders, paths
from corrq_jax.atomic import atomic_folder, atomic_write, new_folder_of, target_of
from corrq_jax.config import Config
from corrq_jax.errors import CorrqError, InputError
from corrq_jax.layout import OF_CODES
from corrq_jax.parts import Parts
from corrq_jax.readers import open_weights
from corrq_jax.readers.model_folder import weight_files
from corrq_jax.report import Report
from corrq_jax.selection import choose
from corrq_jax.storage import save
from corrq_jax.tree import Passes, quantize_by

Progress = Callable[[str, int, int], None]
"""Called with the path of a tensor that is done, and bytes of weights gone through and in all."""


def quantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    config: Config | None = None,
    *,
    importance: Mapping[str, float] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Quantize a file, or folder, of weights in the memory that its largest tensor takes.

    The result is byte for byte what `corrq_jax.quantize` and `corrq_jax.save` (with the report)
    make of the file's arrays; slashes in their names make a tree. Tensors are read in pieces, in
    each pass anew: in memory are the codes of one. (PyTorch's files, Orbax checkpoints and
    compressed `.keras` archives, which Keras does not write, are read whole. Of a tensor that lies
    columns first in an `.npz`, or in large chunks in HDF5, up to about a quarter is in memory; the
    former is gone through a few times in each pass.) Finished tensors are kept in a hidden folder
    beside the target, ``.TARGET.parts``, until the target is written: a run that was killed, or
    that ran out of disk, goes on from there when it is started again.

    A folder with a network of Hugging Face, its weights in one or several safetensors files,
    becomes a folder with ``corrq.safetensors`` in place of them; all else is copied, but for copies
    of the weights in other formats. `corrq_jax.dequantize_file` makes the first folder of it again.

    Args:
        source: a file or folder that `corrq_jax.readers.read_weights` can read.
        target: the file to write, `.safetensors`; or, for a folder, the folder to make.
        config: the options; by default 4 bits.
        importance: as for `corrq_jax.quantize`.
        overwrite: whether an existing file may be replaced; a folder never is.
        progress: called with the path of each tensor as it is measured, and again as it is encoded,
            with the bytes of weights that were gone through, and how many they will be.

    Returns:
        The report. ``file_nbytes`` is the size of the quantized file.

    Raises:
        InputError: as `corrq_jax.quantize`; or the file is quantized already, or has changed while
            it was read; or another process is making the target.
        FileFormatError: the file is damaged.
        FileExistsError: the target exists, and may not be replaced.
        OSError: a file cannot be read or written.

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> np.savez(folder / "net.npz", kernel=np.random.default_rng(0).normal(size=(64, 64)))
    >>> report = quantize_file(folder / "net.npz", folder / "q.safetensors", Config(bits=3))
    >>> [(row.path, row.bits) for row in report]
    [('kernel', 3)]
    """
    config = Config() if config is None else config
    source, target = pathlib.Path(source), pathlib.Path(target)
    if (source / model_folders.QUANTIZED).exists():
        raise InputError(f"{source} is quantized already; corrq dequantize turns it back")
    quantize = functools.partial(_quantize, source, config, importance, progress)
    if not weight_files(source) or target.suffix.lower() == ".safetensors":
        with (
            _parts(target_of(target, overwrite=overwrite), source) as parts,
            atomic_write(target, overwrite=overwrite) as file,
            _unchanged(source),
        ):
            return quantize(parts, file)
    with (
        _parts(new_folder_of(target), source) as parts,
        atomic_folder(target) as folder,
        _unchanged(source),
    ):
        model_folders.write_layout(source, folder)
        model_folders.copy_rest(source, folder)
        return quantize(parts, folder / model_folders.QUANTIZED)


def _quantize(
    source: pathlib.Path,
    config: Config,
    importance: Mapping[str, float] | None,
    progress: Progress | None,
    parts: Parts,
    target: pathlib.Path,
) -> Report:
    """Quantize into a file that nobody sees yet."""
    with open_weights(source) as arrays:
        params = nested(arrays, source)
        passes = _counted(parts, params, config, progress)
        tree, report = quantize_by(passes, params, config, importance)
        size = save(target, tree, report=report)
    return dataclasses.replace(report, file_nbytes=size)


def _state(source: pathlib.Path) -> str:
    """A text that changes when the weights do; of nothing, empty."""
    files = weight_files(source) if source.is_dir() else [source]
    try:
        files = files or sorted(file for file in source.rglob("*") if file.is_file())
        states = [(str(file.resolve()), file.stat()) for file in files]
    except FileNotFoundError:
        return ""
    return " ".join(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states)


@contextlib.contextmanager
def _unchanged(source: pathlib.Path) -> Iterator[None]:
    """An error at the end if the weights have changed since the beginning."""
    before = _state(source)
    yield
    if _state(source) != before:
        raise InputError(f"{source} has changed while it was read; run this again")


@contextlib.contextmanager
def _parts(target: pathlib.Path, source: pathlib.Path) -> Iterator[Parts]:
    """The parts of a target; they stay where a run is stopped, but not where it is of no use."""
    try:
        parts = Parts(target.with_name(f".{target.name}.parts"), _state(source))
    except BlockingIOError:
        raise InputError(
            f"{target}: another process is making it; wait until it has ended, or give another name"
        ) from None
    with contextlib.closing(parts):
        try:
            yield parts
        except (CorrqError, FileNotFoundError, IsADirectoryError):
            parts.remove()
            raise
        parts.remove()


def _counted(parts: Parts, params: Any, config: Config, progress: Progress | None) -> Passes:
    """The passes of the parts, which tell what is done."""
    sizes = {
        path: leaf.nbytes for path, leaf in choose(config, paths.flatten(params)[0])[0].items()
    }
    total, done = 2 * sum(sizes.values()), 0

    def advance(path: str) -> None:
        nonlocal done
        # With a target of correlation a tensor may be encoded more than once.
        done = min(done + sizes[path], total)
        if progress is not None:
            progress(path, done, total)

    def measure(path: str, array: Any, config: Config, _: Any = None):
        found = parts.measure(path, array, config)
        advance(path)
        return found

    def encode(option):
        found = parts.encode(option)
        advance(option.leaf.path)
        return found

    return Passes(measure, encode)


def refuse_quantized(names: Iterable[str], source: str | os.PathLike[str]) -> None:
    """Raises InputError if names of arrays are those of a quantized file."""
    if any(name.endswith(OF_CODES) for name in names):
        raise InputError(f"{source} is quantized already; corrq dequantize turns it back")


def nested(arrays: Mapping[str, Any], source: str | os.PathLike[str]) -> dict[str, Any]:
    """Arrays whose names have slashes, as a tree; as they are if one name is a folder of others.

    Raises:
        InputError: they are those of a quantized file.
    """
    refuse_quantized(arrays, source)
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                return dict(arrays)
        if last in node:
            return dict(arrays)
        node[last] = array
    return tree
