"""idx files: read as written, plain or gzipped, and refused with a sentence when damaged."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.data.mnist import read_idx, read_mnist
from crossfluence import errors

IMAGES = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
LABELS = np.array([7, 2, 1], dtype=np.uint8)
CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx(array):
    kind = array.dtype.str[1:]
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, CODES[kind], array.ndim]) + sizes + array.astype(f">{kind}").tobytes()


def write(folder, *, images=None, labels=None, split="train", zipped=False):
    for kind, content in (("images-idx3", images or idx(IMAGES)), ("labels-idx1", labels or idx(LABELS))):
        name = f"{split}-{kind}-ubyte" + (".gz" if zipped else "")
        (folder / name).write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_images_are_grey_values_and_labels_digits(tmp_path, split, prefix, zipped):
    x, y = read_mnist(write(tmp_path, split=prefix, zipped=zipped), split)
    assert torch.equal(x, torch.from_numpy(IMAGES.reshape(3, -1)).float() / 255)
    assert y.tolist() == [7, 2, 1]
    assert [len(part) for part in read_mnist(tmp_path, split, count=2)] == [2, 2]


@pytest.mark.parametrize("kind", CODES)
def test_every_type_of_the_format_is_read(tmp_path, kind):
    array = np.array([[1, 2, 3], [4, 5, 100]]).astype(kind)
    (tmp_path / "a").write_bytes(idx(array))
    assert np.array_equal(read_idx(tmp_path / "a").numpy(), array)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"images": b"\x89PNG" + idx(IMAGES)}, "begins with the bytes 89504e47"),
        ({"images": b"\x00"}, "begins with the bytes 00;"),
        ({"images": idx(IMAGES)[:-5]}, r"states sizes \[3, 28, 28\], 2352 bytes, and holds 2347"),
        ({"images": idx(IMAGES)[:9]}, "damaged"),
        ({"labels": idx(LABELS) + b"\x00"}, "holds 4: damaged"),
        ({"labels": idx(LABELS[:2])}, r"shape \(2,\).*Take both files from one place"),
        ({"images": idx(LABELS)}, r"images of shape \(3,\)"),
    ],
)
def test_what_is_not_mnist_is_refused(tmp_path, files, match):
    with pytest.raises(errors.DataError, match=match):
        read_mnist(write(tmp_path, **files))


def test_missing_files_damaged_archives_and_too_few_images_are_refused(tmp_path):
    with pytest.raises(errors.DataError, match=r"neither train-images-idx3-ubyte nor train-images-idx3-ubyte\.gz"):
        read_mnist(tmp_path)
    write(tmp_path, zipped=True)
    with pytest.raises(errors.DataError, match=r"count=4, but .* holds 3 train images"):
        read_mnist(tmp_path, count=4)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for damaged in (whole[:-10], b"no gzip", whole[:20] + b"\xff" * 20 + whole[40:]):
        file.write_bytes(damaged)
        with pytest.raises(errors.DataError, match="no whole gzip file"):
            read_mnist(tmp_path)


def test_the_official_files_are_what_they_should_be():
    folder = Path(os.environ.get("CROSSFLUENCE_DATA", "no folder")) / "mnist"
    if not folder.is_dir():
        pytest.skip("set CROSSFLUENCE_DATA to a folder that holds mnist/")
    x, y = read_mnist(folder)
    assert x.shape == (60_000, 784)
    assert x.mean() == pytest.approx(0.1307, abs=1e-4)
    assert y.bincount().min() == 5421
