"""Every notebook runs, is stored without outputs, and links to files that exist."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/"

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def test_there_are_notebooks():
    names = {path.name for path in NOTEBOOKS}
    assert names >= {"quickstart.ipynb", "reproduce_paper_tpu.ipynb", "flax_evaluation_loop.ipynb"}


@every_notebook
def test_is_valid_and_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        assert cell.metadata == {}


@every_notebook
def test_links_are_to_files_that_exist(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    badges = re.findall(r"\[!\[Open in Colab\]\(([^)]*)\)\]\(([^)]*)\)", text)
    assert len(badges) == 1
    picture, target = badges[0]
    assert picture.startswith(COLAB)
    assert (path.parent / target).resolve() == path
    for link in re.findall(r"\]\(([^)]*)\)", text):
        if "://" not in link:
            assert (path.parent / link).exists(), link
    assert "github" not in text.lower()


@every_notebook
def test_installs_only_where_it_is_missing(path):
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert 'find_spec("corrq_jax") is None' in first.source
    installs = [
        line for cell in notebook.cells for line in cell.source.splitlines() if "pip" in line
    ]
    assert len(installs) == 1
    extra = re.fullmatch(r'    %pip install -q "corrq_jax\[(\w+)\]"', installs[0])
    assert extra is not None
    assert extra[1] in PROJECT["optional-dependencies"]


EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, kernel_name="here", timeout=300).execute()
nbformat.write(notebook, sys.argv[2])
"""


def execute(path, folder):
    """The notebook with its outputs, run by a kernel that is the running interpreter."""
    spec = folder / "kernels" / "here" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "here", "language": "python"}))
    places = {"JUPYTER_PATH": folder, "JUPYTER_RUNTIME_DIR": folder, "IPYTHONDIR": folder}
    environment = os.environ | {name: str(place) for name, place in places.items()}
    # In its own process: the notebook machinery leaves sockets to the garbage collector.
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), str(folder / "out.ipynb")],
        env=environment | {"CORRQ_SMOKE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return nbformat.read(folder / "out.ipynb", as_version=4)


@every_notebook
def test_runs(path, tmp_path):
    notebook = execute(path, tmp_path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert "agreement" in "".join(o.get("text", "") for o in outputs)
