import sys

import pytest

from corrq_jax import errors


def test_classes_can_be_caught_as_builtin_ones():
    assert issubclass(errors.InputError, errors.CorrqError | ValueError)
    for error, builtin in (
        (errors.InputError, ValueError),
        (errors.FileFormatError, ValueError),
        (errors.MissingDependencyError, ImportError),
    ):
        assert issubclass(error, errors.CorrqError)
        assert issubclass(error, builtin)


@pytest.mark.parametrize("module", ["no_such_module", "no_such_module.part", "json.no_such_part"])
def test_missing_module_names_the_extra(module):
    message = rf"{module} is needed.*pip install 'corrq_jax\[files\]'"
    with pytest.raises(errors.MissingDependencyError, match=message):
        errors.require(module, "files")


def test_installed_module_is_returned():
    assert errors.require("json.decoder", "files") is sys.modules["json.decoder"]


def test_a_module_that_lacks_another_raises_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "corrq_test_broken.py").write_text("import no_such_module_inside\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_inside") as error:
        errors.require("corrq_test_broken", "files")
    assert not isinstance(error.value, errors.MissingDependencyError)
