"""What a comparison of quantization methods measured: the records, as JSON and as CSV.

These are plain records on numpy and the standard library, so that whatever measures, plots or
prints them needs nothing else. A figure that was not measured, or is undefined, is None; NaN and
infinity are refused, for JSON has neither and a table of them misleads.
"""

import csv
import dataclasses
import io
import json
import operator
import re
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from corrq_jax.details import Histogram, LevelTable, Pictures, read_pictures, read_table
from corrq_jax.errors import InputError
from corrq_jax.fields import (
    check_flag,
    read_record,
    read_records,
    set_array,
    set_float,
    set_int,
)

_FORMAT = "corrq_jax.run"
_VERSION = 3
# What version 2 did not have yet, by record.
_NEW_OF_RESULTS = (
    *("codes_nbytes", "levels_nbytes", "scales_nbytes", "rest_nbytes", "header_nbytes"),
    *("lost", "gained"),
)
_NEW_OF_LAYERS = ("noise", "codes_nbytes", "levels_nbytes", "scales_nbytes", "entropy", "table")
# A list of numbers, each in a line of its own; a text in JSON has no line breaks.
_NUMBERS = re.compile(r"\[\n *-?[0-9][-+.0-9e]*(?:,\n *-?[0-9][-+.0-9e]*)*\n *\]")


@dataclasses.dataclass(frozen=True)
class Result:
    """One method at one bit width, over a whole network.

    Attributes:
        method: the name that tables and figures show, such as 'linear + correlation'.
        grid: the level grid, such as 'linear', 'exponential' or 'optimal'; '' for a peer.
        fit: how the grid was fitted, such as 'range' or 'correlation'; '' for a peer.
        levels: the stored values, 'mean' or 'grid'; '' for a peer.
        bits: the nominal bits of a quantized weight, sign included; with mixed bits the target of
            stored bits, which need not be whole.
        bits_per_weight: stored bits a quantized weight: codes, levels, scales and their part of
            the header; a peer has no header.
        file_nbytes: the size in bytes of the file on disk; of a peer the bytes that it counts and
            those of all other leaves, without a header.
        mean_correlation: the mean over layers of rho, the correlation of the original and the
            quantized weights.
        min_correlation: the smallest rho of a layer.
        top1: the share of views whose best class is the label, 0 to 1.
        top5: the share of views whose label is among the five best classes, 0 to 1.
        agreement: the share of views on which the float network gives the same best class.
        kl: the mean Kullback-Leibler divergence from the float network's output, in nats.
        logit_correlation: the correlation of the logits with the float network's.
        coding: how codes are stored, as in `corrq_jax.Config`.
        granularity: what has scales of its own, 'tensor', 'channel' or a number of weights; '' for
            a peer.
        mixed: whether tensors have bits of their own.
        matched: whether moments were matched after quantization.
        peer: whether this is another library's quantizer (`corrq_jax.peers`).
        codes_nbytes: of the file, bytes of codes, or of their streams and frequencies; like the
            four below it is None where it is not known: for a peer, and in files of version 2.
        levels_nbytes: bytes of tables of levels.
        scales_nbytes: bytes of scales.
        rest_nbytes: bytes of all tensors that are not quantized.
        header_nbytes: bytes of the header.
        lost: views whose label only the float network finds; None where labels are not known, and
            in files of version 2. `corrq_jax.evaluation.change_interval` takes it and the next.
        gained: views whose label only the quantized network finds.
    """

    method: str
    grid: str
    fit: str
    levels: str
    bits: float
    bits_per_weight: float
    file_nbytes: int
    mean_correlation: float
    min_correlation: float
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    kl: float | None = None
    logit_correlation: float | None = None
    coding: str = "packed"
    granularity: str = "tensor"
    mixed: bool = False
    matched: bool = False
    peer: bool = False
    codes_nbytes: int | None = None
    levels_nbytes: int | None = None
    scales_nbytes: int | None = None
    rest_nbytes: int | None = None
    header_nbytes: int | None = None
    lost: int | None = None
    gained: int | None = None

    def __post_init__(self) -> None:
        for name in ("mixed", "matched", "peer"):
            check_flag(self, name)
        (set_float if self.mixed else set_int)(self, "bits")
        set_int(self, "file_nbytes")
        for name in ("bits_per_weight", "mean_correlation", "min_correlation"):
            set_float(self, name)
        for name in ("top1", "top5", "agreement", "kl", "logit_correlation"):
            set_float(self, name, optional=True)
        for name in _NEW_OF_RESULTS:
            set_int(self, name, optional=True)

    @property
    def key(self) -> str:
        """'method @ bits', the key of `Run.layers`."""
        return f"{self.method} @ {self.bits:g}"

    @property
    def noise(self) -> float:
        """``1 - rho**2`` of the mean correlation: the share of variance that is lost."""
        return 1 - self.mean_correlation**2


@dataclasses.dataclass(frozen=True)
class LayerResult:
    """One quantized tensor.

    Attributes:
        path: its path in the parameter tree.
        shape: its shape.
        size: its number of weights.
        bits: bits of a code.
        correlation: rho, or None for a constant tensor, where it is undefined.
        nbytes: its stored size in bytes, levels included.
        coding: likewise.
        noise: ``1 - rho**2``, the share of the variance that is lost: it keeps the digits that
            rho loses close to 1. None with rho, and in files of version 2.
        codes_nbytes: of `nbytes`, those of codes; the rest of the four is header. None like the
            next two for a peer, and in files of version 2.
        levels_nbytes: bytes of its levels.
        scales_nbytes: bytes of its scales.
        entropy: of the codes, in bits; None where it is not known.
        table: the cells; None where they are not known, or too many to be drawn.
    """

    path: str
    shape: tuple[int, ...]
    size: int
    bits: int
    correlation: float | None
    nbytes: int
    coding: str = "packed"
    noise: float | None = None
    codes_nbytes: int | None = None
    levels_nbytes: int | None = None
    scales_nbytes: int | None = None
    entropy: float | None = None
    table: LevelTable | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(operator.index(n) for n in self.shape))
        for name in ("size", "bits", "nbytes"):
            set_int(self, name)
        for name in ("correlation", "noise", "entropy"):
            set_float(self, name, optional=True)
        for name in ("codes_nbytes", "levels_nbytes", "scales_nbytes"):
            set_int(self, name, optional=True)

    @property
    def lost(self) -> float | None:
        """``1 - rho**2``, with as many digits as there are; None where rho is undefined."""
        if self.noise is not None or self.correlation is None:
            return self.noise
        return (1 - self.correlation) * (1 + self.correlation)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits a weight."""
        return 8 * self.nbytes / self.size


@dataclasses.dataclass(frozen=True, eq=False)
class LayerDensity:
    """A tensor's weight density and the quantizer that was fitted to it.

    Attributes:
        path: the tensor's path in the parameter tree.
        points: (bins,) float64, the support of the density in increasing order.
        counts: (bins,) int64, the weights at each point.
        boundaries: (levels - 1,) float64, the inner cell boundaries.
        levels: (levels,) float64, the quantized values in increasing order.
        bits: bits a weight.
        method: the name of the method, as in `Result.method`.
        correlation: rho of the original and the quantized weights.
    """

    path: str
    points: np.ndarray
    counts: np.ndarray
    boundaries: np.ndarray
    levels: np.ndarray
    bits: int
    method: str
    correlation: float

    def __post_init__(self) -> None:
        for name in ("points", "boundaries", "levels"):
            set_array(self, name, np.float64)
        set_array(self, "counts", np.int64)
        set_int(self, "bits")
        set_float(self, "correlation")
        self._check_density()

    def _check_density(self) -> None:
        if self.points.shape != self.counts.shape:
            raise InputError(
                f"LayerDensity of {self.path!r}: {self.points.size} points and {self.counts.size} "
                "counts; give one count a point"
            )
        if (np.diff(self.points) < 0).any():
            raise InputError(f"LayerDensity of {self.path!r}: points decrease; sort them")
        if (self.counts < 0).any() or not self.counts.any():
            raise InputError(
                f"LayerDensity of {self.path!r}: counts are negative or all zero; "
                "give the number of weights at each point"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerDensity):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, field.name), getattr(other, field.name))
            for field in dataclasses.fields(self)
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """A network quantized in several ways, and what was measured.

    Attributes:
        network: the network's name.
        weights: its number of weights.
        float_nbytes: the size in bytes of the float network's file on disk.
        photos: photos that the outputs were compared on.
        views: views (crops and flips) of these photos.
        float_top1: the float network's `Result.top1`, or None.
        float_top5: the float network's `Result.top5`, or None.
        results: one record a method and bit width.
        layers: the quantized tensors of some results, by `Result.key`: 'method @ bits'.
        densities: the densities to draw.
        environment: versions and hardware, by name ('jax', 'corrq_jax', 'hardware', ...).
        histograms: of the float weights, by the tensor's path.
        pictures: what the networks say of each picture; None where it was not recorded.
    """

    network: str
    weights: int
    float_nbytes: int
    photos: int
    views: int
    float_top1: float | None
    float_top5: float | None
    results: tuple[Result, ...]
    layers: Mapping[str, tuple[LayerResult, ...]]
    densities: tuple[LayerDensity, ...]
    environment: Mapping[str, str]
    histograms: Mapping[str, Histogram] = dataclasses.field(default_factory=dict)
    pictures: Pictures | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "float_nbytes", "photos", "views"):
            set_int(self, name)
        for name in ("float_top1", "float_top5"):
            set_float(self, name, optional=True)
        for name in ("results", "densities"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        layers = {key: tuple(layers) for key, layers in self.layers.items()}
        object.__setattr__(self, "layers", layers)
        environment = {str(key): str(value) for key, value in self.environment.items()}
        object.__setattr__(self, "environment", environment)
        object.__setattr__(self, "histograms", dict(self.histograms))

    def to_json(self) -> str:
        """The run as a JSON text; `from_json` gives back an equal run, to the last bit."""
        body = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)}
        text = json.dumps(body, default=_plain, allow_nan=False, ensure_ascii=False, indent=1)
        return _NUMBERS.sub(lambda found: " ".join(found[0].split()), text)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote, of this version or of version 2, which had less in it.

        Raises:
            InputError: the text is not JSON, not a run, of another version, or has missing or
                unknown fields.
        """
        body = _run_body(text)
        objects = [body.get(name) for name in ("layers", "environment", "histograms")]
        if not all(isinstance(value, dict) for value in objects):
            raise InputError(
                "a run's JSON has the objects 'layers', 'environment' and 'histograms'; one is not"
            )
        body["results"] = read_records(Result, body.get("results"), "results")
        body["densities"] = read_records(LayerDensity, body.get("densities"), "densities")
        body["layers"] = {
            key: read_records(LayerResult, _with_tables(value, where), where)
            for key, value in body["layers"].items()
            for where in [f"layers[{key!r}]"]
        }
        body["histograms"] = {
            path: read_record(Histogram, value, f"histograms[{path!r}]")
            for path, value in body["histograms"].items()
        }
        body["pictures"] = read_pictures(body.get("pictures"), "pictures")
        return read_record(cls, body, "run")

    def to_csv(self) -> str:
        """`results` as CSV (RFC 4180, one header line); what was not measured is left empty."""
        out = io.StringIO()
        writer = csv.DictWriter(out, [field.name for field in dataclasses.fields(Result)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(result) for result in self.results)
        return out.getvalue()


def _plain(value: object) -> object:
    """What json cannot write itself: arrays, as lists (Python writes floats exactly)."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _run_body(text: str) -> dict[str, Any]:
    """The fields of the run, behind the check of format and version."""
    try:
        body = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"not JSON ({error}); give the text that Run.to_json wrote") from None
    if not isinstance(body, dict) or body.pop("format", None) != _FORMAT:
        raise InputError(f"not a run: no 'format': {_FORMAT!r}; give what Run.to_json wrote")
    version = body.pop("version", None)
    if version == 2:
        return _of_version_2(body)
    if version != _VERSION:
        raise InputError(
            f"a run of version {version!r}; this corrq_jax reads versions 2 and {_VERSION}: "
            "use the release that wrote it"
        )
    return body


def _of_version_2(body: dict[str, Any]) -> dict[str, Any]:
    """The run with None for what was not recorded then; what is no record stays, to be refused."""

    def filled(records: Any, names: tuple[str, ...]) -> Any:
        if not isinstance(records, list):
            return records
        new = dict.fromkeys(names)
        return [{**new, **record} if isinstance(record, dict) else record for record in records]

    layers = body.get("layers")
    if isinstance(layers, dict):
        body["layers"] = {key: filled(value, _NEW_OF_LAYERS) for key, value in layers.items()}
    body["results"] = filled(body.get("results"), _NEW_OF_RESULTS)
    return {"histograms": {}, "pictures": None, **body}


def _with_tables(layers: Any, where: str) -> Any:
    """Layers with their level tables read; what is no record stays, to be refused."""
    if not isinstance(layers, list):
        return layers
    return [
        {**layer, "table": read_table(layer["table"], f"{where}[{i}].table")}
        if isinstance(layer, dict) and "table" in layer
        else layer
        for i, layer in enumerate(layers)
    ]
