"""MNIST for the benchmarks: the four official idx files in the folder `mnist` of $CROSSFLUENCE_DATA."""

import os
from pathlib import Path

from torch import Tensor

from benchmarks.data import mnist_files as files


def mnist(split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images of "train" or "test", `(count, 784)` between 0 and 1, and their labels."""
    folder = os.environ.get("CROSSFLUENCE_DATA")
    if not folder:
        raise SystemExit("Set CROSSFLUENCE_DATA to a folder that holds mnist/ with the four official files.")
    return files.mnist(Path(folder, "mnist"), split, count)
