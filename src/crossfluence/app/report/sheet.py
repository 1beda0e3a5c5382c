"""The scores of a corpus as CSV: with the table's own ids and columns, the place in the file, and the text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import IdError
from ...words.corpus.corpus import Corpus
from ...words.corpus.names import id_field

if TYPE_CHECKING:
    from ..._results.scores import Scores
    from ..._types import Id

LINE, TEXT, SOURCE = "line", "text", "source"


def own_ids(corpus: Corpus, column: str | None = None) -> tuple[str, ...] | None:
    """The table's own id of every sentence.

    Args:
        corpus: With its fields.
        column: That holds the ids; default: told by its name, see `id_field`.

    Returns:
        n ids; nothing if the files have no such column. Sentences of one record share its id.

    Raises:
        IdError: If there is no such column.
    """
    if column is not None and column not in corpus.fields:
        known = ", ".join(map(repr, corpus.fields)) or "none"
        near = next((name for name in corpus.fields if name.lower() == column.lower()), None)
        meant = f" Did you mean {near!r}?" if near else ""
        raise IdError(f"There is no column {column!r} with ids; beside the text there are: {known}.{meant}")
    name = column or id_field(corpus.fields, corpus.document.tolist())
    return None if name is None else tuple(label.strip() for label in corpus.fields[name])


def shown_ids(corpus: Corpus, own: Sequence[str] | None) -> dict[Id, str]:
    """The label of each sentence for a person: its own id, with the line where several share it, or the line.

    Args:
        corpus: The sentences.
        own: Their own ids, if they have any.

    Returns:
        Text by the corpus's own label of a sentence.
    """
    if own is None:
        return {label: f"line {label}" for label in corpus.ids}
    once = _once(own)
    return {
        label: name if name in once else _with_line(name, label) for label, name in zip(corpus.ids, own, strict=True)
    }


def _with_line(name: str, label: str) -> str:
    return f"{name} (line {label})" if name else f"line {label}"


def words_csv(scores: Scores, corpus: Corpus, texts: Mapping[Id, str], own: Sequence[str] | None) -> bytes:
    """One row for each sentence, those with the strongest score of the first question first.

    Args:
        scores: Of all sentences.
        corpus: The sentences.
        texts: Their text.
        own: Their own ids, if they have any.

    Returns:
        Columns: `id` (the table's own, if it has one), `line` (line of the file, with ".2" for the second sentence of a
        cell and the file's name if there are several), one for each question, `text`, the other columns of the table,
        and `source` (the document or file) if the table has no such column.
    """
    import pandas as pd

    named = {"id": own} if own is not None else {}
    named |= {LINE: corpus.ids}
    named |= {name: scores.values[:, place].tolist() for place, name in enumerate(scores.objectives)}
    named |= {TEXT: [texts[label] for label in corpus.ids]}
    for name, values in corpus.fields.items():
        if not (name == "id" and tuple(values) == own):
            named[_free(name, named)] = values
    if SOURCE not in named:
        named[SOURCE] = [source_of(corpus, row) for row in range(corpus.n)]
    named = {name: [no_formula(cell) for cell in cells] for name, cells in named.items()}
    frame = pd.DataFrame(named)
    order = frame[scores.objectives[0]].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order].to_csv(index=False, lineterminator="\n").encode()


def no_formula(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe before it.

    Args:
        cell: Text, or a number, which stays.

    Returns:
        The cell.

    Example:
        >>> [no_formula(cell) for cell in ("=1+1", "-5", "- no", 3.5)]
        ["'=1+1", '-5', "'- no", 3.5]
    """
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def source_of(corpus: Corpus, row: int) -> str:
    """The article of a sentence, or its file."""
    document = corpus.documents[corpus.document[row]]
    if not corpus.ids[row].startswith(document):
        return document
    known = corpus.source.files[0].path if corpus.source else ""
    return document.rpartition(":")[0] or Path(known).name  # a record of a table is its own document


def _free(name: str, taken: Iterable[str]) -> str:
    """A column's name, marked if it is taken already."""
    return f"{name} (table)" if name in taken else name


def _once(names: Sequence[str]) -> set[str]:
    """Those that stand there once; none that is empty."""
    seen, twice = set[str](), {""}
    for name in names:
        (twice if name in seen else seen).add(name)
    return seen - twice
