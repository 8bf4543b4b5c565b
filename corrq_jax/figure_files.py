"""The figures of a run as PNG files, for papers and slides: which there are."""

from collections.abc import Iterator, Sequence

from corrq_jax import plots
from corrq_jax.html_text import has_accuracy, is_data_set
from corrq_jax.results import LayerResult, Result, Run

_WIDTHS = 2  # bit widths whose layers are drawn


def figure_files(run: Run) -> dict[str, bytes]:
    """All of a run's figures, the bytes of PNG files by their names."""
    return {name: plots.png_bytes(figure) for name, figure in _figures(run)}


def _figures(run: Run) -> Iterator[tuple[str, plots.Figure]]:
    yield from _comparisons(run, [r for r in run.results if not r.peer])
    for bits, results in drawn_layers(run):
        layers = {r.method: run.layers[r.key] for r in results}
        yield f"layers-{bits}.png", plots.layers_figure(layers, bits)
    if any(result.peer for result in run.results):
        yield from _comparisons(run, plots.beside_peers(run.results), "peers-")
    for number, layer in enumerate(run.densities, start=1):
        yield f"density-{number:02d}.png", plots.density_figure(layer)


def _comparisons(
    run: Run, results: Sequence[Result], prefix: str = ""
) -> Iterator[tuple[str, plots.Figure]]:
    """What results lose against the bits that they store, as far as it was measured."""
    if any(result.mean_correlation < 1 for result in results):
        yield f"{prefix}correlation.png", plots.correlation_figure(results)
    if any(r.agreement is not None or r.kl for r in results):
        yield f"{prefix}fidelity.png", plots.fidelity_figure(results)
    if is_data_set(run) and has_accuracy(results):
        figure = plots.accuracy_figure(results, run.float_top1, run.float_top5)
        yield f"{prefix}accuracy.png", figure


def drawn_layers(run: Run) -> list[tuple[int, list[Result]]]:
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
