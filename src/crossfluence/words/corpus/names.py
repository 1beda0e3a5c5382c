"""Names of columns that say which record a row is, and not a quantity of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

IDENTIFIER = re.compile(r"(?i:(.*[\W_])?(ids?|uuid|guid)|id_\w+)|.*[a-z](Id|ID)|.*[A-Z]{2}Id", re.DOTALL)
"""`id`, `doc_id`, `user id`, `userId`, and not `paid`."""

COUNTED = {
    "", "#", "index", "idx", "ix", "level", "row", "rows", "rownum", "rowno", "row number", "rownumber", "row nr",
    "row no", "row index", "line", "line number", "no", "nr", "num", "number", "n°", "№", "record", "record number",
    "case", "obs", "observation", "sample", "subject", "participant", "person", "patient", "customer", "user", "member",
    "key", "pk", "primary key", "seq", "sequence", "serial", "serial number",
}  # fmt: skip
"""Names of columns that number the rows, if the numbers in them are whole and all different."""

UNNAMED = re.compile(r"unnamed(: ?\d+.*)?|level_\d+|__index_level_\d+__")


def is_identifier(name: str) -> bool:
    """True if a column's name says that it holds ids.

    Args:
        name: As in the file.

    Returns:
        True for names such as "ID", "doc_id", "user id" and "userId".

    Example:
        >>> [is_identifier(name) for name in ("ID", "doc_id", "userId", "paid", "width")]
        [True, True, True, False, False]
    """
    return IDENTIFIER.fullmatch(name.strip()) is not None


def counts_rows(name: str) -> bool:
    """True if a column's name says that it numbers the rows.

    Args:
        name: As in the file; empty where a saved table had an index without a name.

    Returns:
        True for names such as "", "Unnamed: 0", "index", "Row" and "nr.".

    Example:
        >>> [counts_rows(name) for name in ("Unnamed: 0", "Row", "nr.", "row_number", "rowing", "height")]
        [True, True, True, True, False, False]
    """
    name = name.strip().lower()
    return bool(UNNAMED.fullmatch(name)) or re.sub(r"[\s_.\-]+", " ", name).strip() in COUNTED


def id_field(fields: Mapping[str, Sequence[str]], records: Sequence[object]) -> str | None:
    """The column that holds the records' own ids.

    Args:
        fields: Values of each column, one for each sentence.
        records: The record of each sentence; sentences of one record share its id.

    Returns:
        A column called "id" if there is one, or else the first of such a name whose values tell all records apart.

    Example:
        >>> id_field({"user_id": ["u", "u"], "doc_id": ["a", "b"]}, [1, 2])
        'doc_id'
    """
    named = [name for name in fields if is_identifier(name)]
    plain = [name for name in named if name.strip().lower() == "id"]
    count = len(set(records))
    return next(iter(plain), next((name for name in named if _different(fields[name], records) == count), None))


def _different(values: Iterable[str], records: Sequence[object]) -> int:
    of_record = {record: value for record, value in zip(records, values, strict=True) if value}
    return len(set(of_record.values()))
