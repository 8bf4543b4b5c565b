"""Every code block of the documents runs, in the page's order, in one folder and namespace a page.

Python blocks run as they are; one that begins with the name of a file, `# NAME.py`, is written to
it, for a later block to import. In blocks of `sh` each command of `corrq` runs; after a comment
`<!-- checked, not run: WHY -->` it is only parsed: its options exist and take these values. The
extras that pip installs, and the scripts that python runs, exist.
"""

import pathlib
import re
import shlex
import sys
import tomllib

import pytest
import typer
from documents import BLOCK, DOCUMENTS, LANGUAGES, ROOT, name_of

from corrq_jax import models
from corrq_jax.cli.app import app
from corrq_jax.core.grids import GRIDS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def registries():
    """Pages may add grids and networks; they are gone afterwards."""
    kept = [(registry, dict(registry)) for registry in (GRIDS, models._MODELS)]
    yield
    for registry, entries in kept:
        registry.clear()
        registry.update(entries)


def commands(block):
    """The words of each command of a block of sh, `&&` and continued lines resolved."""
    for line in block.replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            if words:
                yield [pathlib.Path(words[0]).name, *words[1:]]


def parse(words):
    """What the command line makes of the words, as if to run them."""
    command = typer.main.get_command(app)
    if words and not words[0].startswith("-"):
        command = command.commands[words[0]]
        words = words[1:]
    command.make_context(command.name, list(words), resilient_parsing=False)


def check_pip(words):
    """That what is installed from this project exists."""
    for word in words:
        for extra in re.findall(r"\[([\w,]+)\]", word):
            assert set(extra.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    groups = [words[i + 1] for i, word in enumerate(words) if word == "--group"]
    assert set(groups) <= PROJECT["dependency-groups"].keys()


def check_python(words):
    """That a script exists and knows the options that it is given."""
    if words[0] == "-m":
        assert words[1] in ("venv", "corrq_jax")
        return
    source = (ROOT / words[0]).read_text()
    for option in (word for word in words[1:] if word.startswith("--")):
        assert f'"{option}"' in source, (words[0], option)


def check(words, run, only_parse):
    """Runs or checks one command."""
    name, *rest = words
    if name == "corrq" and only_parse:
        parse(rest)
    elif name == "corrq":
        code, _, err = run(*rest)
        assert code == 0, err
    elif name == "pip":
        check_pip(rest)
    elif name in ("python", "python3"):
        check_python(rest)
    elif name == "bash":
        assert (ROOT / rest[0]).exists()
    else:
        assert name in ("pytest", "sphinx-build"), words


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
@pytest.mark.usefixtures("registries")
def test_code_blocks_run(document, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])  # pages may write modules
    namespace: dict = {"__name__": "__main__"}
    for found in BLOCK.finditer(document.read_text()):
        marked, language, text = found.groups()
        line = document.read_text()[: found.start(3)].count("\n")
        if language == "python" and (name := re.match(r"# (\w+\.py)\n", text)):
            pathlib.Path(name[1]).write_text(text)
        elif language == "python":
            code = compile("\n" * line + text, str(document), "exec")
            exec(code, namespace)
        elif language == "sh":
            for words in commands(text):
                check(words, run, only_parse=bool(marked))
        else:
            assert language in LANGUAGES or language.startswith("{"), (document.name, line)
