"""Public docstrings say what goes in, what comes out, what is raised, and show an example."""

import dataclasses
import importlib
import inspect
import re

import pytest
from test_public_api import PUBLIC

PUBLIC_NAMES = [(module, name) for module, names in PUBLIC.items() for name in names.split()]
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")


def sections(text):
    """The sections of a docstring by their titles."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def described(section):
    """The names that a section describes."""
    return set(re.findall(r"^ {4}\*{0,2}(\w+)(?: \([^)]*\))?:", section, re.M))


def objects(kind):
    found = {}
    for module, name in PUBLIC_NAMES:
        value = getattr(importlib.import_module(module), name)
        if kind(value):
            found[f"{value.__module__}.{name}"] = value
    return [pytest.param(value, id=key) for key, value in found.items()]


def is_function(value):
    return callable(value) and not inspect.isclass(value)


def takes(function):
    """The names of its parameters."""
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("function", objects(is_function))
def test_a_function_says_what_it_takes_and_returns(function):
    text = inspect.getdoc(function)
    found = sections(text)
    if len(takes(function)) > 1:  # what takes one thing may say in its first line which
        assert described(found["Args"]) == set(takes(function))
        annotation = inspect.signature(function).return_annotation
        assert annotation in (None, "None") or found.keys() & {"Returns", "Yields"}


@pytest.mark.parametrize("function", objects(is_function))
def test_a_function_that_checks_says_what_it_raises(function):
    source = inspect.getsource(inspect.unwrap(function))
    raised = set(re.findall(r"raise (\w+Error)\(", source))
    named = described(sections(inspect.getdoc(function)).get("Raises", ""))
    assert raised <= named


@pytest.mark.parametrize("kind", objects(dataclasses.is_dataclass))
def test_a_record_describes_each_of_its_fields(kind):
    fields = {field.name for field in dataclasses.fields(kind) if not field.name.startswith("_")}
    assert fields <= described(sections(inspect.getdoc(kind)).get("Attributes", ""))


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_module_shows_an_example(module):
    value = importlib.import_module(module)
    texts = [inspect.getdoc(value) or ""]
    texts += [inspect.getdoc(getattr(value, name)) or "" for name in PUBLIC[module].split()]
    assert any(">>> " in text for text in texts)
