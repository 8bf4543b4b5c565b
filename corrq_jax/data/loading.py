"""Batches of a source's pictures, decoded by several threads ahead of their use."""

import contextlib
import re
from collections.abc import Iterator

import numpy as np

from corrq_jax.data.batching import example_batches
from corrq_jax.data.preprocess import Preprocess
from corrq_jax.data.source import Source, decode
from corrq_jax.errors import InputError, require

WORKERS = 8

# (name, image float32[size, size, 3] or why there is none, label)
_Loaded = tuple[str, np.ndarray | str, int]


class Pictures:
    """Batches of pictures, the same in each pass; each `iter()` begins one.

    A pass yields images float32[batch_size, size, size, 3], labels int32[batch_size] and mask
    bool[batch_size], as `batches` does. Pictures that cannot be read are left out; the others stay
    in order.

    Attributes:
        source: where the pictures come from.
        indices: numbers of the pictures in the source, in the order of a pass.
        count: pictures read in the latest pass so far.
        corrupt: why, by the name of each picture that could not be read in it.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        batch_size: int,
        workers: int,
        indices: np.ndarray,
    ):
        self.source = source
        self.indices = indices
        self.count: int = 0
        self.corrupt: dict[str, str] = {}
        self._preprocess = preprocess
        self._batch_size = batch_size
        self._workers = workers

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Begins a pass."""
        with contextlib.closing(self._examples()) as examples:
            yield from example_batches(examples, self._batch_size)

    def _examples(self):
        self.count = 0
        self.corrupt = {}
        with self._loaded() as loaded:
            for name, image, label in loaded:
                if isinstance(image, str):
                    self.corrupt[name] = image
                else:
                    self.count += 1
                    yield image, label

    @contextlib.contextmanager
    def _loaded(self) -> Iterator[Iterator[_Loaded]]:
        if self._workers == 0:
            yield map(self._load, range(len(self.indices)))
            return
        grain = require("grain", "data")
        # Threads, since Pillow and NumPy let others run while they work, and since JAX does not
        # survive a fork. One batch is made ready while another is used.
        options = grain.ReadOptions(
            num_threads=self._workers, prefetch_buffer_size=self._workers + self._batch_size
        )
        numbers = grain.MapDataset.range(len(self.indices))
        with contextlib.closing(iter(numbers.map(self._load).to_iter_dataset(options))) as loaded:
            yield loaded

    def _load(self, number: int) -> _Loaded:
        index = int(self.indices[number])
        try:
            record = self.source[index]
        except OSError as error:
            return str(error.filename or f"picture {index}"), _reason(error), -1
        try:
            image = decode(record.data)
        except Exception as error:  # decoders raise anything on damaged data
            return record.name, _reason(error), record.label
        return record.name, self._preprocess(image), record.label


def load(
    source: Source,
    preprocess: Preprocess,
    batch_size: int,
    *,
    workers: int = WORKERS,
    limit: int | None = None,
) -> Pictures:
    """Prepares to read a source's pictures in batches of one fixed shape, in the source's order.

    Args:
        source: the pictures, such as of `read_folder` or `tfds_source`.
        preprocess: how they become arrays.
        batch_size: at least 1; the last batch is padded.
        workers: threads that read, decode and prepare; the result is the same for any number. 0 is
            for none, which needs no grain.
        limit: read so many pictures at most, spread evenly over the source, since those of a folder
            are sorted by class; None for all.

    Returns:
        The batches, of which none has been read yet. A pass over them tells in `corrupt` and
        `count` which pictures could not be read and how many could.

    Raises:
        InputError: a number is out of range.
        MissingDependencyError: Pillow or grain is not installed.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; at least {least} is needed")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; at least 1 is needed, or None for all pictures")
    # Now, since a missing Pillow would look like damage to every picture later.
    require("PIL.Image", "data")
    if workers:
        require("grain", "data")
    total = len(source)
    count = total if limit is None else min(limit, total)
    indices = np.arange(count, dtype=np.int64) * total // max(count, 1)
    return Pictures(source, preprocess, batch_size, workers, indices)


def _reason(error: Exception) -> str:
    # Pillow names the object that it reads from, with an address that is another in each run.
    text = re.sub(r" <_io\.BytesIO object at \w+>", "", str(error))
    return f"{type(error).__name__}: {text}"
