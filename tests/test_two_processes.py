"""A network sharded over two processes on one machine: the result of one process on one device."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import two_processes

import corrq_jax as corrq


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_both(folder):
    """Both processes to their end; what they said if one failed."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    port = str(free_port())
    logs = [folder / f"log-{i}" for i in range(2)]
    running = []
    for i, log in enumerate(logs):
        command = [sys.executable, "-W", "error", two_processes.__file__, str(i), port, str(folder)]
        with log.open("wb") as file:
            running.append(
                subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
            )
    try:
        codes = [process.wait(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)


def test_two_processes_find_what_one_finds(tmp_path: pathlib.Path):
    run_both(tmp_path)
    expected, report = corrq.quantize(two_processes.floats(), bits=3)
    for i in range(2):
        assert (tmp_path / f"report-{i}").read_text() == str(report)
    files = json.loads((tmp_path / "net" / "index.json").read_text())["files"]
    sizes = [(tmp_path / "net" / file["name"]).stat().st_size for file in files]
    assert sizes == [file["nbytes"] for file in files]
    assert len(sizes) == 2
    mixed, _ = corrq.quantize(two_processes.floats(), bits_per_weight=2.5)
    for folder, tree in (("net", expected), ("mixed", mixed)):
        found = corrq.load_sharded(tmp_path / folder)
        for name, q in tree.items():
            if name == "bias":
                np.testing.assert_array_equal(found[name], q)
                continue
            assert found[name].bits == q.bits
            np.testing.assert_array_equal(found[name].levels, q.levels)
            np.testing.assert_array_equal(found[name].whole().codes, q.codes)
    assert {path.suffix for path in (tmp_path / "net").iterdir()} == {".json", ".safetensors"}
