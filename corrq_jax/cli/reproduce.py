"""The command that repeats the papers' experiment."""

import dataclasses
import json
import pathlib
from typing import Annotated, Any

import typer

from corrq_jax.atomic import atomic_write
from corrq_jax.cli.files import AsJson
from corrq_jax.cli.measure import (
    BatchSize,
    Bits,
    DataDir,
    Download,
    Dtype,
    Labels,
    Limit,
    Methods,
    Split,
    Weights,
    cells_of,
    check_folder,
    compared,
    write,
)
from corrq_jax.cli.show import errors, output, published_table, results_table
from corrq_jax.data import BATCH
from corrq_jax.errors import InputError

_MODELS = ("vgg16", "resnet50", "xception")


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command(
        epilog="Examples:\n\n"
        "  corrq reproduce --model vgg16 --data imagenet/val -o vgg16\n\n"
        "  corrq reproduce --data imagenet_v2/matched-frequency --download --dtype bfloat16\n\n"
        "  corrq reproduce --model resnet50 --weights resnet50.h5 --data val --labels val.txt"
    )(reproduce)


def reproduce(
    data: Annotated[
        str,
        typer.Option(
            help="Pictures: a folder, or TFDS's imagenet2012, imagenet_v2/matched-frequency or "
            "imagenette, or photos: the 24 that are installed."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"A network (repeatable); by default {', '.join(_MODELS)}."),
    ] = None,
    bits: Bits = "8-2",
    method: Methods = None,
    weights: Weights = None,
    labels: Labels = None,
    split: Split = None,
    data_dir: DataDir = None,
    download: Download = False,
    limit: Limit = None,
    batch_size: BatchSize = BATCH,
    dtype: Dtype = "float32",
    out: Annotated[
        pathlib.Path, typer.Option("-o", "--output", help="The folder to write.")
    ] = pathlib.Path("reproduced"),
    as_json: AsJson = False,
) -> None:
    """Quantize the papers' networks by every method and measure top-1 and top-5.

    Each cell, a method at a bit width, is kept in the output folder as soon as it is done: the
    same command goes on where a run was stopped. docs/reproduce.md says which reading of the papers
    each method is.
    """
    from corrq_jax import models, paper
    from corrq_jax import sweep as sweeping

    names = model or list(_MODELS)
    for name in names:
        models.info(name)  # a wrong name is told before any work
    if weights is not None and len(names) > 1:
        raise InputError("--weights is for one network; name it with --model")
    cells = cells_of(bits, sweeping.methods(method) if method else sweeping.METHODS)
    check_folder(out)
    from corrq_jax.fidelity import subject

    told: dict[str, Any] = {}
    for name in names:
        errors.print(f"loading {name} and {data}", highlight=False)
        found = subject(
            name,
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
        run = compared(name, found.params, cells, found, out / name / "cells")
        published = paper.beside(name, run.results)
        records = [dataclasses.asdict(one) for one in published]
        if as_json:
            told[name] = {"run": json.loads(run.to_json()), "published": records}
        else:
            output.print(results_table(run))
            if published:
                output.print(published_table(published, run, paper.FLOAT[name]))
        write(run, out / name, published)
        _write_published(out / name, records)
    if as_json:
        print(json.dumps(told))


def _write_published(folder: pathlib.Path, records: list[dict[str, Any]]) -> None:
    """What the page shows beside the papers, for programs."""
    text = json.dumps(records, indent=1)
    with atomic_write(folder / "published.json", overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
