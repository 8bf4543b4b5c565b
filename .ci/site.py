"""Fails if a built site loads anything from another host; links to other sites are fine.

python .ci/site.py SITE
"""

import pathlib
import re
import sys
from html.parser import HTMLParser

# Attributes whose target a browser fetches by itself; those of links wait for a click.
_FETCHED = {"src", "srcset", "poster", "data", "action", "background"}
_FOREIGN = re.compile(r"\s*(https?:)?//", re.I)
_IN_CSS = re.compile(r"(?:url\(\s*|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)", re.I)


class _Fetched(HTMLParser):
    """Collects what a page fetches from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            fetched = name in _FETCHED or (tag == "link" and name == "href")
            if fetched and value and _FOREIGN.match(value):
                self.found.append(f"<{tag} {name}={value}>")
            if name == "style" and value:
                self.found += _IN_CSS.findall(value)


def foreign(path: pathlib.Path) -> list[str]:
    """What a file of the site fetches from elsewhere."""
    text = path.read_text(encoding="utf-8")
    found = _IN_CSS.findall(text)
    if path.suffix == ".html":
        parser = _Fetched()
        parser.feed(text)
        found += parser.found
    return found


def main() -> int:
    """Checks all pages, style sheets and figures."""
    site = pathlib.Path(sys.argv[1])
    files = [p for p in site.rglob("*") if p.suffix in (".html", ".css", ".svg")]
    pages = sum(p.suffix == ".html" for p in files)
    if not (site / "index.html").exists():
        print(f"{site}: there is no index.html")
        return 1
    wrong = {path: found for path in files if (found := foreign(path))}
    for path, found in wrong.items():
        print(f"{path}: fetched from elsewhere: {', '.join(found)}")
    print(f"site: {pages} pages, {len(wrong)} of them fetch from elsewhere")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
