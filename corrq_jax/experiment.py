"""Methods and bit widths compared on one network, cell by cell, and put together into one `Run`.

A cell is a method at a bit width. With a folder each is kept in a file of its own as soon as it is
done, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from corrq_jax import sweep
from corrq_jax.atomic import atomic_write
from corrq_jax.details import FLOAT, Histogram, Pictures, Predictions
from corrq_jax.errors import InputError
from corrq_jax.evaluation import Metrics, Progress
from corrq_jax.fidelity import Subject
from corrq_jax.histograms import histogram
from corrq_jax.illustrate import illustrated
from corrq_jax.methods import Cell, Method
from corrq_jax.paths import flatten
from corrq_jax.results import LayerDensity, Run

Advance = Callable[[str], object]

# What two runs have to share for their cells to be comparable.
_IDENTITY = ("corrq_jax", "data", "float weights", "computed in", "matmul precision")


def compare(
    network: str,
    params: Any,
    chosen: Sequence[Cell],
    *,
    subject: Subject | None = None,
    keep: pathlib.Path | None = None,
    advance: Advance = lambda text: None,
    watch: Progress | None = None,
) -> Run:
    """Quantizes a network in several ways and measures each.

    Args:
        network: its name.
        params: the float tree; with a subject, the subject's.
        chosen: methods and widths, from `corrq_jax.methods.cells`.
        subject: the network with its pictures; None for sizes and correlations alone.
        keep: a folder for the cells, made if need be; those that are in it already are not
            measured again. None to keep nothing.
        advance: called after each cell, with a line on it.
        watch: called during each pass over the pictures, as `corrq_jax.evaluation.evaluate` does.

    Returns:
        The run. Cells of mixed bits whose target cannot be met are left out, with a warning.

    Raises:
        InputError: nothing could be measured, a kept cell is of another experiment, or as
            `corrq_jax.sweep.sweep`.
    """
    about = _identity(params, subject) if keep is not None else {}
    store = _Store(keep, network, about) if keep is not None else None
    kept = {cell: store.read(cell) for cell in chosen} if store else {}
    parts: list[Run] = []
    # One whose answers are NaN has no pictures, which the others would be without then.
    frame = next((run for run in kept.values() if run and run.pictures), None)
    for cell in chosen:
        part = kept.get(cell)
        if part is None:
            frame = frame or _frame(network, params, subject, about, watch)
            part = _measured(frame, params, cell, subject, watch)
            if part is None:
                advance(f"{cell[0].name}, {cell[1]:g} bits: left out")
                continue
            if store:
                store.write(cell, part)
        parts.append(part)
        (result,) = part.results
        advance(f"{result.method}, {result.bits:g} bits: rho {result.mean_correlation:.5f}")
    if not parts:
        raise InputError("nothing was measured: no target of mixed bits can be met")
    order = [site.kernel for site in subject.wiring.sites] if subject else []
    joined = _joined(parts, order, tuple(_densities(params, chosen, parts[0])))
    pictures = joined.pictures
    return dataclasses.replace(
        joined,
        histograms=_histograms(params, joined),
        pictures=illustrated(pictures, subject) if subject and pictures else pictures,
    )


def _frame(
    network: str,
    params: Any,
    subject: Subject | None,
    about: Mapping[str, str],
    watch: Progress | None,
) -> Run:
    """A run without results: the float network."""
    reference = subject.compare(params, watch) if subject else None
    frame = sweep.float_run(
        network,
        params,
        photos=subject.photos if subject else 0,
        views=subject.count if subject else 0,
        reference=reference.photos if reference else None,
        about=about or ({"data": subject.data} if subject else {}),
    )
    if not subject or not reference or reference.predictions is None:
        return frame
    labels = tuple(map(int, subject.labels))
    pictures = Pictures(labels, subject.views, {}, (), {FLOAT: reference.predictions})
    return dataclasses.replace(frame, pictures=pictures)


def _measured(
    frame: Run, params: Any, cell: Cell, subject: Subject | None, watch: Progress | None
) -> Run | None:
    """The run of one cell; None if its target cannot be met."""
    seen: list[Predictions | None] = []

    def measure(tree: Any) -> tuple[Metrics, Metrics]:
        assert subject is not None
        photos, views, predictions = subject.compare(tree, watch)
        seen.append(predictions)
        return photos, views

    method = cell[0]
    is_traced = isinstance(method, Method) and (method.match or method.mixed)
    wiring = subject.wiring if subject and is_traced else None
    for result, layers in sweep.sweep(params, [cell], measure if subject else None, wiring):
        return dataclasses.replace(
            frame,
            weights=sum(layer.size for layer in layers),
            results=(result,),
            layers={result.key: layers},
            # The frame may be of a kept cell, measured on another machine.
            environment={**frame.environment, **sweep.environment()},
            pictures=_with_answers(frame.pictures, result.key, seen[-1] if seen else None),
        )
    return None


def _with_answers(
    pictures: Pictures | None, key: str, predictions: Predictions | None
) -> Pictures | None:
    """The float network's answers and those of one other network."""
    if pictures is None or predictions is None:
        return None
    known = {FLOAT: pictures.predictions[FLOAT], key: predictions}
    return dataclasses.replace(pictures, predictions=known)


def _joined(parts: Sequence[Run], order: Sequence[str], densities: tuple[LayerDensity, ...]) -> Run:
    """One run, its layers in the order of the computation as far as that is known."""
    place = {path: number for number, path in enumerate(order)}
    layers = {
        key: tuple(sorted(layers, key=lambda layer: place.get(layer.path, len(place))))
        for part in parts
        for key, layers in part.layers.items()
    }
    environment = {
        name: "; ".join(dict.fromkeys(p.environment[name] for p in parts if name in p.environment))
        for name in dict.fromkeys(name for part in parts for name in part.environment)
    }
    return dataclasses.replace(
        parts[0],
        results=tuple(result for part in parts for result in part.results),
        layers=layers,
        densities=densities,
        environment=environment,
        pictures=_joined_pictures([part.pictures for part in parts if part.pictures]),
    )


def _joined_pictures(parts: Sequence[Pictures]) -> Pictures | None:
    """The answers of all networks whose answers were recorded."""
    if not parts:
        return None
    known = {key: found for part in parts for key, found in part.predictions.items()}
    return dataclasses.replace(parts[0], predictions=known)


def _histograms(params: Any, run: Run) -> dict[str, Histogram]:
    """Of all tensors that a method quantized."""
    paths = {layer.path for layers in run.layers.values() for layer in layers}
    return {path: histogram(np.asarray(leaf)) for path, leaf in flatten(params)[0] if path in paths}


def _densities(params: Any, chosen: Sequence[Cell], part: Run) -> Iterator[LayerDensity]:
    """Typical layers as the methods fitted by correlation quantize them."""
    (layers,) = part.layers.values()
    for path in sweep.typical_paths(layers):
        for method, bits in _drawn(chosen):
            yield sweep.layer_density(params, path, method, bits)


def _drawn(chosen: Sequence[Cell]) -> list[tuple[Method, int]]:
    """The methods fitted by correlation at their width closest to 3 bits, where levels are seen."""
    best: dict[str, tuple[Method, int]] = {}
    for method, bits in chosen:
        if isinstance(method, Method) and method.is_plain and method.fit == "correlation":
            cell = method, int(bits)
            best[method.name] = min(best.get(method.name, cell), cell, key=lambda c: abs(c[1] - 3))
    return list(best.values())


def _identity(params: Any, subject: Subject | None) -> dict[str, str]:
    """What the figures are figures of, as far as a file's name does not tell."""
    digest = hashlib.sha256()
    for path, leaf in flatten(params)[0]:
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    about = {"float weights": f"sha256 {digest.hexdigest()[:16]}"}
    if subject is not None:
        about |= {"data": subject.data, "computed in": subject.dtype}
    return about


class _Store:
    """Runs of one cell each, as JSON files in a folder."""

    def __init__(self, folder: pathlib.Path, network: str, about: Mapping[str, str]):
        self._folder = folder
        self._network = network
        self._about = {**sweep.environment(), **about}
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, cell: Cell) -> pathlib.Path:
        method, bits = cell
        slug = re.sub(r"[^a-z0-9.]+", "-", f"{method.name} {bits:g}".lower())
        return self._folder / f"{slug}.json"

    def read(self, cell: Cell) -> Run | None:
        """The kept run of a cell, if there is one, of this very experiment."""
        path = self._path(cell)
        if not path.exists():
            return None
        try:
            run = Run.from_json(path.read_text(encoding="utf-8"))
        except InputError as error:
            raise InputError(f"{path}: {error}; remove the file, and it is measured anew") from None
        pairs = [("network", run.network, self._network)]
        pairs += [(k, run.environment.get(k), self._about.get(k)) for k in _IDENTITY]
        for name, kept, now in pairs:
            if kept != now:
                raise InputError(
                    f"{path} is of another experiment ({name}: {kept!r}, now {now!r}); choose "
                    f"another folder, or remove {path.parent}"
                )
        return run

    def write(self, cell: Cell, run: Run) -> None:
        """Keeps the run of a cell, whole or not at all."""
        with atomic_write(self._path(cell), overwrite=True) as temporary:
            temporary.write_text(run.to_json(), encoding="utf-8")
