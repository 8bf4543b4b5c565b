"""The same network gives the same bytes on every run, and for any number of threads and devices."""

import os
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).with_name("saved_bytes.py")


def bytes_with(folder, processors, hash_seed, flags):
    """What `saved_bytes` prints in a process of its own."""
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONHASHSEED": hash_seed}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # each compiles for itself
    command = [sys.executable, SCRIPT, folder, str(processors)]
    done = subprocess.run(command, env=environment, stdout=-1, text=True, check=True)
    return done.stdout.splitlines()


def test_same_bytes_for_any_number_of_threads_and_devices(tmp_path):
    one = bytes_with(tmp_path, 1, "1", "--xla_cpu_multi_thread_eigen=false")
    assert len(set(one)) == len(one) == 6
    many = bytes_with(tmp_path, 1000, "2", "--xla_force_host_platform_device_count=8")
    assert many == one
