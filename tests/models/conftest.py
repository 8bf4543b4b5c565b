"""What the networks' tests leave behind is given back: gigabytes of weights and compiled code."""

import gc
import sys

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def give_back_memory():
    yield
    jax.clear_caches()
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
    gc.collect()
