#!/usr/bin/env python3
"""Whether every public name of an installed corrq_jax has a known type, as its users' checkers see.

    PATH=ENVIRONMENT/bin:$PATH python .ci/typed.py PYRIGHT

pyright looks into the environment in the path, where the wheel is installed.
"""

import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))
from test_public_api import PUBLIC

pyright = sys.argv[1]
command = [pyright, "--verifytypes", "corrq_jax", "--ignoreexternal", "--outputjson"]
found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)
symbols = found["typeCompleteness"]["symbols"]
public = [s for s in symbols if s["isExported"] and s["name"].rpartition(".")[0] in PUBLIC]
unknown = [s for s in public if not s["isTypeKnown"]]
for symbol in unknown:
    print(symbol["name"], *(d["message"] for d in symbol.get("diagnostics", ())), sep=": ")
print(f"{len(public) - len(unknown)} of {len(public)} public names have known types")
sys.exit(bool(unknown) or not public)
