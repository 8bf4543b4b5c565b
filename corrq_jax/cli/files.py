"""Commands on files of weights: quantize, inspect, dequantize."""

import dataclasses
import json
import math
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corrq_jax.cli.show import byte_progress, megabytes, output, progress, table
from corrq_jax.errors import InputError

if TYPE_CHECKING:
    from corrq_jax.archive import Archive
    from corrq_jax.config import Config
    from corrq_jax.report import Report

Input = Annotated[
    pathlib.Path,
    typer.Argument(
        metavar="IN",
        help="A file (.npz, .safetensors, .h5, .weights.h5, .pth), a folder of Hugging Face with "
        "safetensors, or a network's name",
    ),
]
File = Annotated[
    pathlib.Path, typer.Argument(metavar="FILE", help="A file, or folder, that corrq wrote")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_GRIDS = "linear, exponential, optimal or nf4"


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(
        epilog="Examples:\n\n"
        "  corrq quantize net.weights.h5 -o net.safetensors --bits 4\n\n"
        "  corrq quantize net.pth -o net.safetensors --bits 3 --bits 'fc*=8' --grid exponential\n\n"
        "  corrq quantize efficientnet_lite0 -o lite0.safetensors --bits 5\n\n"
        "  corrq quantize resnet50.h5 --model resnet50 -o resnet50.safetensors "
        "--bits-per-weight 3\n\n"
        "  corrq quantize net.npz -o net.safetensors --bits-per-weight 3 --coding entropy\n\n"
        "  corrq quantize net.npz -o net.safetensors --max-bytes 4MB --bits 2,4,8\n\n"
        "  corrq quantize net.npz -o net.safetensors --mean-correlation 0.995 --granularity auto"
    )(quantize)
    app.command(epilog="Example:\n\n  corrq inspect net.safetensors")(inspect)
    app.command(epilog="Example:\n\n  corrq dequantize net.safetensors -o net.npz")(dequantize)


def quantize(
    source: Input,
    out: Annotated[pathlib.Path, typer.Option("-o", "--output", help="The file to write.")],
    bits: Annotated[
        list[str] | None,
        typer.Option(
            *("--bits", "-b"),
            help="1 to 8, or PATTERN=BITS for some paths (repeatable); 4 by default. With a target "
            "the widths to choose from, such as 2,4,8; all by default.",
        ),
    ] = None,
    bits_per_weight: Annotated[
        float | None,
        typer.Option(help="Target: at most so many stored bits a weight, everything counted."),
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="Target: at most this size of the file, such as 4MB.")
    ] = None,
    mean_correlation: Annotated[
        float | None, typer.Option(help="Target: the smallest file of this mean rho.")
    ] = None,
    min_correlation: Annotated[
        float | None, typer.Option(help="Target: the smallest file in which every rho is this.")
    ] = None,
    coding: Annotated[
        str,
        typer.Option(
            help="packed; trellis: as many bits, less noise, up to 7; entropy: about as many bits "
            "as the levels' entropy; or entropy-trellis: both."
        ),
    ] = "packed",
    granularity: Annotated[
        str,
        typer.Option(
            help="Scales for what: tensor (none), channel, a number of weights, or auto (with a "
            "target or entropy coding)."
        ),
    ] = "tensor",
    grid: Annotated[str, typer.Option(help=f"Levels: {_GRIDS}.")] = "optimal",
    fit: Annotated[
        str | None, typer.Option(help="correlation, or range for the plain baselines.")
    ] = None,
    levels: Annotated[
        str | None, typer.Option(help="mean (cell means) or grid (values on the grid).")
    ] = None,
    zero: Annotated[bool, typer.Option("--zero", help="A zero level (exponential).")] = False,
    select: Annotated[
        list[str] | None,
        typer.Option(help="Quantize only paths that match this pattern (repeatable)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The known network whose weights the file holds.")
    ] = None,
    match: Annotated[
        bool,
        typer.Option(
            help="Correct the normalizations of a known network for what quantization shifts."
        ),
    ] = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a file of weights and write one safetensors file.

    Of a known network, by its name or by --model, the wiring is known, too: bits are shared out by
    what each kernel counts for, and the normalizations are corrected. The file then has the
    network's own names, which corrq evaluate takes.
    """
    import corrq_jax as corrq
    from corrq_jax import model_folders
    from corrq_jax.readers.model_folder import weight_files

    config = corrq.Config(
        bits=_bits(bits or []),
        grid=grid,
        fit=fit,
        levels=levels,
        zero=zero,
        select=tuple(select) if select else None,
        coding=coding,
        granularity=int(granularity) if granularity.isdecimal() else granularity,
        bits_per_weight=bits_per_weight,
        max_bytes=max_bytes,
        mean_correlation=mean_correlation,
        min_correlation=min_correlation,
    )
    # What is quantized already is told below, whatever weights its index still names.
    is_folder = (source / model_folders.QUANTIZED).exists() or bool(weight_files(source))
    if out.suffix.lower() != ".safetensors" and not is_folder:
        raise InputError(f"{out}: quantized files are safetensors; name it with .safetensors")
    if out.is_file() and not force:
        raise InputError(f"{out} exists; choose another name or add --force")
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; make it first")
    network = known_network(source, model)
    if network is None:
        with byte_progress("quantizing") as advance:
            report = corrq.quantize_file(source, out, config, overwrite=force, progress=advance)
    else:
        qparams, report = _quantized_network(*network, config, match)
        size = corrq.save(out, qparams, report=report, overwrite=force)
        report = dataclasses.replace(report, file_nbytes=size)
    if as_json:
        print(json.dumps({"file": str(out), "nbytes": report.file_nbytes, **_as_record(report)}))
        return
    print(report)
    if out.is_dir() and (left := model_folders.left_out(source)):
        print(f"weights in other formats, left out: {', '.join(left)}")
    print(f"{out}: {report.file_nbytes:,} bytes, the correlation of each tensor recorded in it")


def known_network(source: pathlib.Path, model: str | None = None) -> tuple[str, str | None] | None:
    """Its name, and the file of its weights or None; None for a file of any weights.

    Raises:
        InputError: there is no network `model`, or the file is quantized already.
    """
    from corrq_jax import models
    from corrq_jax.readers import open_weights
    from corrq_jax.streaming import refuse_quantized

    if model is not None:
        models.info(model)
        if source.suffix.lower() == ".safetensors":  # as all that is quantized
            with open_weights(source) as arrays:
                refuse_quantized(arrays, source)
        return model, str(source)
    if not source.exists() and str(source) in models.names():
        return str(source), None
    return None


def _quantized_network(
    name: str, weights: str | None, config: "Config", match: bool
) -> "tuple[Any, Report]":
    import corrq_jax.flax
    from corrq_jax import models
    from corrq_jax.fidelity import expected_inputs

    network = models.load(name, weights)
    example, mean, variance = expected_inputs(name)
    with progress("quantizing", _kernels(corrq_jax.flax.functional(network)[1])) as advance:
        quantized, report = corrq_jax.flax.quantize(
            network,
            example=example,
            input_mean=mean,
            input_variance=variance,
            match_moments=None if match else False,
            config=config,
            progress=advance,
        )
    return quantized.params, report


def _kernels(tree: Any) -> int:
    from corrq_jax.paths import flatten

    return sum(leaf.ndim > 1 for _, leaf in flatten(tree)[0])


def _as_record(report: "Report") -> dict[str, Any]:
    """A report for JSON."""
    budget = report.budget
    return {
        "rows": [vars(row) for row in report],
        "skipped": [vars(row) for row in report.skipped],
        "budget": None if budget is None else dataclasses.asdict(budget),
        "matched": None if report.matched is None else dataclasses.asdict(report.matched),
    }


Widths = int | tuple[int, ...]


def _bits(given: list[str]) -> Widths | dict[str, Widths] | None:
    """Bits and PATTERN=BITS as a mapping, the plain number last, for all other paths."""
    patterns: dict[str, Widths] = {}
    rest: Widths | None = None
    for text in given:
        pattern, equals, numbers = text.rpartition("=")
        widths = [number.strip() for number in numbers.split(",")]
        if not all(width.isdecimal() for width in widths) or (equals and not pattern):
            raise InputError(
                f"--bits {text!r}: give a number from 1 to 8, or PATTERN=NUMBER; several, such as "
                "2,4,8, with a target"
            )
        found = tuple(map(int, widths)) if len(widths) > 1 else int(widths[0])
        if pattern in patterns:
            raise InputError(f"--bits: the pattern {pattern!r} is given twice")
        if equals:
            patterns[pattern] = found
        elif rest is not None:
            raise InputError("--bits: give one plain number; others need a PATTERN= in front")
        else:
            rest = found
    if not patterns:
        return rest
    if rest is not None and "*" in patterns:
        raise InputError("--bits: a plain number is for all other paths, and '*=' leaves none")
    return patterns if rest is None else {**patterns, "*": rest}


def read_tree(source: pathlib.Path) -> dict[str, Any]:
    """The parameters in a file."""
    from corrq_jax.readers import read_weights
    from corrq_jax.streaming import nested

    return nested(read_weights(source), source)


def inspect(file: File, as_json: AsJson = False) -> None:
    """Show what is in a file: tensors, bits, correlation if recorded, sizes."""
    from corrq_jax import model_folders
    from corrq_jax.archive import Archive

    if file.is_dir():
        file = file / model_folders.QUANTIZED
    with Archive(file) as archive:
        rows = []
        for name in archive.names():
            rows.append(_leaf_record(archive, name))
    total = file.stat().st_size
    if as_json:
        print(json.dumps({"file": str(file), "nbytes": total, "leaves": rows}))
        return
    columns = ("path", "shape", "bits", "coding", "scales", "stored bits", "dtype", "rho", "bytes")
    print(f"{file}: {megabytes(total)} ({total:,} bytes)")
    output.print(table(None, columns, map(_leaf_cells, rows)))


def _leaf_record(archive: "Archive", name: str) -> dict[str, Any]:
    """What a file says of a leaf; stored bits are those of its data, without the header."""
    from corrq_jax.tensor import Rows

    record = archive.record(name) if archive.is_quantized(name) else {}
    shape = record["shape"] if record else list(archive.shape(name))
    nbytes, size, noise = archive.leaf_nbytes(name), math.prod(shape), record.get("noise")
    return {
        "path": name,
        "shape": shape,
        "bits": record.get("bits"),
        "coding": archive.coding(name) if record else None,
        "scales": math.prod(Rows(*record["rows"]).shape) if "rows" in record else None,
        "bits_per_weight": 8 * nbytes / size if size else None,
        "dtype": record["dtype"] if record else archive.dtype(name),
        "correlation": None if noise is None else math.sqrt(1 - noise),
        "nbytes": nbytes,
    }


def _leaf_cells(leaf: dict[str, Any]) -> tuple[str, ...]:
    stored, rho = leaf["bits_per_weight"], leaf["correlation"]
    return (
        leaf["path"],
        "x".join(map(str, leaf["shape"])),
        "float" if leaf["bits"] is None else str(leaf["bits"]),
        leaf["coding"] or "",
        "" if leaf["scales"] is None else f"{leaf['scales']:,}",
        "-" if stored is None else f"{stored:.3f}",
        leaf["dtype"],
        "-" if rho is None else f"{rho:.6f}",
        f"{leaf['nbytes']:,}",
    )


def dequantize(
    file: File,
    out: Annotated[
        pathlib.Path,
        typer.Option(
            "-o", "--output", help="The file to write, .npz or .safetensors; of a folder, a folder."
        ),
    ],
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Turn a quantized file or folder back into plain weights of the original shapes and dtypes."""
    import corrq_jax as corrq

    with byte_progress("restoring") as advance:
        count = corrq.dequantize_file(file, out, overwrite=force, progress=advance)
    files = list(out.glob("*.safetensors")) if out.is_dir() else [out]
    nbytes = sum(written.stat().st_size for written in files)
    if as_json:
        print(json.dumps({"file": str(out), "nbytes": nbytes, "arrays": count}))
    else:
        print(f"{out}: {count} arrays, {nbytes:,} bytes")
