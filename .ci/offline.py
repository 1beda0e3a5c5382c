"""Fails if a page of a built site would ask another host for anything: `python .ci/offline.py site`."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

LOADED = {
    "link": "href",
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}
NOT_LOADED = {"canonical", "alternate", "next", "prev", "license"}  # relations of a link that browsers do not fetch
IN_STYLES = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")
IN_SCRIPTS = re.compile(
    r"""(?:import\s*\(|importScripts\s*\(|fetch\s*\(|new Worker\s*\()\s*["'`]((?:https?:)?//[^"'`]+)"""
)


class Page(HTMLParser):
    """Collects the addresses that a browser fetches when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what one tag loads."""
        given = {name: value or "" for name, value in attrs}
        if tag in LOADED and not (tag == "link" and set(given.get("rel", "").split()) <= NOT_LOADED):
            self.addresses += [given.get(LOADED[tag], "")]
        self.addresses += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]


def others(path: Path) -> list[str]:
    """The addresses of other hosts that one file of a site loads."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".css":
        return IN_STYLES.findall(text)
    if path.suffix == ".js":
        return IN_SCRIPTS.findall(text)
    page = Page()
    page.feed(text)
    loaded = [address for address in page.addresses if re.match(r"(https?:)?//", address)]
    return loaded + IN_STYLES.findall(text) + IN_SCRIPTS.findall(text)


def main(site: Path) -> None:
    """Prints how much was looked at; ends the program with a list if anything is loaded from another host."""
    files = [path for path in sorted(site.rglob("*")) if path.suffix in {".html", ".css", ".js"}]
    found = [f"{path.relative_to(site)} loads {address}" for path in files for address in others(path)]
    if found or not files:
        raise SystemExit("\n".join(found) or f"{site} holds no page.")
    print(f"{len(files)} pages, styles and scripts load nothing from another host.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
