"""The folder with public data sets."""

import os
from pathlib import Path


def data_folder(name: str = "") -> Path:
    """The folder of one data set in $CROSSFLUENCE_DATA.

    Raises:
        SystemExit: If the variable is not set or the folder is not there.
    """
    given = os.environ.get("CROSSFLUENCE_DATA")
    if not given or not Path(given, name).is_dir():
        raise SystemExit(
            f"Got CROSSFLUENCE_DATA={given or ''}; needed a folder{f' that holds {name}/' if name else ''}. "
            f"Type CROSSFLUENCE_DATA=<folder> before the command."
        )
    return Path(given, name)
