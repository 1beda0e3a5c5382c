"""Numbers as people write them: decimal commas, and digits in groups of three."""

from __future__ import annotations

import re

import pandas as pd

from .columns import NO_NUMBER, TableError

DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
POINT, DOT_GROUP = re.compile(r"[+-]?\d*\.\d+"), re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")
GROUPS = {
    ",": re.compile(r"[+-]?(\d{1,3}(,\d{3})+(\.\d+)?|\d+(\.\d+)?)"),  # 1,304.50
    ".": re.compile(r"[+-]?(\d{1,3}(\.\d{3})+(,\d+)?|\d+(,\d+)?)"),  # 1.304,50
}
"""Numbers whose digits may stand in groups of three, by what sets the groups apart."""


def with_decimal_points(frame: pd.DataFrame, name: str, *, commas_separate: bool = False) -> pd.DataFrame:
    """Cells such as "0,126" and "1.304,50" as "0.126" and "1304.50".

    Args:
        frame: Of text.
        name: Of the file.
        commas_separate: Whether commas separate cells, so that one with a comma had to be quoted: then a column's cells
            count as written with decimal commas only if all that are numbers have one.

    Returns:
        The frame, or a changed copy.

    Raises:
        TableError: If cells such as "1,304" may be 1.304 or 1304, and no other cell of the file tells.
    """
    held = {column: _held(frame[column]) for column in frame.columns}
    grouped = {column: sign for column, cells in held.items() if (sign := _grouped(cells))}
    with_comma = {
        column: _with_comma(cells, all_of_them=commas_separate) for column, cells in held.items()
        if column not in grouped
    }  # fmt: skip
    found = [cell for cells in with_comma.values() for cell in cells]
    if commas_separate and any(POINT.fullmatch(cell) for cells in held.values() for cell in cells):
        grouped |= {
            column: "," for column, cells in with_comma.items() if cells and all(map(THOUSANDS.fullmatch, cells))
        }  # decimals have points in this file
        with_comma = {column: cells for column, cells in with_comma.items() if column not in grouped}
        found = [cell for cells in with_comma.values() for cell in cells]
    elif found:
        grouped |= {column: "." for column, cells in held.items() if cells and all(map(DOT_GROUP.fullmatch, cells))}
    if found and all(THOUSANDS.fullmatch(cell) for cell in found):
        raise TableError(
            f"{name} holds {found[0]!r}, which may be {found[0].replace(',', '.')} or {found[0].replace(',', '')}, and "
            f"no other cell tells which. Write it without the comma."
        )
    commas = [column for column, cells in with_comma.items() if cells]
    changed = {column: frame[column].str.strip().str.replace(",", ".", regex=False) for column in commas}
    changed |= {column: _ungrouped(frame[column], sign) for column, sign in grouped.items()}
    return frame.assign(**changed) if changed else frame


def dotted(frame: pd.DataFrame) -> list[str]:
    """A sentence about numbers such as "171.100", which may be 171.1 or 171100, in a file whose cells a ; sets apart.

    Args:
        frame: Of text, with decimal points.

    Returns:
        At most one sentence.
    """
    names = [name for name in frame.columns if (held := _held(frame[name])) and all(map(DOT_GROUP.fullmatch, held))]
    if not names:
        return []
    return [
        f"{', '.join(map(repr, names[:8]))} {'are' if len(names) > 1 else 'is'} read with decimal points, such as "
        f"{_held(frame[names[0]])[0]}. If the points set thousands apart, write the numbers without them."
    ]


def _held(cells: pd.Series) -> list[str]:
    return [cell for cell in cells.str.strip() if cell.lower() not in NO_NUMBER]


def _grouped(held: list[str]) -> str | None:
    """The sign between groups of digits, in a column in which a number has both signs, and all fit."""
    if not any("," in cell and "." in cell for cell in held):
        return None
    return next((sign for sign, form in GROUPS.items() if all(map(form.fullmatch, held))), None)


def _ungrouped(cells: pd.Series, sign: str) -> pd.Series:
    return cells.str.strip().str.replace(sign, "", regex=False).str.replace(",", ".", regex=False)


def _with_comma(held: list[str], *, all_of_them: bool) -> list[str]:
    """Cells with a decimal comma of a column that holds nothing but them, whole numbers and empty cells."""
    found = [cell for cell in held if "," in cell]
    if all_of_them and len(found) < len(held):
        return []
    fit = all(DECIMAL_COMMA.fullmatch(cell) or THOUSANDS.fullmatch(cell) or cell.lstrip("+-").isdecimal()
              for cell in held)  # fmt: skip
    return found if fit else []
