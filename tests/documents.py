"""The documents, and the code blocks in them."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
BLOCK = re.compile(
    r"(<!-- checked, not run: [^\n]+ -->\n)?^```(\S*)[^\n]*\n(.*?)^```$", re.M | re.S
)
LANGUAGES = {"python", "sh", "json", "text"}  # the last two show what is written and printed


def name_of(document):
    """Its path from the root."""
    return document.relative_to(ROOT).as_posix()
