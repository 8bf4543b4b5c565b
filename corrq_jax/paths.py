"""Paths in a tree: the keys from the root to a leaf, joined by "/"."""

from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from corrq_jax.errors import InputError
from corrq_jax.tensor import is_quantized


def key_name(entry: Any) -> str:
    """One key of a path as text."""
    match entry:
        case DictKey(key=key) | FlattenedIndexKey(key=key):
            return str(key)
        case SequenceKey(idx=index):
            return str(index)
        case GetAttrKey(name=name):
            return name
    return str(entry)


def flatten(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """(path, leaf) for every leaf, a `QuantizedTensor` being one, and the tree's structure.

    Raises:
        InputError: two leaves have the same path, as keys that contain "/" can bring about.

    >>> flatten({"a": [1, 2]})[0]
    [('a/0', 1), ('a/1', 2)]
    """
    found, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_quantized)
    entries = [("/".join(map(key_name, keys)), leaf) for keys, leaf in found]
    seen: set[str] = set()
    for path, _ in entries:
        if path in seen:
            raise InputError(f"two leaves have the path {path!r}; rename one of their keys")
        seen.add(path)
    return entries, treedef


def escape(key: str) -> str:
    """A key for use between slashes, as in a JSON pointer (RFC 6901); "~2" if it is empty."""
    return key.replace("~", "~0").replace("/", "~1") or "~2"


def unescape(key: str) -> str:
    """The key that `escape` was given."""
    return key.replace("~2", "").replace("~1", "/").replace("~0", "~")


def children(node: Any) -> list[tuple[Any, Any]] | None:
    """(key, child) of one node, or None if it is a leaf."""
    if is_quantized(node):
        return None
    found, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if jax.tree_util.treedef_is_leaf(treedef) and len(found) == 1:
        return None
    return [(keys[0], child) for keys, child in found]
