"""Numbers with a currency, a per cent sign or a unit, and digits in groups that are set apart by blanks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

MONEY = (
    r"(?:US|AU|CA|HK|NZ|R)?\$|[€£¥₹₽₩₪₺฿]|USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|CZK|HUF|RUB|BRL|TRY|"
    r"Kč|zł|kr\.?|Fr\.|Rs\.?"
)
UNIT = r"%|‰|°\s?[CF]?|[A-Za-z\u00b5\u03bcΩÅ²³/]{1,8}\.?"
BLANKS = " \u00a0\u202f\u2009'\u2019"  # also no-break and thin ones, and the Swiss apostrophe
GROUPED = rf"[1-9]\d{{0,2}}(?:[{BLANKS}]\d{{3}})+(?:[.,]\d+)?"
COMMAS, DOTS = r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", r"[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?"
FORM = re.compile(
    rf"(?P<opens>\()?(?P<sign>[+\-\u2212]?)\s?(?P<before>{MONEY})?\s?(?P<inner>[+\-\u2212]?)"
    rf"(?P<digits>{GROUPED}|{COMMAS}|{DOTS}|\d*[.,]\d+|\d+)(?P<power>[eE][+-]?\d+)?\s?(?P<after>{MONEY}|{UNIT})?"
    r"(?P<closes>\))?"
)
QUOTED = re.compile(r'="(.*)"')
"""A cell that a program wrote so that Excel leaves it as it is."""

PLAIN, TWICE = re.compile(r"[0-9.,+\-eE\n]*"), re.compile(r"\.\d+\.")


def without_units(cells: Sequence[str]) -> list[str] | None:
    """Cells such as "$1,304.50", "12.5 %", "(3)" and "1 304,50 kg" as "1304.50", "12.5", "-3" and "1304.50".

    Args:
        cells: Of one column; empty text where nothing stands.

    Returns:
        Numbers where a cell is one with the unit of all others, and other cells as they are; nothing if fewer
        than two would change, if units differ, if fewer than half are such numbers, or if "1,304" may be 1.304.

    Example:
        >>> without_units(["$1,304.50", "", "($3.00)"]), without_units(["5 kg", "7 lb"]), without_units(["P1", "P2"])
        (['1304.50', '', '-3.00'], None, None)
    """
    if PLAIN.fullmatch(joined := "\n".join(cells)) and not TWICE.search(joined):
        return None
    found = [FORM.fullmatch(match[1] if (match := QUOTED.fullmatch(cell)) else cell) for cell in cells]
    whole = [one for one in found if one and bool(one["opens"]) == bool(one["closes"])]
    units = Counter(((one["before"] or "").strip(), (one["after"] or "").strip()) for one in whole)
    if len(units) != 1 or 2 * len(whole) < sum(map(bool, cells)):
        return None
    before, after = next(iter(units))
    sign = _decimal_sign([one["digits"] for one in whole], before)
    if sign is None or (after.isalpha() and len({one["digits"] for one in whole}) < 2):
        return None
    fit = {id(one) for one in whole}
    plain = [_number(one, sign) if one and id(one) in fit else cell for one, cell in zip(found, cells, strict=True)]
    changed = sum(one != cell for one, cell in zip(plain, cells, strict=True))
    return plain if changed > 1 else None  # a single cell with a blank may be a slip


def is_amount(text: str) -> bool:
    """True if text is a number, with or without a decimal comma, a currency or a per cent sign.

    Args:
        text: A cell, or the name of a column.

    Returns:
        False for other units: "2m" may be a name.

    Example:
        >>> [is_amount(text) for text in ("171,1", "$3", "12 %", "3 kg", "height")]
        [True, True, True, False, False]
    """
    match = FORM.fullmatch(text.strip())
    return match is not None and not re.sub(rf"{MONEY}|%", "", match["after"] or "")


def _decimal_sign(digits: Sequence[str], before: str) -> str | None:
    """The sign before decimals: "." or ","; nothing if none of the cells tells."""
    commas, dots = [one for one in digits if "," in one], [one for one in digits if "." in one]
    both = [one for one in digits if "," in one and "." in one]
    if both:
        sign = both[0][max(both[0].rfind(","), both[0].rfind("."))]
        return sign if all(one[max(one.rfind(","), one.rfind("."))] == sign for one in both) else None
    if not commas:
        return "," if dots and all(one.count(".") > 1 for one in dots) else "."
    if dots:
        grouped = all(re.fullmatch(COMMAS, one) for one in commas)
        return "." if grouped else "," if all(re.fullmatch(DOTS, one) for one in dots) else None
    if all(re.fullmatch(COMMAS, one) for one in commas):
        return "." if before or any(one.count(",") > 1 for one in commas) else None
    return ","


def _number(match: re.Match[str], sign: str) -> str:
    digits = re.sub(f"[{BLANKS}{'.' if sign == ',' else ','}]", "", match["digits"]).replace(",", ".")
    minus = match["opens"] or {match["sign"], match["inner"]} & {"-", "\u2212"}
    return ("-" if minus else "") + digits + (match["power"] or "")
