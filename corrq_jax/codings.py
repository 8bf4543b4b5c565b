"""How codes are stored: the names of the codings, and what they have in common."""

CODINGS = ("packed", "trellis", "entropy", "entropy-trellis")
"""Codes of b bits as they are; the same, followed along a trellis; entropy-coded in a file; both.

In memory all are packed.
"""


def along_trellis(coding: str) -> bool:
    """Whether the level of a weight follows from the codes before it, too."""
    return coding in ("trellis", "entropy-trellis")


def is_entropy_coded(coding: str) -> bool:
    """Whether a file has a stream of symbols in place of the codes."""
    return coding in ("entropy", "entropy-trellis")
