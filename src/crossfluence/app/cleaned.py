"""Tables and corpora without the rows that were found, written anew, ready to train on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from .._storage.atomic import write_atomically
from ..errors import ResultFileError
from ..words.corpus.corpus import Corpus
from ..words.corpus.readers import Sentence
from .table_files import read_frame

TABLES = (".csv", ".tsv", ".parquet", ".xlsx", ".jsonl")
CORPORA = (".txt", ".csv", ".jsonl")


def refuse_cleaned(path: Path, endings: Collection[str]) -> None:
    """Makes sure, before the work, that a cleaned file has an ending that can be written.

    Args:
        path: From `--write-cleaned`.
        endings: `TABLES` or `CORPORA`.

    Raises:
        ResultFileError: If not.
    """
    if path.suffix.lower() not in endings:
        raise ResultFileError(f"--write-cleaned {path} must end in one of {', '.join(endings)}.")


def write_table(source: Path, gone: Collection[int], path: Path, **options: Any) -> None:
    """All columns of a table, without some of its rows.

    Args:
        source: The table.
        gone: Rows of the file that are left out.
        path: What to write.
        options: How the source is read, see `read_frame`.
    """
    frame, _ = read_frame(source, **options)
    kept = frame.drop(index=frame.index[sorted(gone)])
    file, ending, header = io.BytesIO(), path.suffix.lower(), options.get("header", True)
    if ending == ".parquet":
        kept.to_parquet(file, index=False)
    elif ending == ".xlsx":
        kept.to_excel(file, index=False, header=header)
    elif ending == ".jsonl":
        kept.to_json(file, orient="records", lines=True, force_ascii=False)
    else:
        separator = "," if ending == ".csv" else "\t"
        kept.to_csv(file, index=False, header=header, sep=separator, lineterminator="\n")
    write_atomically(path, file.getvalue())


def write_corpus(corpus: Corpus, gone: Collection[object], path: Path) -> int:
    """All sentences of a corpus but some, one a line or row; read again with `--split lines` it is the same corpus.

    Args:
        corpus: Read from files.
        gone: Ids of the sentences that are left out.
        path: What to write: text, or a table with the other columns.

    Returns:
        How many were written.
    """
    assert corpus.source is not None
    kept = [one for one in corpus.source.sentences() if one.id not in gone]
    write_atomically(path, "".join(_written(kept, path.suffix.lower())).encode())
    return len(kept)


def _written(kept: list[Sentence], ending: str) -> Iterator[str]:
    if ending == ".txt":
        yield from (f"{' '.join(one.text.split())}\n" for one in kept)
        return
    rows = [{"line": one.id, "text": one.text, **{_other(name): cell for name, cell in one.fields.items()}}
            for one in kept]  # fmt: skip
    if ending == ".jsonl":
        yield from (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    yield pd.DataFrame(rows).fillna("").to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)


def _other(name: str) -> str:
    return f"{name} (table)" if name in {"line", "text"} else name
