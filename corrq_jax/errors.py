"""Errors raised by this package and the lazy import of optional dependencies."""

import importlib
import types


class CorrqError(Exception):
    """Base class of every error that this package raises on purpose."""


class InputError(CorrqError, ValueError):
    """An argument or a weight that cannot be used; the message names it and what is allowed."""


class FileFormatError(CorrqError, ValueError):
    """A file that cannot be read; the message names the path, the fault and what to do."""


class MissingDependencyError(CorrqError, ImportError):
    """An optional dependency that is not installed; the message says how to install it."""


def require(module: str, extra: str) -> types.ModuleType:
    """Imports an optional dependency at the time it is needed.

    Args:
        module: dotted name of the module, for instance `"h5py"`.
        extra: the extra of this package that installs it, for instance `"files"`.

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: if the module is not installed. A module that is installed but
            fails on an import of its own raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not _is_or_contains(error.name, module):
            raise
        raise missing(module, extra) from error


def missing(name: str, extra: str) -> MissingDependencyError:
    """Builds the error for a module or package `name` that the extra `extra` would install."""
    return MissingDependencyError(
        f"{name} is needed here but is not installed. Run: pip install 'corrq_jax[{extra}]'",
        name=name,
    )


def _is_or_contains(missing_name: str | None, module: str) -> bool:
    """Tells whether the module that was not found is `module` itself or one of its parents."""
    return missing_name is not None and f"{module}.".startswith(f"{missing_name}.")
