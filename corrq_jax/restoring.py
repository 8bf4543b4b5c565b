"""A quantized file back to a file of plain weights, one tensor in memory at a time."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax import model_folders, paths
from corrq_jax.archive import Archive
from corrq_jax.atomic import atomic_folder
from corrq_jax.errors import FileFormatError
from corrq_jax.lazy import LazyArray
from corrq_jax.readers import write_weights
from corrq_jax.readers.safetensors_file import write_safetensors
from corrq_jax.tensor import QuantizedTensor

Progress = Callable[[str, int, int], None]


def dequantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Turn a quantized file, or folder, back into plain weights of the original shapes and dtypes.

    The arrays are those of `corrq_jax.dequantize`; one at a time is in memory.

    Args:
        source: what `corrq_jax.quantize_file` or `corrq_jax.save` wrote.
        target: the file to write, `.npz` or `.safetensors`. For a folder: a folder, which then has
            the files of the one that was quantized, or a file of all weights.
        overwrite: whether an existing file may be replaced; a folder never is.
        progress: called with the path of each tensor as it is written, the bytes of weights written
            so far, and how many they will be.

    Returns:
        How many arrays were written.

    Raises:
        FileFormatError: the file is damaged or not one of `save`'s.
        InputError: the suffix of the target is another.
        FileExistsError: the target exists, and may not be replaced.
        OSError: a file cannot be read or written.

    >>> import pathlib, tempfile
    >>> import corrq_jax as corrq
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> kernel = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float16)
    >>> _ = corrq.save(folder / "q.safetensors", corrq.quantize({"kernel": kernel}, bits=8)[0])
    >>> dequantize_file(folder / "q.safetensors", folder / "back.npz")
    1
    >>> with np.load(folder / "back.npz") as back:
    ...     back["kernel"].dtype, round(corrq.correlation(kernel, back["kernel"]), 4)
    (dtype('float16'), 1.0)
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    is_folder = source.is_dir()
    with Archive(source / model_folders.QUANTIZED if is_folder else source) as archive:
        leaves = paths.flatten(archive.tree(lazy=True))[0]
    arrays = _counted({path: restored(leaf) for path, leaf in leaves}, progress)
    if not is_folder or target.suffix.lower() in (".npz", ".safetensors"):
        write_weights(target, arrays, overwrite=overwrite)
        return len(arrays)
    shards = model_folders.read_layout(source)
    if arrays.keys() != {name for shard in shards for name in shard.tensors}:
        raise FileFormatError(f"{source}: its files do not fit each other; make or fetch it again")
    with atomic_folder(target) as folder:
        for shard in shards:
            own = {name: arrays[name] for name in shard.tensors}
            write_safetensors(folder / shard.name, own, metadata=shard.metadata)
        model_folders.copy_rest(source, folder)
    return len(arrays)


def _counted(arrays: dict[str, LazyArray], progress: Progress | None) -> dict[str, LazyArray]:
    """The arrays, which tell when they are read."""
    if progress is None:
        return arrays
    total, done = sum(array.nbytes for array in arrays.values()), 0

    def load(path: str, array: LazyArray) -> np.ndarray:
        nonlocal done
        values = array.load()
        done += array.nbytes
        progress(path, done, total)
        return values

    return {
        path: dataclasses.replace(array, load=functools.partial(load, path, array))
        for path, array in arrays.items()
    }


def restored(leaf: LazyArray | QuantizedTensor) -> LazyArray:
    """The array that a leaf of an `Archive` stands for, decoded when it is asked for."""
    if not isinstance(leaf, QuantizedTensor):
        return leaf
    shape = (*leaf.codes.shape[:-1], *leaf.shape)
    return LazyArray(shape, np.dtype(jnp.dtype(leaf.dtype)), functools.partial(_decoded, leaf))


def _decoded(leaf: QuantizedTensor) -> np.ndarray:
    return np.asarray(jax.tree.map(np.asarray, leaf).dequantize())
