"""Checks annotated shapes; plain types at the public boundary have sentences of their own."""

import re

from beartype import BeartypeConf, beartype

with_tower = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def check(function):
    hints = " ".join(str(hint) for hint in getattr(function, "__annotations__", {}).values())
    return with_tower(function) if re.search(r"\b(Float|Shaped|Int|Bool)\[", hints) else function
