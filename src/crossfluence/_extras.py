"""Optional packages, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from ._errors import MissingExtraError


def optional(module: str, feature: str, extra: str) -> Any:
    """A module of an optional package, or a sentence that says what to install.

    Args:
        module: Its full name.
        feature: What needs it, as the user calls it.
        extra: The extra of crossfluence that brings it.

    Returns:
        The module.

    Raises:
        MissingExtraError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(feature, module.partition(".")[0], extra) from error
