"""The commands on files, run for real: formats, targets of bits, exit codes, one-line errors."""

import json
import os
import pickle

import numpy as np
import pytest
from command_line import COMMAND, arrays, in_process, in_terminal, write
from safetensors.numpy import save_file

import corrq_jax as corrq
from corrq_jax.cli.files import read_tree
from corrq_jax.models.efficientnet_lite_weights import installed_weights
from corrq_jax.paths import flatten
from corrq_jax.readers import read_weights


def in_memory(named, **options):
    return corrq.dequantize(corrq.quantize(named, **options)[0])


def assert_holds(file, expected):
    found = read_weights(file)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


class TestRoundTrip:
    @pytest.mark.parametrize("name", ["net.npz", "net.safetensors", "net.h5", "net.weights.h5"])
    def test_equals_the_functions(self, done, tmp_path, name):
        source = write(tmp_path / name)
        q, back = tmp_path / "q.safetensors", tmp_path / "back.npz"
        out = done("quantize", source, "-o", q)
        assert f"{q.stat().st_size:,} bytes" in out
        out = done("inspect", q)
        assert "32x40" in out
        assert f"{q.stat().st_size:,} bytes" in out
        told = json.loads(done("dequantize", q, "-o", back, "--json"))
        assert told == {"file": str(back), "nbytes": back.stat().st_size, "arrays": 4}
        assert_holds(back, in_memory(read_weights(source), bits=4))

    def test_of_a_torch_file(self, done, tmp_path):
        source = installed_weights("efficientnet_lite0")
        q, back = tmp_path / "q.safetensors", tmp_path / "back.safetensors"
        only = ("--select", "_blocks.1.*")
        done("quantize", source, "-o", q, *only)
        assert q.stat().st_size < source.stat().st_size
        done("dequantize", q, "-o", back)
        original = read_weights(source)
        assert_holds(back, in_memory(original, bits=4, select="_blocks.1.*"))
        changed = [n for n, a in read_weights(back).items() if not np.array_equal(a, original[n])]
        assert changed
        assert all(name.startswith("_blocks.1.") for name in changed)

    def test_by_pattern(self, done, npz, tmp_path):
        q = tmp_path / "q.safetensors"
        done("quantize", npz, "-o", q, "--bits", "stem=8", "-b", "4")
        assert bits_in(q) == {"stem/kernel": 8, "blocks/10/kernel": 4, "blocks/2/kernel": 4}
        done("quantize", npz, "-o", q, "--bits", "blocks/*=4", "--force")
        assert bits_in(q) == {"blocks/10/kernel": 4, "blocks/2/kernel": 4}

    def test_by_grid(self, done, npz, tmp_path):
        q, back = tmp_path / "q.safetensors", tmp_path / "back.npz"
        options = {"grid": "linear", "fit": "range", "levels": "grid"}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        done("quantize", npz, "-o", q, "-b", "4", *words)
        done("dequantize", q, "-o", back)
        assert_holds(back, in_memory(arrays(), bits=4, **options))

    @pytest.mark.parametrize("order", [1, -1])
    def test_of_an_array_whose_name_is_a_folder_of_another(self, done, tmp_path, order):
        named = {"a": np.eye(9, dtype=np.float32), "a/b": np.ones(2, np.float32)}
        named = dict(list(named.items())[::order])
        np.savez(tmp_path / "net.npz", **named)
        done("quantize", tmp_path / "net.npz", "-o", tmp_path / "q.safetensors")
        done("dequantize", tmp_path / "q.safetensors", "-o", tmp_path / "back.npz")
        assert_holds(tmp_path / "back.npz", named)  # two values are stored without loss


def bits_in(file):
    with corrq.Archive(file) as archive:
        return {n: archive.record(n)["bits"] for n in archive.names() if archive.is_quantized(n)}


class TestJson:
    def test_of_quantize_and_inspect(self, done, npz, tmp_path):
        q = tmp_path / "q.safetensors"
        made = json.loads(done("quantize", npz, "-o", q, "--json"))
        assert made["nbytes"] == q.stat().st_size
        assert [s["path"] for s in made["skipped"]] == ["stem/bias"]
        seen = json.loads(done("inspect", q, "--json"))
        assert seen["nbytes"] == made["nbytes"]
        by_path = {leaf["path"]: leaf for leaf in seen["leaves"]}
        assert by_path["stem/bias"]["bits"] is None
        for row in made["rows"]:
            leaf = by_path[row["path"]]
            assert (leaf["bits"], leaf["shape"]) == (row["bits"], row["shape"])
            assert leaf["correlation"] == pytest.approx(row["correlation"], abs=1e-7)


class TestTargets:
    @pytest.mark.parametrize(
        ("words", "options"),
        [
            (("--bits-per-weight", "4"), {"bits_per_weight": 4.0}),
            (("--bits-per-weight", "5", "-b", "2,6"), {"bits_per_weight": 5.0, "bits": (2, 6)}),
            (("--max-bytes", "4kB"), {"max_bytes": "4kB"}),
            (("--mean-correlation", "0.99"), {"mean_correlation": 0.99}),
            (
                ("--min-correlation", "0.98", "-b", "stem=8", "-b", "2,3,4"),
                {"min_correlation": 0.98, "bits": {"stem": 8, "*": (2, 3, 4)}},
            ),
            (
                ("--bits-per-weight", "6", "--granularity", "auto"),
                {"bits_per_weight": 6.0, "granularity": "auto"},
            ),
            (("--coding", "entropy", "-b", "4"), {"coding": "entropy", "bits": 4}),
            (("--granularity", "channel"), {"granularity": "channel"}),
            (("--granularity", "16"), {"granularity": 16}),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_equal_the_functions(self, done, npz, tmp_path, words, options):
        q, back = tmp_path / "q.safetensors", tmp_path / "back.npz"
        out = done("quantize", npz, "-o", q, *words)
        qparams, report = corrq.quantize(read_tree(npz), **options)
        assert str(report).splitlines()[0] in out
        assert ("target" in out) == (report.budget is not None)
        if report.budget is not None:
            assert str(report.budget) in out
        done("dequantize", q, "-o", back)
        assert_holds(back, dict(flatten(corrq.dequantize(qparams))[0]))

    def test_sizes(self, done, npz, tmp_path):
        q = tmp_path / "q.safetensors"
        done("quantize", npz, "-o", q, "--max-bytes", "4kB")
        assert 3000 < q.stat().st_size <= 4000
        made = json.loads(
            done("quantize", npz, "-o", q, "--bits-per-weight", "5", "--json", "--force")
        )
        assert (made["budget"]["target"], made["budget"]["limit"]) == ("bits_per_weight", 5)
        nbytes = sum(row["nbytes"] for row in made["rows"])
        assert 8 * nbytes <= 5 * sum(row["size"] for row in made["rows"])

    def test_inspect_shows_coding_scales_and_stored_bits(self, done, tmp_path):
        rng = np.random.default_rng(0)
        named = {"wide": rng.normal(size=(64, 300)), "flat": rng.laplace(size=(70, 500)) ** 3}
        source, q = tmp_path / "net.npz", tmp_path / "q.safetensors"
        np.savez(source, **{name: w.astype(np.float32) for name, w in named.items()}, bias=[1.0])
        options = ("--bits-per-weight", "2.5", "--coding", "entropy", "--granularity", "channel")
        made = json.loads(done("quantize", source, "-o", q, *options, "--json"))
        leaves = json.loads(done("inspect", q, "--json"))["leaves"]
        by_path = {leaf["path"]: leaf for leaf in leaves}
        assert by_path["bias"]["coding"] is None
        assert by_path["bias"]["scales"] is None
        for row in made["rows"]:
            leaf = by_path[row["path"]]
            assert (leaf["coding"], leaf["scales"]) == (row["coding"], row["rows"])
            assert leaf["bits_per_weight"] == 8 * leaf["nbytes"] / row["size"]
            assert leaf["bits_per_weight"] < row["nbytes"] * 8 / row["size"]  # no header
        assert "entropy" in {row["coding"] for row in made["rows"]}
        shown = done("inspect", q)
        for text in ("entropy", "300", "500", "stored bits", "scales"):
            assert text in shown


class TestKnownNetworks:
    def test_are_matched_unless_told_otherwise(self, done, tmp_path):
        q = tmp_path / "q.safetensors"
        target = ("--bits-per-weight", "3", "--json", "--force")
        found = json.loads(done("quantize", "efficientnet_lite0", "-o", q, *target))
        assert len(found["matched"]["norms"]) == 49
        assert found["matched"]["biases"] == ["classifier/kernel"]
        assert found["matched"]["unreached"] == {}
        matched = dict(flatten(corrq.load(q))[0])
        source = installed_weights("efficientnet_lite0")
        words = (source, "--model", "efficientnet_lite0", "--no-match", "-o", q)
        same = json.loads(done("quantize", *words, *target))
        assert same["matched"] is None
        assert same["rows"] == found["rows"]  # shared out by importance all the same
        plain = dict(flatten(corrq.load(q))[0])
        assert plain.keys() == matched.keys()
        var = "stage2/block1/expand/norm/var"
        assert not np.array_equal(plain[var], matched[var])
        unknown = json.loads(done("quantize", source, "-o", q, *target))
        bits = [[row["bits"] for row in made["rows"]] for made in (found, unknown)]
        assert bits[0] != bits[1]

    def test_a_wrong_name(self, failed, npz, tmp_path):
        words = ("-o", tmp_path / "q.safetensors", "--model", "no_such_network")
        assert "choose one of: vgg16" in failed("quantize", npz, *words)


class TestErrors:
    @pytest.mark.parametrize("command", ["quantize", "inspect", "dequantize", "sweep", "evaluate"])
    def test_missing_file(self, failed, tmp_path, command):
        out = ("-o", tmp_path / "out.npz") if command == "dequantize" else ()
        out = ("-o", tmp_path / "out.safetensors") if command == "quantize" else out
        assert "there.npz" in failed(command, tmp_path / "there.npz", *out)
        assert not list(tmp_path.iterdir())

    def test_existing_output_is_kept_without_force(self, failed, done, npz, tmp_path):
        q = tmp_path / "q.safetensors"
        q.write_bytes(b"mine")
        assert "--force" in failed("quantize", npz, "-o", q)
        assert q.read_bytes() == b"mine"
        done("quantize", npz, "-o", q, "--force")
        back = tmp_path / "back.npz"
        back.write_bytes(b"mine")
        assert "back.npz" in failed("dequantize", q, "-o", back)
        assert back.read_bytes() == b"mine"
        done("dequantize", q, "-o", back, "--force")
        assert len(read_weights(back)) == 4

    def test_missing_folder(self, failed, done, npz, tmp_path):
        assert "none" in failed("quantize", npz, "-o", tmp_path / "none" / "q.safetensors")
        q = tmp_path / "q.safetensors"
        done("quantize", npz, "-o", q)
        assert "none" in failed("dequantize", q, "-o", tmp_path / "none" / "back.npz")

    @pytest.mark.parametrize(
        ("words", "allowed"),
        [
            (("--grid", "cubic"), "'exponential'"),
            (("--bits", "9"), "1 to 8"),
            (("--bits", "0"), "1 to 8"),
            (("--bits", "-1"), "1 to 8"),
            (("--bits", "four"), "1 to 8"),
            (("--bits", "2.5"), "1 to 8"),
            (("--bits", "stem=9"), "1 to 8"),
            (("--bits", "=3"), "PATTERN=NUMBER"),
            (("--bits", "3", "--bits", "4"), "PATTERN="),
            (("--bits", "stem=3", "--bits", "stem=4"), "'stem' is given twice"),
            (("--bits", "*=3", "--bits", "4"), "'*=' leaves none"),
            (("--bits", "nothing/*=3"), "stem/kernel"),
            (("--select", "nothing"), "stem/kernel"),
            (("--grid", "nf4", "--bits", "3"), "4 bits"),
            (("--zero",), "'exponential'"),
            (("--bits", "2,4"), "bits=(2, 4)"),
            (("--bits", "2,", "--bits-per-weight", "4"), "2,4,8"),
            (("--bits-per-weight", "4", "--max-bytes", "9kB"), "max_bytes"),
            (("--bits-per-weight", "0.5"), "smallest possible"),
            (("--max-bytes", "lots"), "'4MB'"),
            (("--mean-correlation", "1.5"), "below 1"),
            (("--coding", "zip"), "'entropy'"),
            (("--granularity", "row"), "'channel'"),
            (("--granularity", "auto"), "bits_per_weight"),
        ],
    )
    def test_options(self, failed, npz, tmp_path, words, allowed):
        assert allowed in failed("quantize", npz, "-o", tmp_path / "q.safetensors", *words)
        assert not (tmp_path / "q.safetensors").exists()

    def test_an_output_that_is_named_like_another_format(self, failed, npz, tmp_path):
        assert ".safetensors" in failed("quantize", npz, "-o", tmp_path / "q.npz")
        assert not (tmp_path / "q.npz").exists()

    def test_a_folder_that_is_quantized_already(self, failed, done, tmp_path):
        net, q = tmp_path / "net", tmp_path / "q"
        net.mkdir()
        save_file(arrays(), net / "a.safetensors")
        index = {"weight_map": dict.fromkeys(arrays(), "a.safetensors")}
        (net / "model.safetensors.index.json").write_text(json.dumps(index))
        done("quantize", net, "-o", q)
        assert "quantized already" in failed("quantize", q, "-o", tmp_path / "twice")

    def test_a_file_that_is_quantized_already_as_a_networks_weights(
        self, failed, done, npz, tmp_path
    ):
        q = tmp_path / "q.safetensors"
        done("quantize", npz, "-o", q)
        again = ("quantize", q, "-o", tmp_path / "twice.safetensors", "--model", "vgg16")
        assert "quantized already" in failed(*again)

    def test_nan_weights_are_named(self, failed, tmp_path):
        weights = arrays()
        weights["stem/kernel"][1, 0, 0, 0] = np.nan
        np.savez(tmp_path / "net.npz", **weights)
        line = failed("quantize", tmp_path / "net.npz", "-o", tmp_path / "q.safetensors")
        assert "stem/kernel: 1 NaN" in line
        assert not (tmp_path / "q.safetensors").exists()

    def test_no_kernel(self, done, failed, tmp_path):
        source, q = tmp_path / "net.npz", tmp_path / "q.safetensors"
        np.savez(source, bias=np.arange(3.0))
        assert "nothing was quantized" in done("quantize", source, "-o", q)
        np.testing.assert_array_equal(corrq.load(q)["bias"], np.arange(3.0))
        assert "no kernel" in failed("sweep", source, "--bits", "4", "--method", "optimal")

    def test_quantized_already(self, failed, done, npz, tmp_path):
        q = tmp_path / "q.safetensors"
        done("quantize", npz, "-o", q)
        assert "already" in failed("quantize", q, "-o", tmp_path / "twice.safetensors")

    def test_truncated_files(self, failed, done, npz, tmp_path):
        q = tmp_path / "q.safetensors"
        done("quantize", npz, "-o", q)
        for file in (q, npz):
            file.write_bytes(file.read_bytes()[:-100])
        assert "q.safetensors" in failed("inspect", q)
        assert "q.safetensors" in failed("dequantize", q, "-o", tmp_path / "back.npz")
        assert "net.npz" in failed("quantize", npz, "-o", tmp_path / "new.safetensors")

    def test_foreign_files(self, failed, tmp_path):
        source = tmp_path / "net.safetensors"
        save_file({"kernel": np.eye(3)}, source)
        assert "corrq_jax.save" in failed("inspect", source)
        text = tmp_path / "net.txt"
        text.write_text("hello, this is not a file of weights\n" * 9)
        assert "net.txt" in failed("quantize", text, "-o", tmp_path / "q.safetensors")
        (tmp_path / "folder").mkdir()
        out = ("-o", tmp_path / "q.safetensors")
        assert "a folder" in failed("quantize", tmp_path / "folder", *out)

    def test_a_pickle_that_runs_code_is_not_run(self, failed, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        source = tmp_path / "net.pth"
        source.write_bytes(pickle.dumps({"weight": Bomb()}, protocol=2))
        assert "net.pth" in failed("quantize", source, "-o", tmp_path / "q.safetensors")
        assert not (tmp_path / "ran").exists()

    def test_usage(self, run, npz):
        code, out, err = run("quantize", npz)
        assert (code, out) == (2, "")
        assert "--output" in err
        assert run("squash", npz)[0] == 2
        assert run("inspect")[0] == 2

    def test_names_with_brackets_are_text(self, done, tmp_path):
        source, q = tmp_path / "net.npz", tmp_path / "[bold]q.safetensors"
        np.savez(source, **{"[bold]/kernel": np.eye(8)})
        done("quantize", source, "-o", q)
        out = done("inspect", q)
        assert "[bold]/kernel" in out
        assert "[bold]q.safetensors" in out


class TestHelp:
    def test_version(self, done):
        assert done("--version") == f"corrq {corrq.__version__}\n"

    def test_lists_the_commands(self, done):
        out = done("--help")
        for command in ("quantize", "inspect", "dequantize", "demo", "sweep", "evaluate"):
            assert command in out

    @pytest.mark.parametrize(
        "command", ["quantize", "inspect", "dequantize", "demo", "sweep", "evaluate"]
    )
    def test_shows_examples(self, done, command):
        assert f"corrq {command}" in done(command, "--help").split("Example", 1)[1]


class TestSubprocess:
    """What only a process shows: streams that are pipes, the debug switch, exit codes."""

    def test_is_plain_and_quiet_in_a_pipe(self, npz, tmp_path):
        done = in_process("quantize", npz, "-o", tmp_path / "q.safetensors", TERM="xterm-256color")
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert "stem/kernel" in done.stdout

    def test_debug_shows_the_traceback(self, tmp_path):
        missing = tmp_path / "none.npz"
        plain = in_process("inspect", missing)
        assert plain.returncode == 1
        assert plain.stderr.count("\n") == 1
        debug = in_process("--debug", "inspect", missing)
        assert debug.returncode == 1
        assert "Traceback" in debug.stderr

    def test_table_is_whole_in_a_narrow_terminal(self, done, npz, tmp_path):
        q = tmp_path / "q.safetensors"
        done("quantize", npz, "-o", q)
        shown = in_terminal([*COMMAND, "inspect", str(q)], columns=72)
        assert "…" not in shown
        assert "rho" in shown
