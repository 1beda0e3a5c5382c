"""MNIST from the official idx files, gzipped or not."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crossfluence.errors import DataError

from .folder import data_folder

PREFIX = {"train": "train", "test": "t10k"}
TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}  # the format's third byte


def mnist(split: Literal["train", "test"], count: int) -> tuple[Float[Tensor, "n 784"], Int[Tensor, " n"]]:
    """The first images and their labels, from the folder `mnist` of $CROSSFLUENCE_DATA."""
    return read_mnist(data_folder("mnist"), split, count)


def read_mnist(
    folder: str | os.PathLike[str], split: Literal["train", "test"] = "train", count: int | None = None
) -> tuple[Float[Tensor, "n 784"], Int[Tensor, " n"]]:
    """The first images and their labels.

    Args:
        folder: Holds the four official files, such as `train-images-idx3-ubyte.gz`, gzipped or not.
        split: "train" or "test".
        count: How many images; default: all.

    Returns:
        Grey values in [0, 1], float32, and digits.

    Raises:
        DataError: If a file is missing or is not what it should be, or there are fewer images than asked for.
    """
    images = read_idx(Path(folder, f"{PREFIX[split]}-images-idx3-ubyte"))
    labels = read_idx(Path(folder, f"{PREFIX[split]}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{folder} holds {split} images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}; "
            f"needed (n, 28, 28) and (n,). Take both files from one place."
        )
    if count is not None and count > len(images):
        raise DataError(f"Got count={count}, but {folder} holds {len(images)} {split} images.")
    return images[:count].flatten(1).float() / 255, labels[:count].long()


def read_idx(path: Path) -> Tensor:
    """The array in an idx file: two zero bytes, type, number of dimensions, sizes, content.

    Args:
        path: Without `.gz`; the gzipped file is taken if the plain one is not there.

    Returns:
        A tensor of the type and shape that the file states.

    Raises:
        DataError: If there is no such file, or it is damaged or of another format.
    """
    raw = _content(path)
    kind = TYPES.get(raw[2]) if len(raw) >= 4 and raw[:2] == b"\0\0" else None
    if kind is None:
        raise DataError(
            f"{path} begins with the bytes {raw[:4].hex()}; needed an idx file, such as 00000803 for images."
        )
    start = 4 + 4 * raw[3]
    sizes = [int.from_bytes(raw[place : place + 4], "big") for place in range(4, start, 4)]
    wanted, found = math.prod(sizes) * np.dtype(kind).itemsize, len(raw) - start
    if found != wanted:
        raise DataError(f"{path} states sizes {sizes}, {wanted} bytes, and holds {found}: damaged. Download it again.")
    array = np.frombuffer(raw, kind, offset=start).reshape(sizes)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _content(path: Path) -> bytes:
    zipped = path.with_name(f"{path.name}.gz")
    try:
        return path.read_bytes() if path.exists() else gzip.decompress(zipped.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"Found neither {path.name} nor {zipped.name} in {path.parent}. Download the official MNIST files there, "
            f"or name the folder that has them."
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{zipped} is no whole gzip file: {error}. Download it again.") from error
