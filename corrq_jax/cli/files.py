"""Commands on files of weights: quantize, inspect, dequantize."""

import dataclasses
import json
import pathlib
from typing import Annotated, Any

import typer

from corrq_jax.cli.show import megabytes, output, progress, table
from corrq_jax.errors import InputError

Input = Annotated[
    pathlib.Path,
    typer.Argument(
        metavar="IN", help="A file (.npz, .safetensors, .h5, .weights.h5, .pth) or a network's name"
    ),
]
File = Annotated[pathlib.Path, typer.Argument(metavar="FILE", help="A file that corrq wrote")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_GRIDS = "linear, exponential, optimal or nf4"


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(
        epilog="Examples:\n\n"
        "  corrq quantize net.weights.h5 -o net.safetensors --bits 4\n\n"
        "  corrq quantize net.pth -o net.safetensors --bits 3 --bits 'fc*=8' --grid exponential\n\n"
        "  corrq quantize efficientnet_lite0 -o lite0.safetensors --bits 5"
    )(quantize)
    app.command(epilog="Example:\n\n  corrq inspect net.safetensors")(inspect)
    app.command(epilog="Example:\n\n  corrq dequantize net.safetensors -o net.npz")(dequantize)


def quantize(
    source: Input,
    out: Annotated[pathlib.Path, typer.Option("-o", "--output", help="The file to write.")],
    bits: Annotated[
        list[str] | None,
        typer.Option("--bits", "-b", help="1 to 8, or PATTERN=BITS for some paths (repeatable)."),
    ] = None,
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
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a file of weights and write one safetensors file."""
    import corrq_jax as corrq
    from corrq_jax.paths import flatten

    config = corrq.Config(
        bits=_bits(bits or ["4"]),
        grid=grid,
        fit=fit,
        levels=levels,
        zero=zero,
        select=tuple(select) if select else None,
    )
    if out.suffix.lower() != ".safetensors":
        raise InputError(f"{out}: quantized files are safetensors; name it with .safetensors")
    if out.exists() and not force:
        raise InputError(f"{out} exists; choose another name or add --force")
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; make it first")
    tree = read_tree(source)
    kernels = sum(leaf.ndim > 1 for _, leaf in flatten(tree)[0])
    with progress("quantizing", kernels) as advance:
        qparams, report = corrq.quantize(tree, config=config, progress=advance)
    size = corrq.save(out, qparams, report=report, overwrite=force)
    if as_json:
        rows = [vars(row) for row in report]
        skipped = [vars(row) for row in report.skipped]
        print(json.dumps({"file": str(out), "nbytes": size, "rows": rows, "skipped": skipped}))
        return
    print(dataclasses.replace(report, file_nbytes=size))
    print(f"{out}: {size:,} bytes, the correlation of each tensor recorded in it")


def _bits(given: list[str]) -> int | dict[str, int]:
    """Bits and PATTERN=BITS as a mapping, the plain number last, for all other paths."""
    patterns: dict[str, int] = {}
    rest: int | None = None
    for text in given:
        pattern, equals, number = text.rpartition("=")
        if not number.strip().isdecimal() or (equals and not pattern):
            raise InputError(f"--bits {text!r}: give a number from 1 to 8, or PATTERN=NUMBER")
        if equals:
            patterns[pattern] = int(number)
        elif rest is not None:
            raise InputError("--bits: give one plain number; others need a PATTERN= in front")
        else:
            rest = int(number)
    if not patterns:
        return int(rest or 0)
    return patterns if rest is None else {**patterns, "*": rest}


def read_tree(source: pathlib.Path) -> dict[str, Any]:
    """The parameters in a file, or of a network that is known by this name."""
    from corrq_jax import models

    if not source.exists() and str(source) in models.names():
        from corrq_jax.flax import functional

        return functional(models.load(str(source)))[1]
    from corrq_jax.readers import read_weights

    arrays = read_weights(source)
    if any(name.endswith(":codes") for name in arrays):
        raise InputError(f"{source} is quantized already; corrq dequantize turns it back")
    return _nested(arrays)


def _nested(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays whose names have slashes, as a tree; as they are if one name is a folder of others."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                return arrays
        if last in node:
            return arrays
        node[last] = array
    return tree


def inspect(file: File, as_json: AsJson = False) -> None:
    """Show what is in a file: tensors, bits, correlation if recorded, sizes."""
    import numpy as np

    from corrq_jax.storage import Archive

    with Archive(file) as archive:
        rows = []
        for name in archive.names():
            record = archive.record(name) if archive.is_quantized(name) else {}
            noise = record.get("noise")
            rows.append(
                {
                    "path": name,
                    "shape": record["shape"] if record else list(archive.shape(name)),
                    "bits": record.get("bits"),
                    "dtype": record["dtype"] if record else archive.dtype(name),
                    "correlation": None if noise is None else float(np.sqrt(1 - noise)),
                    "nbytes": archive.leaf_nbytes(name),
                }
            )
    total = file.stat().st_size
    if as_json:
        print(json.dumps({"file": str(file), "nbytes": total, "leaves": rows}))
        return
    columns = ("path", "shape", "bits", "dtype", "rho", "bytes")
    shown = [
        (
            row["path"],
            "x".join(map(str, row["shape"])),
            "float" if row["bits"] is None else str(row["bits"]),
            row["dtype"],
            "-" if row["correlation"] is None else f"{row['correlation']:.6f}",
            f"{row['nbytes']:,}",
        )
        for row in rows
    ]
    output.print(table(f"{file}: {megabytes(total)} ({total:,} bytes)", columns, shown))


def dequantize(
    file: File,
    out: Annotated[
        pathlib.Path, typer.Option("-o", "--output", help="The file to write: .npz or .safetensors")
    ],
    force: Force = False,
) -> None:
    """Turn a quantized file back into plain arrays of the original shapes and dtypes."""
    import numpy as np

    import corrq_jax as corrq
    from corrq_jax.paths import flatten
    from corrq_jax.readers import write_weights

    tree = corrq.dequantize(corrq.load(file))
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(tree)[0]}
    write_weights(out, arrays, overwrite=force)
    print(f"{out}: {len(arrays)} arrays, {out.stat().st_size:,} bytes")
