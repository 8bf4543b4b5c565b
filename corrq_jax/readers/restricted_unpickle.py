"""A pickle reader that can build plain data only.

`pickle.Unpickler` with an overridden `find_class` still runs the file's program in C, where a few
opcodes allocate what they are told to (a memo index of 2**32, a byte string of 2**60). Here the
opcodes run one by one on inert Python objects: nothing that a file names is imported, nothing is
called but the functions in the table that the caller passes, and every fault is one exception.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any


class UnpickleError(Exception):
    """The pickle is cut short, malformed, or asks for something that is not allowed."""


class Global:
    """A name that the pickle refers to, for instance `torch.FloatStorage`; never imported."""

    def __init__(self, name: str):
        self.name = name


_MARK = object()

_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def unpickle(
    file: io.BytesIO,
    functions: Mapping[str, Callable[..., Any]],
    constants: frozenset[str],
    persistent_load: Callable[[Any], Any],
) -> Any:
    """Reads one pickle from the file's position and leaves the position after it.

    Args:
        file: the pickle, in memory.
        functions: what may be called, by dotted name. They are called with the pickle's own
            arguments, so they must check them.
        constants: dotted names that may be referred to, but not called.
        persistent_load: makes an object of a persistent id.

    Returns:
        The unpickled object: dicts with str or int keys, lists, tuples, numbers, text, bytes,
        `Global`s, and what the functions returned.

    Raises:
        UnpickleError: for anything else; `functions` and `persistent_load` may raise it as well.
    """
    machine = _Machine(functions, constants, persistent_load)
    size, frame_end = len(file.getbuffer()), 0
    try:
        for opcode, argument, start in pickletools.genops(file):
            is_cut = start is not None and start < frame_end < file.tell()
            if opcode.name == "FRAME" and not is_cut:
                frame_end = file.tell() + (argument or 0)
            if is_cut or frame_end > size or (opcode.name == "STOP" and file.tell() < frame_end):
                raise UnpickleError("its pickle is malformed or cut short (a frame ends elsewhere)")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (ValueError, OverflowError) as error:  # what pickletools raises for malformed opcodes
        raise UnpickleError(f"its pickle is malformed or cut short ({error})") from error
    raise UnpickleError("its pickle is cut short")


class _Machine:
    """The pickle virtual machine: a stack, a memo, and one method for each kind of opcode."""

    def __init__(self, functions, constants, persistent_load):
        self._functions = functions
        self._constants = constants
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLE_SIZES:
            items = [self.pop() for _ in range(_TUPLE_SIZES[name])]
            self._stack.append(tuple(reversed(items)))
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise UnpickleError(f"its pickle uses the opcode {name}, which is not allowed")

    def pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise UnpickleError("its pickle is malformed (the stack is empty)")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        value = self._stack[-1] if self._stack else None
        if type(value) is not kind:
            raise UnpickleError(f"its pickle is malformed (expected a {kind.__name__})")
        return value

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while self._stack and self._stack[-1] is not _MARK:
            items.append(self._stack.pop())
        if not self._stack:
            raise UnpickleError("its pickle is malformed (a mark is missing)")
        self._stack.pop()
        return items[::-1]

    def _ignore(self, _):
        pass

    def _protocol(self, version):
        if version > pickle.HIGHEST_PROTOCOL:
            raise UnpickleError(f"its pickle is of protocol {version}, which is not known")

    def _mark(self, _):
        self._stack.append(_MARK)

    def _pop_mark(self, _):
        self._pop_to_mark()

    def _discard(self, _):
        self.pop()

    def _tuple(self, _):
        self._stack.append(tuple(self._pop_to_mark()))

    def _append(self, _):
        item = self.pop()
        self._top(list).append(item)

    def _appends(self, _):
        items = self._pop_to_mark()
        self._top(list).extend(items)

    def _set_item(self, _):
        value, key = self.pop(), self.pop()
        self._update([key, value])

    def _set_items(self, _):
        self._update(self._pop_to_mark())

    def _update(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2:
            raise UnpickleError("its pickle is malformed (a dictionary key has no value)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Also keeps out deeply nested tuples, whose hash would overflow the C stack.
            if not isinstance(key, str | int):
                raise UnpickleError(
                    f"it has a dictionary key of type {type(key).__name__}; only text and "
                    "whole numbers are allowed"
                )
            target[key] = value

    def _put(self, index):
        if not self._stack or self._stack[-1] is _MARK:
            raise UnpickleError("its pickle is malformed (nothing to memoize)")
        self._memo[index] = self._stack[-1]

    def _memoize(self, _):
        self._put(len(self._memo))

    def _get(self, index):
        if index not in self._memo:
            raise UnpickleError(f"its pickle is malformed (memo entry {index} is missing)")
        self._stack.append(self._memo[index])

    def _global(self, argument):
        self._push_global(*argument.split(" ", 1))

    def _stack_global(self, _):
        name, module = self.pop(), self.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise UnpickleError("its pickle is malformed (a global's name is not text)")
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in self._functions and full not in self._constants:
            raise UnpickleError(
                f"it asks for the Python object {full!r}, which could run code; only the names "
                "that rebuild tensors are allowed"
            )
        self._stack.append(Global(full))

    def _reduce(self, _):
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or function.name not in self._functions:
            raise UnpickleError("its pickle calls something that is not a tensor-rebuilding name")
        if type(arguments) is not tuple:
            raise UnpickleError(f"it calls {function.name} with arguments that are not a tuple")
        try:
            self._stack.append(self._functions[function.name](*arguments))
        except TypeError as error:
            raise UnpickleError(f"it calls {function.name} with bad arguments ({error})") from error

    def _build(self, _):
        self.pop()  # Attributes of a dict (PyTorch's `_metadata`): nothing here uses them.
        self._top(dict)

    def _persistent(self, _):
        self._stack.append(self._persistent_load(self.pop()))


_ACTIONS = {
    "PROTO": _Machine._protocol,
    "FRAME": _Machine._ignore,
    "MARK": _Machine._mark,
    "POP": _Machine._discard,
    "POP_MARK": _Machine._pop_mark,
    "TUPLE": _Machine._tuple,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}
