"""The pictures of an HTML report: which there are, and what is said of each in words."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence

from corrq_jax import plots
from corrq_jax.errors import InputError
from corrq_jax.results import LayerResult, Result, Run

_FEW = 1000  # pictures; fewer are no test set
_WIDTHS = 2  # bit widths whose layers are drawn


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure in the page and on disk.

    Attributes:
        file: the file's name.
        png: its bytes.
        alt: what it shows, for those who cannot see it.
        caption: the text below it.
    """

    file: str
    png: bytes
    alt: str
    caption: str

    @property
    def uri(self) -> str:
        """The picture as an address that holds it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def pictures(run: Run) -> list[Picture]:
    """All of a run's pictures, in the page's order.

    Raises:
        InputError: the run has no results.
    """
    if not run.results:
        raise InputError(f"run of {run.network!r}: no results to report; give at least one Result")
    figures = _comparisons(run, [r for r in run.results if not r.peer])
    figures += [_layers_figure(run, *found) for found in _drawn_layers(run)]
    if any(result.peer for result in run.results):
        figures += _comparisons(run, plots.beside_peers(run.results), "peers-")
    for number, layer in enumerate(run.densities, start=1):
        caption = plots.density_caption(layer)
        png = plots.png_bytes(plots.density_figure(layer))
        alt = f"Histogram of a layer's weights with quantization levels. {caption}"
        figures.append(Picture(f"density-{number:02d}.png", png, alt, caption))
    return figures


def _comparisons(run: Run, results: Sequence[Result], prefix: str = "") -> list[Picture]:
    """What results lose against the bits that they store, as far as it was measured."""
    figures = []
    if any(result.mean_correlation < 1 for result in results):
        figures.append(_correlation_figure(results, f"{prefix}correlation.png"))
    if any(r.agreement is not None or r.kl for r in results):
        figures.append(_fidelity_figure(run, results, f"{prefix}fidelity.png"))
    if is_data_set(run) and has_accuracy(results):
        figures.append(_accuracy_figure(run, results, f"{prefix}accuracy.png"))
    return figures


def _correlation_figure(results: Sequence[Result], file: str) -> Picture:
    caption = (
        "The share of the weights' variance that quantization loses, 1 − ρ² with the mean "  # noqa: RUF001
        "correlation ρ over layers, against stored bits a quantized weight. Lower is better; one "  # noqa: RUF001
        f"more bit divides it by about four. {_counted(results)}"
    )
    values = [(r, f"{r.noise:.2g}") for r in results]
    alt = f"Line chart of 1 − ρ² against stored bits a weight. {_spoken(values)}"  # noqa: RUF001
    png = plots.png_bytes(plots.correlation_figure(results))
    return Picture(file, png, alt, caption)


def _fidelity_figure(run: Run, results: Sequence[Result], file: str) -> Picture:
    caption = (
        f"Agreement of the best class with the float network on {pictures_text(run)} (above) and "
        "the mean KL divergence from its output (below), against stored bits a quantized weight. "
        f"{_counted(results)}"
    )
    values = [(r, percent(r.agreement)) for r in results if r.agreement is not None]
    alt = f"Line charts of agreement and KL against stored bits a weight. {_spoken(values)}"
    png = plots.png_bytes(plots.fidelity_figure(results))
    return Picture(file, png, alt, caption)


def _accuracy_figure(run: Run, results: Sequence[Result], file: str) -> Picture:
    shares = {
        "top-5": ([(r, r.top5) for r in results if r.top5 is not None], run.float_top5),
        "top-1": ([(r, r.top1) for r in results if r.top1 is not None], run.float_top1),
    }
    kinds = [kind for kind, (values, _) in shares.items() if values]
    values, level = shares[kinds[0]]
    caption = (
        f"The share of {pictures_text(run)} that the network gets right, {' and '.join(kinds)}, "
        "against stored bits a quantized weight. "
        f"{'' if level is None else 'Dotted: the float network. '}"
        f"{'So few pictures are no test set. ' if is_few(run) else ''}{_counted(results)}"
    )
    spoken = _spoken([(result, percent(share)) for result, share in values])
    alt = f"Line chart of accuracy, {' and '.join(kinds)}, against stored bits a weight. "
    if level is not None:
        alt += f"{kinds[0].capitalize()} of the float network: {percent(level)}. "
    alt += spoken
    png = plots.png_bytes(plots.accuracy_figure(results, run.float_top1, run.float_top5))
    return Picture(file, png, alt, caption)


def _drawn_layers(run: Run) -> list[tuple[int, list[Result]]]:
    """The bit widths that most methods with one table of levels a tensor have, 3 and 4 first."""
    widths: dict[int, dict[str, Result]] = {}
    for result in run.results:
        if _is_plain(result) and _has_noise(run.layers.get(result.key, ())):
            widths.setdefault(int(result.bits), {})[result.method] = result
    chosen = sorted(widths, key=lambda bits: (-len(widths[bits]), abs(bits - 3.5), bits))[:_WIDTHS]
    return [(bits, list(widths[bits].values())) for bits in sorted(chosen)]


def _is_plain(result: Result) -> bool:
    """Whether a tensor has one table of levels, of as many bits as all others."""
    is_special = result.mixed or result.matched or result.peer
    return not is_special and result.coding == "packed" and result.granularity == "tensor"


def _has_noise(layers: Sequence[LayerResult]) -> bool:
    return any(layer.correlation is not None and layer.correlation < 1 for layer in layers)


def _layers_figure(run: Run, bits: int, results: Sequence[Result]) -> Picture:
    layers: Mapping[str, Sequence[LayerResult]] = {r.method: run.layers[r.key] for r in results}
    values = [
        (r, f"{correlation(r.mean_correlation)} (lowest {correlation(r.min_correlation)})")
        for r in results
    ]
    alt = f"Line chart of ρ of each layer by its number; its mean follows. {_spoken(values)}"  # noqa: RUF001
    png = plots.png_bytes(plots.layers_figure(layers, bits))
    return Picture(f"layers-{bits}.png", png, alt, plots.layers_caption(layers, bits))


def _counted(results: Sequence[Result]) -> str:
    """What stored bits are."""
    text = "Levels, scales and header are counted."
    if any(result.peer for result in results):
        text += (
            " Grey: other libraries' quantizers, counted without a header; beside a point of each, "
            "where there is room, what shares a scale."
        )
    return text


def _spoken(values: Sequence[tuple[Result, str]]) -> str:
    """The chart's values at the width that most methods have, for those who cannot see it."""
    if not values:
        return ""
    all_bits = [result.bits for result, _ in values]
    bits = max(sorted(set(all_bits)), key=all_bits.count)
    parts = [f"{result.method} {text}" for result, text in values if result.bits == bits]
    return f"At {bits:g} bits: {', '.join(parts)}."


def is_data_set(run: Run) -> bool:
    """Whether the pictures are a data set, of which each is seen once, and not views of photos."""
    return run.views == run.photos > 0


def has_accuracy(results: Sequence[Result]) -> bool:
    """Whether top-1 or top-5 was measured."""
    return any(r.top1 is not None or r.top5 is not None for r in results)


def is_few(run: Run) -> bool:
    """Whether the pictures are too few for a test set."""
    return run.photos < _FEW


def pictures_text(run: Run) -> str:
    """What outputs were compared on: "50,000 pictures" or "240 views of 24 photos"."""
    if not is_data_set(run):
        return f"{run.views:,} views of {run.photos:,} photos"
    return "1 picture" if run.photos == 1 else f"{run.photos:,} pictures"


def percent(share: float | None) -> str:
    """A share as in "97.3%", or a dash."""
    return "–" if share is None else f"{100 * share:.1f}%"  # noqa: RUF001


def correlation(rho: float | None) -> str:
    """A correlation to five places, or a dash."""
    return "–" if rho is None else f"{rho:.5f}"  # noqa: RUF001
