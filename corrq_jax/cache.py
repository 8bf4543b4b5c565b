"""The folder for what can be fetched or made again: weights, and compiled programs."""

import os
import pathlib

from corrq_jax.errors import require

VARIABLE = "CORRQ_CACHE"
"""The environment variable that names it."""


def cache_folder() -> pathlib.Path:
    """What the environment variable CORRQ_CACHE names, or the user's cache folder of the system.

    It need not exist.

    Raises:
        MissingDependencyError: platformdirs is not installed.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return pathlib.Path(named).expanduser().absolute()
    return require("platformdirs", "cli").user_cache_path("corrq_jax")
