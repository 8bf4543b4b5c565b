"""Commands that measure: demo, sweep, evaluate."""

import dataclasses
import json
import math
import pathlib
import re
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corrq_jax.cli.files import AsJson, Input, known_network, read_tree
from corrq_jax.cli.show import errors, output, progress, results_table, table
from corrq_jax.data import BATCH, read_fashion_mnist
from corrq_jax.errors import InputError

if TYPE_CHECKING:
    from corrq_jax.evaluation import Metrics, Progress
    from corrq_jax.fidelity import Subject
    from corrq_jax.paper import Comparison
    from corrq_jax.results import Run
    from corrq_jax.sweep import Cell, Method

_MODEL = "efficientnet_lite0"
# The network that is measured on a whole test set, which takes longer: fewer cells by default.
_SECOND = "fashion_resnet"
_SECOND_METHODS = ("linear", "optimal", "optimal + moments", "mixed bits, entropy-coded")

_BITS = "Bit widths: 8-2, or 4,3; also 2.5 for mixed bits."
Bits = Annotated[str, typer.Option(help=_BITS)]
Methods = Annotated[
    list[str] | None, typer.Option("--method", help="A method (repeatable); all by default.")
]
Report = Annotated[pathlib.Path, typer.Option("-o", "--output", help="The folder to write.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Pictures: a folder with a folder for each class, a data set of TFDS, fashion_mnist, "
        "or photos: the 24 that are installed. By default what the network is for."
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="A file with the network's float weights; trained ones if not.")
]
Labels = Annotated[
    pathlib.Path | None, typer.Option(help="Labels of pictures that are not in class folders.")
]
Split = Annotated[str | None, typer.Option(help="The split of fashion_mnist or a TFDS set.")]
DataDir = Annotated[pathlib.Path | None, typer.Option(help="Where the data set's files are.")]
Download = Annotated[
    bool, typer.Option("--download", help="Let TFDS prepare a data set that is not there.")
]
Limit = Annotated[int | None, typer.Option(help="Use so many pictures, spread evenly.")]
BatchSize = Annotated[int, typer.Option(help="Pictures at a time.")]
Dtype = Annotated[str, typer.Option(help="What to compute in: float32, bfloat16 or float16.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog="Example:\n\n  corrq demo")(demo)
    app.command(
        epilog="Examples:\n\n  corrq sweep net.weights.h5 --bits 5-2\n\n"
        "  corrq sweep efficientnet_lite0 --bits 4 --method optimal --method nf4\n\n"
        "  corrq sweep efficientnet_lite0 --bits 2.5,3 --method 'mixed bits' --peers"
    )(sweep)
    app.command(
        epilog="Examples:\n\n  corrq evaluate lite0.safetensors\n\n"
        "  corrq evaluate q.safetensors --model resnet50 --weights resnet50.h5 --data val\n\n"
        "  corrq evaluate lite0.safetensors --data pictures/"
    )(evaluate)


def demo(
    out: Report = pathlib.Path("report"),
    bits: Annotated[
        str | None, typer.Option(help=f"{_BITS} By default a choice that takes minutes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Quantize two real networks by every method: fidelity on photos, accuracy on Fashion-MNIST.

    EfficientNet-Lite0, 24 photos and a residual network for Fashion-MNIST come inside installed
    packages; nothing is downloaded. The 10,000 test pictures of Fashion-MNIST have to be on the
    machine; if they are not, the second network is left out. Writes a page with figures, and the
    results as JSON and CSV, and the same for the second network in the folder fashion_resnet. With
    --json the first network is all.
    """
    started = time.perf_counter()
    from corrq_jax import sweep as sweeping

    cells = sweeping.short_cells() if bits is None else cells_of(bits, sweeping.METHODS)
    check_folder(out)
    from corrq_jax.fidelity import subject

    errors.print(f"loading {_MODEL} and its photos", highlight=False)
    chosen = subject(_MODEL)
    run = compared(_MODEL, chosen.params, cells, chosen)
    write(run, out)
    if as_json:
        print(run.to_json())
        return
    output.print(results_table(run))
    output.print(
        f"{run.photos} photos in {run.views} views: this is fidelity to the float network, not "
        "accuracy."
    )
    if bits is None:
        cells = sweeping.cells(sweeping.methods(_SECOND_METHODS), (4, 3, 2))
    _second_network(cells, out / _SECOND)
    output.print(f"{time.perf_counter() - started:.0f} s in all.")


def _second_network(cells: "list[Cell]", out: pathlib.Path) -> None:
    """The demo's network with a whole test set, if that is on this machine."""
    try:
        read_fashion_mnist("test")
    except InputError as error:
        errors.print(f"{_SECOND} is left out. {error}", markup=False, highlight=False)
        return
    from corrq_jax.evaluation import share_interval
    from corrq_jax.fidelity import subject

    chosen = subject(_SECOND, batch_size=500)  # more at a time than of photos, which are larger
    run = compared(_SECOND, chosen.params, cells, chosen)
    output.print(results_table(run))
    write(run, out)
    low, high = share_interval(round((run.float_top1 or 0) * run.photos), run.photos)
    output.print(
        f"{run.photos:,} test pictures of Fashion-MNIST: this is accuracy, of the float network "
        f"{100 * low:.1f} to {100 * high:.1f} % with a confidence of 95 %."
    )


def sweep(
    source: Input,
    bits: Bits = "8-2",
    method: Methods = None,
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Also the quantizers of other libraries, at 4, 3 and 2 bits."),
    ] = False,
    out: Annotated[
        pathlib.Path | None, typer.Option("-o", "--output", help="Also write a report here.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The known network whose weights the file holds.")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods and bit widths on a file of weights, or on a known network and pictures.

    Matching moments needs a known network: for a file mixed bits are compared without it.
    """
    from corrq_jax import sweep as sweeping

    chosen = sweeping.methods(method) if method else sweeping.METHODS
    network = known_network(source, model)
    cells = cells_of(bits, chosen if network else _for_files(chosen))
    cells += sweeping.peer_cells() if peers else []
    if out is not None:
        check_folder(out)
    if network:
        from corrq_jax.fidelity import subject

        name, weights = network
        found = subject(name, data, weights)
        run = compared(name, found.params, cells, found)
    elif data is not None:
        raise InputError(f"--data needs a known network for {source}: --model, one of {_names()}")
    else:
        run = compared(source.name, read_tree(source), cells)
    if out is not None:
        write(run, out)
    if as_json:
        print(run.to_json())
    else:
        output.print(results_table(run))


def evaluate(
    file: Annotated[
        pathlib.Path | None,
        typer.Argument(metavar="[FILE]", help="A quantized file; the float network if left out."),
    ] = None,
    model: Annotated[str, typer.Option(help="The network that the file holds.")] = _MODEL,
    weights: Weights = None,
    data: Data = None,
    labels: Labels = None,
    split: Split = None,
    data_dir: DataDir = None,
    download: Download = False,
    limit: Limit = None,
    batch_size: BatchSize = BATCH,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Measure a quantized network beside the float one: top-1, top-5, agreement, KL."""
    from corrq_jax.fidelity import subject

    if file is not None and not file.exists():
        raise InputError(f"{file}: there is no such file")
    chosen = subject(
        model,
        data,
        weights,
        labels=labels,
        split=split,
        data_dir=data_dir,
        download=download,
        limit=limit,
        batch_size=batch_size,
        dtype=dtype,
    )
    params = chosen.params if file is None else _params_of(file, chosen)
    with progress(model, 1 if file is None else 2) as advance:
        watch = _watch(advance)
        centre, all_views = chosen.measure(chosen.params, watch)
        advance()
        if file is not None:
            centre, all_views = chosen.measure(params, watch)
            advance()
    _warn_of_corrupt(chosen)
    if as_json:
        found = {"photos": _figures(centre), "views": _figures(all_views)}
        print(json.dumps(found, allow_nan=False))
        return
    photos, views = f"{centre.count:,} photos, centre view", f"{all_views.count:,} views"
    if chosen.views == 1:
        photos = views = f"{centre.count:,} pictures"
    rows = [
        ("top-1", _share(centre.top1), photos),
        ("top-5", _share(centre.top5), photos),
        ("agreement", _share(all_views.agreement), f"{views}, with float"),
        ("KL from float", f"{all_views.kl:.4f}", f"{views}, nats"),
        ("logit correlation", f"{all_views.correlation:.5f}", views),
    ]
    output.print(table(f"{file or 'float'} as {model}", ("figure", "value", "on"), rows))


def _figures(metrics: "Metrics") -> dict[str, Any]:
    """By name; None where one is undefined, since JSON has no NaN."""
    found = dataclasses.asdict(metrics)
    return {k: None if v is None or not math.isfinite(v) else v for k, v in found.items()}


def _params_of(file: pathlib.Path, chosen: "Subject") -> Any:
    """The parameters in a file, by the network's own paths or by those of its original weights."""
    import numpy as np

    import corrq_jax as corrq
    from corrq_jax import models
    from corrq_jax.flax import functional
    from corrq_jax.paths import flatten

    tree = corrq.load(file)
    paths = {path for path, _ in flatten(tree)[0]}
    if paths == {path for path, _ in flatten(chosen.params)[0]}:
        return tree
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(corrq.dequantize(tree))[0]}
    try:
        return functional(models.load(chosen.name, arrays))[1]
    except InputError as error:
        raise InputError(f"{file} does not hold {chosen.name}: {error}") from error


def _for_files(chosen: "Iterable[Method]") -> "tuple[Method, ...]":
    """The methods that need no network."""
    from corrq_jax import sweep as sweeping

    found = sweeping.without_wiring(chosen)
    if not found:
        names = ", ".join(method.name for method in chosen)
        raise InputError(f"{names}: needs a known network: {_names()}")
    return found


def cells_of(bits: str, methods: "Iterable[Method]") -> "list[Cell]":
    """Methods and widths as they were asked for, checked before anything is loaded."""
    from corrq_jax import sweep as sweeping

    cells = sweeping.cells(methods, _widths(bits))
    if not cells:
        raise InputError(f"--bits {bits}: none of the chosen methods has these bit widths")
    return cells


def check_folder(out: pathlib.Path) -> None:
    """Before the work: that a report can be written here after it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the report")
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; make it first")


def compared(
    network: str,
    params: Any,
    cells: "list[Cell]",
    subject: "Subject | None" = None,
    keep: pathlib.Path | None = None,
) -> "Run":
    """Measures cells with a progress bar."""
    from corrq_jax.experiment import compare

    with progress(network, len(cells)) as advance:

        def cell_done(text: str) -> None:
            advance(text)
            if keep is not None and not errors.is_terminal:  # a log of a long run
                errors.print(text, markup=False, highlight=False)

        found = compare(
            network,
            params,
            cells,
            subject=subject,
            keep=keep,
            advance=cell_done,
            watch=_watch(advance),
        )
    if subject is not None:
        _warn_of_corrupt(subject)
    return found


def _watch(advance: Any) -> "Progress":
    """Shows pictures and pictures a second beside a bar."""

    def watch(pictures: int, rate: float | None) -> None:
        speed = "" if rate is None else f", {rate:,.0f} a second"
        advance(f"{pictures:,} pictures{speed}", step=0)

    return watch


def _warn_of_corrupt(subject: "Subject") -> None:
    for name, reason in subject.corrupt.items():
        warnings.warn(f"left out {name}: {reason}", stacklevel=3)


def _widths(text: str) -> list[float]:
    """Bit widths from "8-2", "4" or "5,2.5"; between two ends those that any method has."""
    from corrq_jax.sweep import METHODS

    every = {bits for method in METHODS for bits in method.bits}
    widths: set[float] = set()
    for part in text.split(","):
        ends = part.strip().split("-")
        if not all(re.fullmatch(r"\d+(\.\d+)?", end) for end in ends) or len(ends) > 2:
            raise InputError(f"--bits {text!r}: give widths from 1 to 8, such as 8-2 or 4,3")
        lo, hi = sorted((float(ends[0]), float(ends[-1])))
        if lo < 1 or hi > 8:
            raise InputError(f"--bits {text!r}: {lo if lo < 1 else hi:g} is not from 1 to 8")
        widths |= {lo, hi} | {bits for bits in every if lo <= bits <= hi}
    return sorted(int(bits) if bits == int(bits) else bits for bits in widths)


def write(run: "Run", out: pathlib.Path, published: "Sequence[Comparison]" = ()) -> None:
    """Write a report, over an earlier one."""
    from corrq_jax.html_report import write_report

    *_, page = write_report(run, out, overwrite=True, published=published)
    errors.print(f"wrote {page}", markup=False, highlight=False)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _names() -> str:
    from corrq_jax import models

    return ", ".join(models.names())
