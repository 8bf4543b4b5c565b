"""What the script of a report draws: runs as plain data, small enough to lie inside the page."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from corrq_jax.comparison import Ranges, by_photo, differences
from corrq_jax.details import FLOAT, Histogram, LevelTable, Pictures, Predictions
from corrq_jax.html_text import is_data_set
from corrq_jax.intervals import clustered_share_interval
from corrq_jax.method_styles import PEER_COLOR, method_styles, peer_family, peer_marker
from corrq_jax.metrics import share_interval
from corrq_jax.results import LayerResult, Result, Run

_PARTS = ("codes", "levels", "scales", "rest", "header")
_MOST_CONFUSED = 12  # pairs of classes that are listed
_MATRIX = 20  # classes that a table of confusions may have


def page_data(runs: Mapping[str, Run]) -> dict[str, Any]:
    """All that is drawn of runs, by the names that the page gives them, for JSON.

    Results are numbered as in `corrq_jax.html_table.groups`: as they come, run by run.
    """
    styles = _styles(runs)
    results = [
        _result(i, run, result, styles[result.method])
        for i, run in enumerate(runs.values())
        for result in run.results
    ]
    found = differences(list(runs.values()))
    _add_intervals(list(runs.values()), results, found.kl_alone)
    return {
        "runs": [_run(name, run) for name, run in runs.items()],
        "results": results,
        "differences": {"agreement": _pairs(found.agreement), "kl": _pairs(found.kl)},
    }


def _styles(runs: Mapping[str, Run]) -> dict[str, dict[str, Any]]:
    """How each method is drawn."""
    results = [result for run in runs.values() for result in run.results]
    own = method_styles(r.method for r in results if not r.peer)
    found: dict[str, dict[str, Any]] = {
        name: {"color": style.color, "marker": style.marker, "dashed": style.dashed}
        for name, style in own.items()
    }
    for result in results:
        if result.peer:
            marker = peer_marker(peer_family(result.method))["marker"]
            found[result.method] = {"color": PEER_COLOR, "marker": marker, "dashed": False}
    return found


def _run(name: str, run: Run) -> dict[str, Any]:
    return {
        "name": name,
        "network": run.network,
        "weights": run.weights,
        "floatBytes": run.float_nbytes,
        "photos": run.photos,
        "views": run.views,
        "isDataSet": is_data_set(run),
        "floatTop1": run.float_top1,
        "floatTop5": run.float_top5,
        "histograms": {path: _histogram(found) for path, found in run.histograms.items()},
        "pictures": None if run.pictures is None else _pictures(run.pictures),
    }


def _histogram(found: Histogram) -> dict[str, Any]:
    return {
        "low": _short(found.low),
        "high": _short(found.high),
        "least": _short(found.minimum),
        "most": _short(found.maximum),
        "size": found.size,
        "counts": found.counts,
    }


def _result(run: int, of: Run, result: Result, style: Mapping[str, Any]) -> dict[str, Any]:
    layers = of.layers.get(result.key, ())
    parts = [getattr(result, f"{part}_nbytes") for part in _PARTS]
    known = of.pictures.predictions.get(result.key) if of.pictures else None
    return {
        "run": run,
        "method": result.method,
        "bits": result.bits,
        "stored": _short(result.bits_per_weight),
        "bytes": result.file_nbytes,
        "noise": _short(result.noise),
        "rho": result.mean_correlation,
        "agreement": result.agreement,
        "kl": result.kl,
        "top1": result.top1,
        "top5": result.top5,
        "peer": result.peer,
        "matched": result.matched,
        "style": style,
        "parts": None if None in parts else dict(zip(_PARTS, parts, strict=True)),
        "layers": [_layer(layer) for layer in layers],
        "answers": None if of.pictures is None or known is None else _answers(of.pictures, known),
    }


def _layer(layer: LayerResult) -> dict[str, Any]:
    parts = (layer.codes_nbytes, layer.levels_nbytes, layer.scales_nbytes)
    return {
        "path": layer.path,
        "shape": layer.shape,
        "size": layer.size,
        "bits": layer.bits,
        "rho": layer.correlation,
        "lost": _short(layer.lost),
        "bytes": layer.nbytes,
        "coding": layer.coding,
        "entropy": _short(layer.entropy),
        "parts": None if None in parts else parts,
        "table": None if layer.table is None else _table(layer.table),
    }


def _table(table: LevelTable) -> dict[str, Any]:
    return {
        "levels": [_short(x) for x in table.levels],
        "boundaries": [_short(x) for x in table.boundaries],
        "own": None if table.histogram is None else _histogram(table.histogram),
    }


def _pictures(pictures: Pictures) -> dict[str, Any]:
    floats = pictures.predictions.get(FLOAT)
    return {
        "views": pictures.views,
        "names": pictures.names,
        "shown": [
            {
                "uri": one.uri,
                "label": pictures.labels[one.index],
                "float": [floats.classes[one.index], floats.confidence[one.index]]
                if floats
                else None,
            }
            for one in pictures.thumbnails
        ],
    }


def _answers(pictures: Pictures, found: Predictions) -> dict[str, Any]:
    """What one network says of the pictures that are shown, and what it confuses in all."""
    floats = pictures.predictions.get(FLOAT)
    views, photos = pictures.views, [one.index // pictures.views for one in pictures.thumbnails]
    same = None if floats is None else by_photo(np.equal(found.classes, floats.classes), views)
    return {
        "shown": [[found.classes[t.index], found.confidence[t.index]] for t in pictures.thumbnails],
        "same": None if same is None else [int(same[photo].sum()) for photo in photos],
        "confused": [] if floats is None else _confused(floats, found),
        "matrix": _matrix(pictures, found),
    }


def _confused(floats: Predictions, found: Predictions) -> list[tuple[int, int, int]]:
    """(float network's class, this one's, pictures) of the answers that change most often."""
    pairs = zip(floats.classes, found.classes, strict=True)
    counts = collections.Counter(pair for pair in pairs if pair[0] != pair[1])
    return [(*pair, count) for pair, count in counts.most_common(_MOST_CONFUSED)]


def _matrix(pictures: Pictures, found: Predictions) -> dict[str, Any] | None:
    """Pictures by their label and the network's answer, where there are few classes."""
    labels = np.array(pictures.labels)
    classes = sorted({*pictures.labels, *found.classes} - {-1})
    if not 1 < len(classes) <= _MATRIX or (labels < 0).all():
        return None
    counts = collections.Counter(zip(pictures.labels, found.classes, strict=True))
    rows = [[counts[label, answer] for answer in classes] for label in classes]
    return {"classes": classes, "counts": rows}


def _add_intervals(
    runs: Sequence[Run],
    results: Sequence[dict[str, Any]],
    kl: Mapping[int, tuple[float, float]],
) -> None:
    """Adds "agreementRange", "top1Range" and "klRange", None where there is no saying."""
    numbered = [(run, result) for run in runs for result in run.results]
    for number, ((run, result), data) in enumerate(zip(numbered, results, strict=True)):
        ranges = {"agreement": _agreement_range(run, result), "top1": _top1_range(run, result)}
        for name, found in {**ranges, "kl": kl.get(number)}.items():
            data[f"{name}Range"] = None if found is None else [_short(x) for x in found]


def _agreement_range(run: Run, result: Result) -> tuple[float, float] | None:
    pictures = run.pictures
    known = pictures.predictions.get(result.key) if pictures else None
    floats = pictures.predictions.get(FLOAT) if pictures else None
    if pictures and known and floats:
        same = np.equal(known.classes, floats.classes)
        return clustered_share_interval(by_photo(same, pictures.views))
    if result.agreement is None or not is_data_set(run):
        return None
    return share_interval(result.agreement * run.photos, run.photos)


def _top1_range(run: Run, result: Result) -> tuple[float, float] | None:
    """Of the labelled photos' centre views, which are independent pictures."""
    if result.top1 is None:
        return None
    labelled = run.photos
    if run.pictures:
        labelled = sum(label >= 0 for label in run.pictures.labels[:: run.pictures.views])
    return share_interval(result.top1 * labelled, labelled) if labelled else None


def _pairs(ranges: Ranges) -> dict[int, dict[int, list[float]]]:
    return {
        i: {j: [_short(x) for x in pair] for j, pair in row.items()} for i, row in ranges.items()
    }


def _short(value: float | None) -> Any:
    """Four digits: more than any figure shows."""
    return None if value is None else float(f"{value:.4g}")
