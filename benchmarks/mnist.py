"""MNIST from the four official idx files (plain or gzipped), in the folder `mnist` of $CROSSFLUENCE_DATA."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NAMES = {"train": "train", "test": "t10k"}


def mnist(part: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n images, `(n, 784)` between 0 and 1, and their labels."""
    stem = NAMES[part]
    return _idx(f"{stem}-images-idx3-ubyte")[:n].reshape(-1, 784).float() / 255, _idx(f"{stem}-labels-idx1-ubyte")[
        :n
    ].long()


def _idx(name: str) -> Tensor:
    """A magic number whose last byte counts the dimensions, their sizes as big-endian integers, then the bytes."""
    folder = os.environ.get("CROSSFLUENCE_DATA")
    if not folder:
        raise SystemExit(
            "Set CROSSFLUENCE_DATA to a folder with mnist/train-images-idx3-ubyte.gz and its three siblings."
        )
    path = Path(folder) / "mnist" / name
    content = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{name}.gz").read_bytes())
    dimensions = content[3]
    sizes = np.frombuffer(content, ">i4", dimensions, offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes).copy())
