"""The oldest and the newest supported versions, on the oldest and the newest Python at hand.

    python .ci/versions.py [--others]

Of the Pythons that pyproject.toml allows, in ~/.pyenv/versions or on PATH: with the newest of them
the newest jax, flax and whatever else the core, files and networks need, with the oldest the oldest
versions that pyproject.toml allows. Each in an environment of its own, where the tests run that
reach the core, stored files, entropy coding and Flax, and the command line starts. With --others
the newest versions are left out if this script runs on the newest Python: .ci/run tests them more
thoroughly.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = ("files", "flax", "cli")
TOOLS = ("pytest", "hypothesis", "kmeans1d", "safetensors", "scipy")  # of the group "test"
TESTS = (
    *("tests/test_golden.py", "tests/test_tensor.py"),
    "tests/core/test_coding.py::test_pack_and_unpack_any_codes",
    "tests/core/test_ungerboeck.py::test_no_other_codes_have_a_smaller_error",
    "tests/core/test_congruential.py::test_no_other_codes_have_a_smaller_error",
    *("tests/test_flax.py::TestFunctional", "tests/test_flax.py::TestLinen"),
    "tests/test_flax.py::TestTransformations::test_jit",
)
# Pyenv's first: a system's own often comes without the means to make environments.
PLACES = ("~/.pyenv/versions/*/bin/python3", *(f"{p}/python3*" for p in os.get_exec_path()))
SECONDS = 1200  # for one step: a hang is an error, too


def pythons():
    """{(3, 11): path}: one of each version that can make an environment."""
    oldest = _version(PROJECT["project"]["requires-python"].removeprefix(">="))
    found, seen = {}, set()
    for place in map(pathlib.Path, PLACES):
        root, pattern = place.expanduser().anchor, "/".join(place.expanduser().parts[1:])
        for path in sorted(pathlib.Path(root).glob(pattern)):
            if not re.fullmatch(r"python3(\.\d+)?", path.name) or path.resolve() in seen:
                continue
            seen.add(path.resolve())
            ask = "import sys, venv, ensurepip; print('%s.%s' % sys.version_info[:2])"
            done = subprocess.run([path, "-c", ask], capture_output=True, text=True, check=False)
            if done.returncode == 0 and (version := _version(done.stdout)) >= oldest:
                found.setdefault(version, path)
    return dict(sorted(found.items()))


def _version(text):
    return tuple(int(part) for part in text.strip().split("."))


def requirements():
    """What the project needs for these tests, its tools not among it."""
    extras = PROJECT["project"]["optional-dependencies"]
    found = [*PROJECT["project"]["dependencies"], *(r for e in EXTRAS for r in extras[e])]
    return [r for r in found if not r.startswith(PROJECT["project"]["name"])]  # extras of its own


def oldest_versions():
    """Constraints: the lower bound of each requirement, as the version to install."""
    bounds = [re.fullmatch(r"([\w-]+)>=([\d.]+)", r) for r in requirements()]
    assert all(bounds), f"each needs one lower bound and nothing else: {requirements()}"
    return [f"{bound[1]}=={bound[2]}" for bound in bounds]


def run(python, constraints):
    """The result of the tests in a new environment: (passed, versions, seconds, output)."""
    start = time.perf_counter()
    tools = [r for r in PROJECT["dependency-groups"]["test"] if re.split(r"\W", r)[0] in TOOLS]
    with tempfile.TemporaryDirectory() as folder:
        venv, allowed = pathlib.Path(folder, "venv"), pathlib.Path(folder, "constraints.txt")
        allowed.write_text("\n".join(constraints))
        inside = venv / "bin/python"
        pip = [inside, "-m", "pip", "--disable-pip-version-check"]
        steps = [
            [python, "-m", "venv", venv],
            [
                *pip,
                "install",
                "-q",
                "--no-compile",
                "-c",
                allowed,
                f"{ROOT}[{','.join(EXTRAS)}]",
                *tools,
            ],
            [venv / "bin/pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *TESTS],
            [venv / "bin/corrq", "quantize", "--help"],
            [*pip, "list", "--format", "json"],
        ]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"JAX_PLATFORMS": "cpu", "CORRQ_CACHE": f"{folder}/cache"}
        for step in steps:
            try:
                done = subprocess.run(
                    step, cwd=ROOT, env=environment, check=False, timeout=SECONDS,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                return False, "", time.perf_counter() - start, f"{error.stdout}\n{error}"
            if done.returncode:
                return False, "", time.perf_counter() - start, done.stdout
    names = {re.split(r"\W", requirement)[0] for requirement in requirements()}
    listed = json.loads(done.stdout)
    versions = ", ".join(f"{p['name']} {p['version']}" for p in listed if p["name"] in names)
    return True, versions, time.perf_counter() - start, ""


def main():
    """All environments at once, as far as there are processors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--others", action="store_true")
    given = parser.parse_args()
    found = pythons()
    if not found:
        sys.exit(f"no Python {PROJECT['project']['requires-python']} that can make environments")
    for version, path in found.items():
        print(f"Python {'.'.join(map(str, version))}: {path}")
    runs = [("oldest", min(found), oldest_versions())]
    if not (given.others and max(found) == sys.version_info[:2]):
        runs.append(("newest", max(found), []))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda one: run(found[one[1]], one[2]), runs)
        is_well = True
        for (name, version, _), (passed, versions, seconds, output) in zip(
            runs, results, strict=True
        ):
            label = f"{name} on Python {'.'.join(map(str, version))}, {seconds:.0f} s"
            print(f"{label}: {versions}" if passed else f"{label}: FAILED\n{output}", flush=True)
            is_well &= passed
    sys.exit(not is_well)


if __name__ == "__main__":
    main()
