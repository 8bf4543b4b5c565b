"""Arrays on a mesh of devices; the checks are in the files that are named here."""

import pytest
from eight_devices import run_checks


@pytest.mark.parametrize("file", ["sharded_checks.py", "sharded_storage_checks.py"])
def test_on_eight_devices(file):
    run_checks(file)
