"""Files that label the pictures of a folder."""

import os
import pathlib
import re
from collections.abc import Sequence

from corrq_jax.data.classes import class_index
from corrq_jax.errors import FileFormatError, InputError

# The label is the last word; the name before it may have blanks.
_LINE = re.compile(r"(?:(?P<name>.+?)[\s,]+)?(?P<label>[^\s,]+)")
_SHOWN = 10  # problems spelled out in an error; a wrong file may have one for each of 50,000 lines


def read_labels(path: str | os.PathLike[str], pictures: Sequence[str], classes: int) -> list[int]:
    """Reads the labels of pictures from a text file.

    Each line is a picture's name and its label, with blanks or a comma between them, and the lines
    may come in any order; or each line is a label only, for the pictures as they are sorted. A
    label is the index of a class or, for the 1000 classes of ImageNet, its WordNet id. Empty lines
    do not count.

    Args:
        path: the file, in UTF-8.
        pictures: names of all pictures, sorted.
        classes: how many classes there are.

    Returns:
        The index of the class of each picture.

    Raises:
        InputError: `path` is not a file.
        FileFormatError: a picture has no label, a label no picture, or a label stands for no
            class; all such problems are in the one error.
    """
    path = pathlib.Path(path)
    rows = _rows(path)
    problems: list[str] = []
    if any(name is not None for _, name, _ in rows):
        texts = _by_name(rows, pictures, problems)
    else:
        texts = [(number, label) for number, _, label in rows]
        if len(rows) != len(pictures):
            problems.append(f"{len(rows)} labels for {len(pictures)} pictures")
    indices = [_index(number, label, classes, problems) for number, label in texts]
    if problems:
        raise FileFormatError(_message(path, problems))
    return indices


def _rows(path: pathlib.Path) -> list[tuple[int, str | None, str]]:
    """(number of the line, name, label) of each line that is not empty."""
    if not path.is_file():
        raise InputError(f"labels: {path} is not a file; give a text file with a label a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not text in UTF-8 ({error}); save it as such") from None
    return [(number, *_split(line.strip())) for number, line in enumerate(lines, 1) if line.strip()]


def _split(line: str) -> tuple[str | None, str]:
    match = _LINE.fullmatch(line)
    # A line that ends in a comma has no label: taken as one whole, it is reported as a bad label.
    return (match["name"], match["label"]) if match else (None, line)


def _by_name(
    rows: list[tuple[int, str | None, str]], pictures: Sequence[str], problems: list[str]
) -> list[tuple[int, str]]:
    """(number of the line, label) for each picture that has one; the rest go to `problems`."""
    found: dict[str, tuple[int, str]] = {}
    known = set(pictures)
    for number, name, label in rows:
        if name is None:
            problems.append(f"line {number}: {label!r} stands alone; other lines have a name too")
        elif name not in known:
            problems.append(f"line {number}: there is no picture {name}")
        elif name in found:
            problems.append(f"line {number}: {name} has a label in line {found[name][0]} already")
        else:
            found[name] = (number, label)
    problems.extend(f"picture {name} has no label" for name in pictures if name not in found)
    return [found[name] for name in pictures if name in found]


def _index(number: int, label: str, classes: int, problems: list[str]) -> int:
    try:
        return class_index(label, classes)
    except InputError as error:
        problems.append(f"line {number}: {error}")
        return -1


def _message(path: pathlib.Path, problems: list[str]) -> str:
    shown = "; ".join(problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{path} does not label the pictures: {shown}{more}"
