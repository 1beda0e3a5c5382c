"""The list of all that was tried with a result, as JSON and as text that can be sent to somebody."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..._storage.atomic import write_atomically
from ...errors import ResultFileError

JSON, TEXT = "tried.json", "tried.md"
FORMAT = "crossfluence.tried/1"
NAMED = 12  # samples that are named in the text
VERBS = {"remove": "trained again without", "undo": "undid", "amplify": "amplified"}
Entry = dict[str, Any]


class TriedList:
    """All that was tried, in a folder; each addition is written whole.

    Args:
        folder: Of the result.
        title: Of the data.
        noun: What a sample is called.

    Raises:
        ResultFileError: If the list there is damaged.
    """

    def __init__(self, folder: Path, title: str, noun: str) -> None:
        self.folder, self.title, self.noun = folder, title, noun
        self._lock = threading.Lock()
        self._entries = _read(folder / JSON)

    @property
    def entries(self) -> list[Entry]:
        """All, in the order in which they ended."""
        return list(self._entries)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Keeps one more, in both files."""
        with self._lock:
            self._entries.append(dict(entry))
            said = {"format": FORMAT, "title": self.title, "entries": self._entries}
            whole = json.dumps(said, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            write_atomically(self.folder / JSON, whole.encode())
            write_atomically(self.folder / TEXT, self.text().encode())

    def found(self, entry: Mapping[str, Any]) -> Entry | None:
        """The outcome of the same action on the same question and samples, if it was tried."""
        return next((one for one in self._entries if all(one.get(key) == entry[key] for key in entry)), None)

    def text(self) -> str:
        """The list as Markdown."""
        lines = [f"# Tried with {_plain(self.title)}", ""]
        if not self._entries:
            lines.append("Nothing yet.")
        for number, one in enumerate(self._entries, start=1):
            lines += [f"{number}. {sentence(one, self.noun)}"]
        return "\n".join(lines) + "\n"


def sentence(one: Mapping[str, Any], noun: str) -> str:
    """One entry in words.

    Args:
        one: An entry.
        noun: What a sample is called.

    Returns:
        A line of Markdown.
    """
    ids: Sequence[str] = one["ids"]
    shown = ", ".join(_plain(label) for label in ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
    asked = f"{noun} {_plain(one['query'])}, cluster {one.get('first')} against {one.get('second')}, margin"
    if "kind" in one:  # about words
        asked = f"{one['kind']} {_plain(one['query'])}, value"
    unit = "" if one.get("kind") == "test" else " nats"
    newton = "" if one["newton"] is None else f", {one['newton']:+.4f} by one Newton step"
    what = f"{VERBS[one['action']]} {len(ids)} {noun}{'s' if len(ids) != 1 else ''} ({shown})"
    return (
        f"{one['when']}: {asked} {one['margin']:.4f}{unit}; {what}: predicted {one['predicted']:+.4f} by the sum of "
        f"scores{newton}, achieved {one['achieved']:+.4f}."
    )


def _plain(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    line = " ".join(str(text).split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|!&" else letter for letter in line)


def _read(file: Path) -> list[Entry]:
    if not file.exists():
        return []
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise ResultFileError(f"{file} has the format {said['format']!r}; needed {FORMAT!r}. Move it elsewhere.")
        return list(said["entries"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultFileError(f"{file} is damaged. Move it elsewhere, and a new list is begun.") from error
