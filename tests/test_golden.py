"""Files of every format version that was released keep loading, to the last bit."""

import json
import pathlib

import fuzz_kinds
import fuzz_saved
import pytest
import safetensors.numpy
import spec_reader
from golden_files import describe

import corrq_jax as corrq
from corrq_jax.layout import VERSION

GOLDEN = sorted(pathlib.Path(__file__).with_name("golden").glob("*.safetensors"))


def test_every_version_has_its_files():
    versions = {int(path.name.split("_")[1]) for path in GOLDEN}
    assert versions == set(range(1, VERSION + 1))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_a_golden_file_gives_what_it_always_gave(path):
    assert describe(corrq.load(path)) == json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_a_reader_made_from_the_page_on_the_format_reads_the_same(path):
    again = spec_reader.read(path.read_bytes())
    assert fuzz_kinds.same(fuzz_saved.plain(corrq.load(path)), again)


def test_the_golden_files_hold_all_that_a_file_can_say():
    """A kind of tensor that no golden file has could be lost unseen."""
    path = GOLDEN[0].with_name(f"version_{VERSION}_everything.safetensors")
    with corrq.Archive(path) as archive:
        names = [n for n in archive.names() if archive.is_quantized(n)]
        records = [archive.record(n) for n in names]
        assert {r["bits"] for r in records} == set(range(1, 9))
        assert {r["dtype"] for r in records} == {"F16", "BF16", "F32", "F64"}
        assert {archive.coding(n) for n in names} == {"packed", "entropy"}
        assert {"rows" in r for r in records} == {True, False}
    with corrq.Archive(path.with_name(f"version_{VERSION}_trellis.safetensors")) as archive:
        names = [n for n in archive.names() if archive.is_quantized(n)]
        assert {archive.coding(n) for n in names} == {"trellis", "entropy-trellis"}
        assert {archive.record(n)["bits"] for n in names} == set(range(1, 8))
    with corrq.Archive(path.with_name(f"version_{VERSION}_long_trellis.safetensors")) as archive:
        names = [n for n in archive.names() if archive.is_quantized(n)]
        assert {archive.coding(n) for n in names} == {"trellis"}
        assert {archive.record(n)["bits"] for n in names} == set(range(1, 7))
    found = safetensors.numpy.load_file(path.with_name("version_1_everything.safetensors"))
    widths = {a.dtype.itemsize for name, a in found.items() if name.endswith(":frequencies")}
    assert widths == {1, 2, 4}
