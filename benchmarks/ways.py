"""What sentences.py and speech.py share: ways to quantize, and the table of what they change."""

import argparse
import pathlib
import tempfile

import corrq_jax as corrq

WAYS = {
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "4 bits, channel scales": {"bits": 4, "granularity": "channel"},
    "4 bits, linear by range": {"bits": 4, "grid": "linear", "fit": "range"},
    "budget of 4 bits": {"bits_per_weight": 4.0},
    "3 bits": {"bits": 3},
    "3 bits, channel scales": {"bits": 3, "granularity": "channel"},
    "budget of 3 bits, entropy-coded": {"bits_per_weight": 3.0, "coding": "entropy"},
}


def arguments(script, package):
    """A parser for the file of the package, and for some of the ways."""
    parser = argparse.ArgumentParser(description=script.splitlines()[0])
    parser.add_argument(package, type=pathlib.Path)
    parser.add_argument("--way", action="append", choices=WAYS)
    return parser


def print_table(params, ways, columns, figures, **options):
    """Quantizes in each way (None: all); `figures` says of the result what `columns` name."""
    titles = ("way", "bytes", "stored bits", *columns)
    print("|", " | ".join(titles), "|")
    print("|---" * len(titles) + "|")
    for way in ways or WAYS:
        quantized, report = corrq.quantize(params, **options, **WAYS[way])
        with tempfile.TemporaryDirectory() as folder:
            size = corrq.save(pathlib.Path(folder) / "net.safetensors", quantized)
        cells = (way, f"{size:,}", f"{report.bits_per_weight:.3f}", *figures(quantized))
        print("|", " | ".join(cells), "|", flush=True)
