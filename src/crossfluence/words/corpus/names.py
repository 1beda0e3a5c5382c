"""Names of columns that say which record a row is, and not a quantity of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

IDENTIFIER = re.compile(
    r"(?i:(.*[\W_])?(ids?|uuid|guid)([\W_].*)?|.*[\W_]?(matrikel|kunden|personal|rechnungs|artikel|vorgangs)(nr\.?|nummer))"
    r"|.*[a-z](Id|ID)|.*[A-Z]{2}Id",
    re.DOTALL,
)
"""`id`, `doc_id`, `user id`, `userId`, `SK_ID_CURR`, and not `paid`."""

CODES = {
    "isbn", "issn", "ean", "upc", "gtin", "ssn", "iban", "bic", "vin", "fips", "zip", "zipcode", "zip code", "postcode",
    "post code", "postal code", "plz", "postleitzahl", "phone", "phone number", "telephone", "telefon", "fax", "mobile",
}  # fmt: skip
"""Names of columns whose numbers are names of places, books or people."""

COUNTED = {
    "", "#", "index", "idx", "ix", "level", "row", "rows", "rownum", "rowno", "row number", "rownumber", "row nr",
    "row no", "row index", "line", "line number", "no", "nr", "num", "number", "n°", "№", "record", "record number",
    "case", "obs", "observation", "sample", "subject", "participant", "person", "patient", "customer", "user", "member",
    "key", "pk", "primary key", "seq", "sequence", "serial", "serial number", "zeile", "nummer", "lfd nr", "ligne",
    "numéro", "fila", "número", "riga", "numero",
}  # fmt: skip
"""Names of columns that number the rows, if the numbers in them are whole and all different."""

LABELS = {
    "identifier", "kennung", "docno", "docid", "doc no", "doi", "accession", "ref", "reference", "pmid", "uid", "oid",
    "handle", "url", "permalink",
}  # fmt: skip
"""Other names of columns whose text names the record, if all are different."""

COUNTERS = {"no", "nr", "num", "number", "nummer", "index", "idx", "key", "code", "ref"}
THINGS = {
    "account", "article", "case", "client", "contract", "customer", "document", "employee", "invoice", "item", "line",
    "member", "order", "page", "participant", "patient", "person", "product", "record", "reference", "respondent",
    "row", "sample", "serial", "student", "subject", "ticket", "transaction", "user",
}  # fmt: skip
"""A name of one of these and a counter, such as `customer_no`, numbers the rows too."""

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
    words = _words(name)
    thing, _, counter = words.rpartition(" ")
    return is_unnamed(name) or words in COUNTED or (counter in COUNTERS and thing in THINGS)


def is_unnamed(name: str) -> bool:
    """True if a column has the name that readers give to one without: "Unnamed: 0", "level_1".

    Args:
        name: As read.

    Returns:
        False for an empty name too, which only files have.
    """
    return bool(UNNAMED.fullmatch(name.strip().lower()))


def is_code(name: str) -> bool:
    """True if a column's name says that its numbers are names.

    Args:
        name: As in the file.

    Returns:
        True for names such as "ISBN" and "zip_code".

    Example:
        >>> [is_code(name) for name in ("ISBN", "zip_code", "Zipf exponent")]
        [True, True, False]
    """
    return _words(name) in CODES


def _words(name: str) -> str:
    """A name in lower case, with blanks between its words: "customerNo" and "Customer_No." as "customer no"."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip())
    return re.sub(r"[\s_.\-]+", " ", apart).strip().lower()


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
    named += [name for name in fields if name not in named and (_words(name) in LABELS or counts_rows(name))]
    plain = [name for name in named if name.strip().lower() == "id"]
    count = len(set(records))
    return next(iter(plain), next((name for name in named if _different(fields[name], records) == count), None))


def _different(values: Iterable[str], records: Sequence[object]) -> int:
    of_record = {record: value for record, value in zip(records, values, strict=True) if value}
    return len(set(of_record.values()))
