"""A tree of its leaves by name, and of what its nodes are: what `layout.plan` took apart."""

from collections.abc import Mapping
from typing import Any

from corrq_jax import paths


def tree_of(leaves: Mapping[str, Any], containers: Mapping[str, str]) -> Any:
    """The tree.

    Args:
        leaves: by name, the escaped keys from the root joined by "/"; none of them a dictionary.
        containers: what the nodes are that are not dictionaries with text keys, as
            docs/format.md says.

    Raises:
        ValueError: the names contradict each other; nothing is left out silently.
        RecursionError: the names are thousands of keys long.

    >>> tree_of({"a/0": 1, "a/1": 2}, {"a": "list", "b": "none"})
    {'a': [1, 2], 'b': None}
    """
    if "" in leaves or "leaf" in containers.values():
        if list(leaves) != [""] or dict(containers) != {"": "leaf"}:
            raise ValueError("a tree that is one leaf has other names")
        return leaves[""]
    root: dict[str, Any] = {}
    for name in filter(None, containers):
        _put(root, name, {})
    for name, leaf in leaves.items():
        _put(root, name, leaf)
    return _rebuilt(root, "", containers)


def _put(root: dict[str, Any], name: str, node: Any) -> None:
    *parents, last = name.split("/")
    parent = root
    for key in parents:
        parent = parent.setdefault(key, {})
        if not isinstance(parent, dict):
            raise ValueError(f"{name!r} is below a leaf")
    if parent.setdefault(last, node) is not node and node != {}:
        raise ValueError(f"{name!r} is a leaf and a node")


def _rebuilt(node: Any, name: str, containers: Mapping[str, str]) -> Any:
    if not isinstance(node, dict):
        return node
    prefix = f"{name}/" if name else ""
    items = {key: _rebuilt(child, prefix + key, containers) for key, child in node.items()}
    kind = containers.get(name)
    if kind in ("none", "dict"):
        if items:
            raise ValueError(f"{name!r} should be empty and is not")
        return None if kind == "none" else {}
    if kind in ("list", "tuple"):
        if items.keys() != {str(i) for i in range(len(items))}:
            raise ValueError(f"the keys of the {kind} {name!r} are not 0, 1, 2 and so on")
        ordered = [items[str(i)] for i in range(len(items))]
        return ordered if kind == "list" else tuple(ordered)
    if kind == "int":
        found = {int(key): child for key, child in items.items()}
        written = map(str, found)
    else:
        found = {paths.unescape(key): child for key, child in items.items()}
        written = map(paths.escape, found)
    if list(written) != list(items):
        raise ValueError(f"a key of {name!r} is not written as keys are")
    return found
