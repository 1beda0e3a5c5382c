"""Files that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import ResultFileError

Made = TypeVar("Made")


def write_atomically(path: str | os.PathLike[str], *content: bytes | memoryview) -> None:
    """Writes bytes so that `path` holds either the old content or all of the new.

    Args:
        path: Where to; its folder must exist.
        *content: Everything the file will hold, part after part.

    Raises:
        ResultFileError: If the folder does not exist or cannot be written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ResultFileError(f"Cannot write {target}: the folder {target.parent} does not exist. Make it first.")
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise ResultFileError(f"Cannot write {target}: {error.strerror}.") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes it private; a result is an ordinary file
        os.replace(temporary, target)
    except OSError as error:
        raise ResultFileError(f"Cannot write {target}: {error.strerror}.") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def kept_json(file: Path, make: Callable[[], Made]) -> Made:
    """The content of a JSON file, made and written if it is absent.

    Args:
        file: Its name says what decides the content.
        make: Makes numbers, strings, lists and dictionaries.

    Returns:
        The content.
    """
    if not file.exists():
        write_atomically(file, json.dumps(make()).encode())
    return json.loads(file.read_bytes())
