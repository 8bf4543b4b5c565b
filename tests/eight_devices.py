"""Runs files of checks in a process of its own that has eight virtual CPU devices.

JAX counts its devices once a process. The files are named so that pytest collects them only here.
"""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def run_checks(*names):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(HERE / name) for name in names]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=HERE.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr
