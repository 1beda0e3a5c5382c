"""An index on disk: bytes, agreement and time of each code, and a question against 10^4 to 10^6 rows.

Usage: CROSSFLUENCE_DATA=<folder> python -m benchmarks.index [--parts codes rows] [--codes int8:0.3 sign:0 ...]

`codes`: the character transformer of four layers of `benchmarks.peers.ekfac`, 2,000 samples, 100 new questions. The fit
is made once; each index is built from it, and its scores are compared with `influence` by the same fit, in full.
`rows`: a perceptron 784-32-10 on 10,000 MNIST images, with new images as questions. Those of 10^5 and 10^6 rows repeat
those of 10,000 under other ids; reading is a plain read of all files of rows, in pieces of 4 MB. Each index is asked in
a process of its own, whose peak memory is told less that of the process before it opened the index. The recall is
that of the top 1 % of 50 questions against the exact scan, where rows differ. All on one thread. Times are CPU seconds
with the files in memory; "from disk" are seconds by the clock after the system has dropped them, reading and question
in turns.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.losses import Pair, classification
from benchmarks.common.models import perceptron
from benchmarks.common.options import options
from benchmarks.common.process import last_line, run_module
from benchmarks.common.results import kept, line, save
from benchmarks.common.timing import seconds, timed
from benchmarks.data.mnist import mnist
from benchmarks.peers.ekfac import TRAININGS, Training, trained
from crossfluence._index.manifest import Listed, read_manifest
from crossfluence._storage.archive import read_tensors, write_tensors

CODES = (
    "float32:0", "float16:0", "float16:0.1", "int8:0", "int8:0.1", "int8:0.2", "int8:0.3", "int8:0.4", "int8:0.435",
    "int8:0.5", "int4:0", "int4:0.1", "int4:0.435", "sign:0", "sign:0.1", "sign:0.3",
)  # fmt: skip
ROWS = ("int8:0.2", "int4:0.2", "sign:0.1")
SMALL = Training(
    lambda: perceptron(784, 32, 10, activation=nn.ReLU),
    lambda n, m: (mnist("train", n), mnist("test", m)),
    10_000,
    50,
    256,
    3,
    0.1,
)
PIECE, SHARES = 2**22, (0.04, 0.08)


def risk_of(model: nn.Module, train: Pair, size: int) -> cf.Risk:
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return cf.Risk(model, classification, cf.batches(*train, size=size), params=[f"{name}.*" for name in layers])


def correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]).double())[0, 1])


def each(test: Pair) -> cf.Objective:  # pyright: ignore[reportAttributeAccessIssue]
    return cf.each_of(cf.batches(*test, size=50), classification)


def codes(folder: Path, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Codes of one transformer, such as "int8:0.3"."""
    training = TRAININGS["transformer"]
    train, test = training.data(training.n, training.questions)
    risk = risk_of(trained(training, *train), train, training.batch)
    _ = risk.gradient
    epoch = seconds(lambda: risk.field(risk.theta))
    fit, inverse = timed(lambda: cf.EKFAC().invert(risk))
    pairs, exact = timed(lambda: cf.influence(risk, each(test), inverse).values)
    print(f"epoch {epoch:.2f} s, fit {fit:.2f} s, all pairs in full {pairs:.2f} s", flush=True)
    for dtype, share in (code.split(":") for code in wanted):
        tolerance = float(share)
        place = folder / "transformer"
        shutil.rmtree(place, ignore_errors=True)
        built, index = timed(lambda: cf.Index.build(risk, inverse, place, dtype=dtype, tolerance=tolerance))
        asked, scores = timed(lambda: index.scores(each(test)).values)
        info = index.info()
        yield {
            "dtype": dtype,
            "tolerance": tolerance,
            "coordinates": info["coordinates"],
            "parameters": info["parameters"],
            "bytes a sample": info["bytes a sample"],
            "correlation": f"{correlation(scores, exact):.4f}",
            "told at building": info["agreement"],
            "build, s": f"{built:.1f}",
            "rows a second": f"{len(scores) / built:.0f}",
            "100 questions, s": f"{asked:.2f}",
            "without index, s": f"{pairs:.2f}",
            "fit, s": f"{fit:.1f}",
            "epoch, s": f"{epoch:.2f}",
        }


def repeated(source: Path, target: Path, times: int) -> None:
    """The rows of an index again and again, under other ids."""
    target.mkdir()
    manifest, shards, start = read_manifest(source), [], 0
    for name in ("fit.safetensors", "start.safetensors"):
        shutil.copy(source / name, target / name)
    for _ in range(times):
        for shard in manifest.shards:
            found = read_tensors(source / shard.file, "crossfluence.index-rows/1")
            path = target / f"rows-{len(shards):05}.safetensors"
            ids = json.dumps({"first": start, "count": shard.rows})
            write_tensors(path, "crossfluence.index-rows/1", found.tensors, ids=ids)
            shards.append(Listed.of(path, shard.rows))
            start += shard.rows
    replace(manifest, parts=(replace(manifest.parts[0], shards=tuple(shards)),)).written(target)


def rows(folder: Path, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Questions against more and more rows."""
    train, test = SMALL.data(SMALL.n, SMALL.questions)
    model = trained(SMALL, *train)
    torch.save((model, test), folder / "model")
    risk = risk_of(model, train, SMALL.batch)
    inverse = cf.EKFAC().invert(risk)
    exact = cf.influence(risk, each(test), inverse).values
    for dtype, share in (code.split(":") for code in (ROWS if wanted is CODES else wanted)):
        tolerance, place = float(share), folder / dtype
        there = place.exists()
        built, index = timed(lambda: cf.Index.build(risk, inverse, place, dtype=dtype, tolerance=tolerance))
        r = correlation(index.scores(each(test)).values, exact)
        for times in (1, 10, 100):
            own = place if times == 1 else folder / f"{dtype}-{times}"
            if not own.exists():
                repeated(place, own, times)
            done = json.loads(last_line(run_module("benchmarks.index", "--ask", str(own), OMP_NUM_THREADS="1")))
            yield {
                "dtype": dtype,
                "tolerance": tolerance,
                "rows": SMALL.n * times,
                "bytes a sample": index.info()["bytes a sample"],
                "correlation": f"{r:.4f}",
                "rows a second": "" if there else f"{SMALL.n / built:.0f}",
                **done,
            }


def read(folder: Path) -> None:
    for path in sorted(folder.glob("rows-*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.read(PIECE):
                pass


def forgotten(folder: Path) -> None:
    """Has the system drop its copies of the files, so that the next read is one from disk."""
    for path in folder.glob("rows-*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def from_disk(folder: Path, work: Callable[[], object]) -> float:
    """Seconds by the clock."""
    forgotten(folder)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak() -> float:
    """Peak memory of this process in gigabytes; unlike that of `resource`, not that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**20


def ask(folder: Path) -> dict[str, str]:
    """One index: reading it, one question, all the questions of a test set, the strongest rows, and memory."""
    model, test = torch.load(folder.parent / "model", weights_only=False)
    one = each(tuple(part[:1] for part in test))
    before = peak()
    index = cf.Index.open(folder, model)
    first = seconds(lambda: index.search(one, 10))
    read(folder)
    reading = min(seconds(lambda: read(folder)) for _ in range(3))
    full = min(seconds(lambda: index.scores(one)) for _ in range(3))
    k = max(1, index.info()["samples"] // 100)
    exact = min(seconds(lambda: index.search(one, k)) for _ in range(3))
    memory = peak() - before
    pairs = [(from_disk(folder, lambda: read(folder)), from_disk(folder, lambda: index.scores(one))) for _ in range(3)]
    slow = min(reading for reading, _ in pairs), min(question for _, question in pairs)
    making = seconds(lambda: index.search(one, k, share=SHARES[0]))
    found = {
        "reading, s": f"{reading:.3f}",
        "first question, s": f"{first:.3f}",
        "a question, s": f"{full:.3f}",
        "times reading": f"{full / reading:.2f}",
        "reading from disk, s": f"{slow[0]:.3f}",
        "a question from disk, s": f"{slow[1]:.3f}",
        "times reading from disk": f"{statistics.median(question / reading for reading, question in pairs):.2f}",
        "top 1 %, s": f"{exact:.3f}",
        "memory, GB": f"{memory:.2f}",
        "sketch made, s": f"{making:.1f}",
    }
    for share in SHARES:
        two = min(seconds(lambda share=share: index.search(one, k, share=share)) for _ in range(3))
        cold = min(from_disk(folder, lambda share=share: index.search(one, k, share=share)) for _ in range(3))
        found |= {
            f"two stages of {share}, s": f"{two:.3f}",
            f"share of exact, {share}": f"{two / exact:.3f}",
            f"share from disk, {share}": f"{cold / slow[1]:.3f}",
            f"recall, {share}": recall(index, test, k, share) if k == SMALL.n // 100 else "",
        }
    return found


def recall(index: cf.Index, test: Pair, k: int, share: float) -> str:
    """Of the k strongest rows of either sign for each question, those that two stages find."""
    scores, shares = index.scores(each(test)), []
    for column in range(len(scores.objectives)):
        one = each(tuple(part[column : column + 1] for part in test))
        wanted = scores.values[:, column].abs().topk(k).indices.tolist()
        there = set(index.search(one, k, share=share).ids)
        shares.append(sum(scores.ids[row] in there for row in wanted) / k)
    return f"{sum(shares) / len(shares):.4f}"


def order(row: Mapping[str, str]) -> tuple[int, float, int]:
    """Wider numbers first, then by tolerance, then by rows."""
    return (
        ("float32", "float16", "int8", "int4", "sign").index(row["dtype"]),
        float(row["tolerance"]),
        int(row.get("rows", 0)),
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--parts", nargs="+", default=["codes", "rows"], choices=["codes", "rows"])
    parser.add_argument("--codes", nargs="+", metavar="DTYPE:TOLERANCE", help="others keep their rows of the last run")
    parser.add_argument(
        "--folder", type=Path, help="keeps the indexes of `rows`, some 8 GB a code, and uses those there"
    )
    parser.add_argument("--ask", help="a folder, in a process of its own")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.ask:
        print(json.dumps(ask(Path(asked.ask))))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = asked.folder or made
        for part in asked.parts:
            found = kept(f"index-{part}") if asked.codes else []
            for row in {"codes": codes, "rows": rows}[part](Path(folder), asked.codes or CODES):
                code = row["dtype"], str(row["tolerance"])
                size = str(row.get("rows", ""))
                found = [one for one in found if (one["dtype"], one["tolerance"], one.get("rows", "")) != (*code, size)]
                found.append({name: str(value) for name, value in row.items()})
                print(line(row), flush=True)
                save(f"index-{part}", sorted(found, key=order))


if __name__ == "__main__":
    sys.exit(main())
