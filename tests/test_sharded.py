"""Arrays on a mesh of devices; the checks are in the files that are named here."""

from eight_devices import run_checks


def test_on_eight_devices():
    run_checks("sharded_checks.py", "sharded_storage_checks.py")
