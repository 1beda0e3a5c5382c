"""What the site makes while it is built: formulas, the list of names, the list of decisions, the changelog."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import griffe
from latex2mathml.converter import convert

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
DIRECTIVE = re.compile(r"^::: crossfluence\.(\w+)$", re.MULTILINE)


class Examples(griffe.Extension):
    """Reads `Example:` as the section of examples, which the reference prints as code."""

    def on_instance(self, *, obj, **_):
        """Renames the section of one object."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)


def on_config(config):
    """Lists the decisions in the navigation, and keeps the order of the reference."""
    reference = next(entry["API reference"] for entry in config.nav if "API reference" in entry)
    config.extra["reference"] = [next(iter(entry.values())) for entry in reference if isinstance(entry, dict)]
    pages = [f"decisions/{page.name}" for page in sorted((DOCS / "decisions").glob("*.md"))]
    config.nav = [{"Decisions": pages} if entry == {"Decisions": "DECISIONS"} else entry for entry in config.nav]
    return config


def on_page_markdown(markdown, *, page, config, **_):
    """Fills the page of all names, and the changelog."""
    if page.file.src_uri == "api/index.md":
        return markdown.replace("<!-- names -->", _names(tuple(config.extra["reference"])))
    if page.file.src_uri == "changelog.md":
        return markdown.replace("<!-- changes -->", _changes())
    return markdown


def on_page_content(content, **_):
    """Formulas as MathML, which browsers draw without a script or a font of another host."""
    return FORMULA.sub(_mathml, content)


def _mathml(formula: re.Match[str]) -> str:
    _, bracket, text = formula.groups()
    drawn = convert(html.unescape(text), display="block" if bracket == "[" else "inline")
    return drawn.replace("&#x0005E;", "&#x002C6;")  # a hat that stands close above its letter


@cache
def _names(pages: tuple[str, ...]) -> str:
    """One table for each page of the reference: every name, and the first line of its docstring."""
    package = griffe.load("crossfluence", search_paths=[ROOT / "src"])
    tables = []
    for page in pages:
        text = (DOCS / page).read_text()
        names = [name for name in DIRECTIVE.findall(text) if name in package.exports]
        if names:
            title = text.partition("\n")[0].removeprefix("# ")
            rows = [f"| [`{name}`][crossfluence.{name}] | {_first_line(package[name])} |" for name in names]
            tables.append("\n".join([f"## [{title}]({Path(page).name})", "", "| name | summary |", "|---|---|", *rows]))
    return "\n\n".join(tables)


def _first_line(thing: griffe.Object | griffe.Alias) -> str:
    line = thing.docstring.value.partition("\n\n")[0].replace("\n", " ") if thing.docstring else ""
    return line.replace("|", "\\|")


@cache
def _changes() -> str:
    """The fragments of `changelog.d` as towncrier puts them together, above the released versions."""
    draft = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "Next", "--date", "not yet released"]
    done = subprocess.run(draft, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"towncrier could not read changelog.d: {done.stderr}")
    released = ROOT / "CHANGELOG.md"
    return done.stdout + (released.read_text() if released.exists() else "")
