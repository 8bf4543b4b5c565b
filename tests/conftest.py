"""Fixtures of the command line's tests."""

import sys
import warnings

import pytest
from command_line import write

from corrq_jax import cli


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


@pytest.fixture
def npz(tmp_path):
    return write(tmp_path / "net.npz")
