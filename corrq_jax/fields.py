"""Fields of records: checked when a record is made, and read strictly from JSON."""

import dataclasses
import math
import operator
from typing import Any

import numpy as np

from corrq_jax.errors import InputError


def set_float(record: Any, name: str, *, optional: bool = False) -> None:
    """Makes one field a finite Python float (numpy and JAX scalars included), or says why not."""
    value = getattr(record, name)
    if optional and value is None:
        return
    where = f"{type(record).__name__}.{name}"
    allowed = "a finite number" + (", or None where it was not measured" if optional else "")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where} is {value!r}; give {allowed}") from None
    if not math.isfinite(number):
        raise InputError(f"{where} is {number}; give {allowed}")
    object.__setattr__(record, name, number)


def set_int(record: Any, name: str, *, optional: bool = False) -> None:
    """Makes one field a Python int, or says why not."""
    value = getattr(record, name)
    if optional and value is None:
        return
    try:
        object.__setattr__(record, name, operator.index(value))
    except TypeError:
        where = f"{type(record).__name__}.{name}"
        allowed = "a whole number" + (", or None where it is not known" if optional else "")
        raise InputError(f"{where} is {value!r}; give {allowed}") from None


def check_flag(record: Any, name: str) -> None:
    """Raises if one field is neither True nor False."""
    value = getattr(record, name)
    if not isinstance(value, bool):
        raise InputError(f"{type(record).__name__}.{name} is {value!r}; give True or False")


def set_array(record: Any, name: str, dtype: type[np.generic]) -> None:
    """Makes one field a read-only vector of `dtype`."""
    array = _vector(record, name, dtype)
    array.flags.writeable = False
    object.__setattr__(record, name, array)


def set_tuple(record: Any, name: str, dtype: type[np.generic]) -> None:
    """Makes one field a tuple of finite Python numbers of `dtype`."""
    object.__setattr__(record, name, tuple(_vector(record, name, dtype).tolist()))


def _vector(record: Any, name: str, dtype: type[np.generic]) -> np.ndarray:
    where = f"{type(record).__name__}.{name}"
    array = np.asarray(getattr(record, name))
    if array.ndim != 1:
        raise InputError(f"{where} has shape {array.shape}; give a vector")
    if dtype is np.int64 and array.size and array.dtype.kind not in "iu":
        raise InputError(f"{where} has dtype {array.dtype}; give whole numbers")
    array = array.astype(dtype)
    if not np.isfinite(array).all():
        raise InputError(f"{where} holds NaN or infinity; give finite numbers")
    return array


def read_records(kind: type, values: object, where: str) -> tuple[Any, ...]:
    """A list of JSON objects as records."""
    if not isinstance(values, list):
        raise InputError(f"{where} of a run's JSON is {type(values).__name__}; it has to be a list")
    return tuple(read_record(kind, value, f"{where}[{i}]") for i, value in enumerate(values))


def read_record(kind: type, values: object, where: str) -> Any:
    """One record, if `values` has exactly its fields."""
    fields = {field.name for field in dataclasses.fields(kind)}
    names = set(values) if isinstance(values, dict) else set()
    if not isinstance(values, dict) or names != fields:
        raise InputError(
            f"{where} of a run's JSON lacks {sorted(fields - names)} and has unknown "
            f"{sorted(names - fields)}; a {kind.__name__} has exactly {sorted(fields)}"
        )
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} of a run's JSON: {error}") from error
