"""Damage of all kinds, to bytes, to texts with numbers in them, and to JSON; by a random.Random."""

import copy
import json
import re

NUMBERS = [
    *(0, 1, 2, 3, 7, 8, 9, 127, 128, 255, 256, 65535, 65536),
    *(2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
]
VALUES = [
    *(None, True, False, 0.5, 1e308, -1, "", "x", "F32", "BF16", "U8", "F8_E4M3", [], {}, [[]]),
    *(float("inf"), float("nan"), "\ud800", "\0", [-1], [0], [1, 1], {"": 0}, 10**400),
]


def damaged(rng, data, others=()):
    """`data` after one to four accidents; others are files that pieces may come from."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(ACCIDENTS)(rng, data, others)
    return bytes(data)


def _flip(rng, data, _):
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(rng, data, _):
    at, size = _piece(rng, data)
    data[at : at + size] = rng.randbytes(size)


def _cut(rng, data, _):
    del data[rng.randint(0, len(data)) :]


def _lengthen(rng, data, _):
    data += rng.choice((b"\0", b"PK\5\6", rng.randbytes(rng.randint(1, 50)), bytes(1000)))


def _delete(rng, data, _):
    at, size = _piece(rng, data)
    del data[at : at + size]


def _repeat(rng, data, _):
    at, size = _piece(rng, data)
    data[at:at] = data[at : at + size] * rng.choice((1, 1, 2, 30))


def _splice(rng, data, others):
    source = rng.choice([data, *others])
    at, size = _piece(rng, source)
    where = rng.randint(0, len(data))
    piece = source[at : at + size]
    data[where : where + rng.choice((0, len(piece)))] = piece


def _number(rng, data, _):
    """A field of 1 to 8 bytes holds another number: nearby, or one on which programs stumble."""
    width, order = rng.choice((1, 2, 4, 4, 8, 8)), rng.choice(("little", "little", "big"))
    if len(data) < width:
        return
    at = rng.randint(0, len(data) - width)
    old = int.from_bytes(data[at : at + width], order)
    new = rng.choice((rng.choice(NUMBERS), len(data), old + rng.randint(-16, 16), old * 2, -old))
    data[at : at + width] = (new % (1 << 8 * width)).to_bytes(width, order)


def _digits(rng, data, _):
    """A number written in digits is another one."""
    found = list(re.finditer(rb"\d+", data))
    if found:
        match = rng.choice(found)
        new = rng.choice((rng.choice(NUMBERS), int(match[0][:20]) + rng.randint(-3, 3), -1))
        data[match.start() : match.end()] = str(new).encode()


ACCIDENTS = [_flip, _flip, _overwrite, _cut, _lengthen, _delete, _repeat, _splice, _number, _number,
             _digits]  # fmt: skip


def _piece(rng, data):
    at = rng.randint(0, len(data))
    return at, min(rng.choice((1, 2, 4, 8, 30, 300)), len(data) - at)


def damaged_json(rng, tree):
    """A copy of a tree of JSON with one to three nodes changed, removed, moved or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 3))):
        nodes = list(_containers(tree))
        if not nodes:
            return tree
        _change(rng, rng.choice(nodes), nodes)
    return tree


def _containers(node):
    if isinstance(node, dict | list):
        if node:
            yield node
        for child in node.values() if isinstance(node, dict) else node:
            yield from _containers(child)


def _change(rng, node, nodes):
    key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    how = rng.randrange(7)
    if how == 0:
        del node[key]
    elif how == 1:
        node[key] = _any_value(rng)
    elif how == 2 and type(node[key]) is int:
        node[key] += rng.choice((-1, 1, rng.randint(-40, 40)))
    elif how == 3:  # what is elsewhere
        other = rng.choice(nodes)
        children = list(other.values()) if isinstance(other, dict) else other
        node[key] = copy.deepcopy(rng.choice(children))
    elif how == 4 and isinstance(node, dict):
        node[rng.choice(("", "x", "a/b", "~", f"{key}:codes", f"{key}/0", "0"))] = node.pop(key)
    elif how == 5 and isinstance(node, list):
        node.insert(key, rng.choice((0, 1, copy.deepcopy(node[key]))))
    elif how == 6 and isinstance(node[key], str):
        text = bytearray(node[key].encode("utf-8", "surrogatepass"))
        rng.choice(ACCIDENTS)(rng, text, ())
        node[key] = text.decode("utf-8", "replace")
    else:
        node[key] = _any_value(rng)


def _any_value(rng):
    return copy.deepcopy(rng.choice((rng.choice(NUMBERS), rng.choice(VALUES))))


def to_json(tree):
    """JSON as text; what stands for deep nesting, which `json` would not write, is put in."""
    text = json.dumps(tree)
    return re.sub('"?@deep([0-9]+)"?', lambda m: "[" * int(m[1][:5]) + "]" * int(m[1][:5]), text)
