"""First stages of a search: the rows that each puts first, and how many of the top 1 % are among them.

Usage: CROSSFLUENCE_DATA=<folder> python -m benchmarks.stages [--faiss]

The perceptron of `benchmarks.index`, 10,000 rows as whole numbers, 30 new questions. With `--faiss` (pip install
faiss-cpu) its indexes answer the same questions, each for the largest and for the smallest products, and their CPU
time is told as a share of a scan by this library. One thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import crossfluence as cf
from benchmarks.common.options import options
from benchmarks.common.timing import seconds, timed
from benchmarks.index import SMALL, each, risk_of
from benchmarks.peers.ekfac import trained
from crossfluence._index.scan import scanned

QUESTIONS, SHARES, PILOT = 30, (0.02, 0.04, 0.08), 1_000
FACTORIES = ("SQ8", "SQ4", "IVF64,Flat", "RaBitQ", "HNSW16,Flat")


def signs(x: Tensor, q: Tensor, scale: Tensor, k: int) -> Tensor:
    """Products with the signs of the k strongest coordinates."""
    at = scale.topk(k).indices
    own, energy = x[:, at] / scale[at], scale[at].square()
    sizes = own.square() @ energy / (own.abs() @ energy)
    return (own.sign() @ (q[:, at] * scale[at]).T) * sizes.unsqueeze(1)


def four_bits(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """Products with all coordinates in four bits."""
    own = x / scale
    step = own.abs().amax(1, keepdim=True) / 7
    return ((own / step).round() * step) @ (q * scale).T


def directions(x: Tensor, q: Tensor, r: int) -> Tensor:
    """Products along r principal directions of rows of one length."""
    pilot = x[torch.linspace(0, len(x) - 1, PILOT).long()]
    pilot = pilot / pilot.norm(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh((pilot @ pilot.T).double())
    basis = pilot.T @ (vectors[:, -r:] / values[-r:].sqrt()).float()
    return (x @ basis) @ (q @ basis).T


def found(products: Tensor, exact: Tensor) -> list[str]:
    """The share of the top 1 % among the rows that come first."""
    top = exact.abs().topk(len(exact) // 100, dim=0).indices
    shares = []
    for share in SHARES:
        first = products.abs().topk(round(share * len(exact)), dim=0).indices
        hits = [torch.isin(one, own).double().mean() for one, own in zip(top.T, first.T, strict=True)]
        shares.append(f"{share:.0%}: {float(torch.stack(hits).mean()):.3f}")
    return shares


def stages(x: Tensor, q: Tensor) -> Iterator[tuple[str, float, Callable[[], Tensor]]]:
    scale, p = x.square().mean(0).sqrt().clamp_min(1e-12), x.shape[1]
    for r in (256, 980):
        yield f"{r} principal directions", r + 4, lambda r=r: directions(x, q, r)
    strong = scale.topk(1_000).indices
    yield "1,000 strongest coordinates, 8 bits", 1_004, lambda: x[:, strong] @ q[:, strong].T
    for k in (p // 3, p):
        yield f"signs of {k}", k / 8 + 4, lambda k=k: signs(x, q, scale, k)
    yield "four bits of all", p / 2 + 4, lambda: four_bits(x, q, scale)


def library(x: Tensor, q: Tensor, exact: Tensor, ours: float) -> None:
    import faiss  # pyright: ignore[reportMissingImports]

    faiss.omp_set_num_threads(1)
    top = exact.abs().topk(len(x) // 100, dim=0).indices
    for name in FACTORIES:
        index = faiss.index_factory(x.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        index.train(x.numpy()), index.add(x.numpy())
        for effort in (4, 16, 32) if name.startswith("IVF") else (128, 400) if name.startswith("HNSW") else (0,):
            if name.startswith("IVF"):
                faiss.extract_index_ivf(index).nprobe = effort
            elif effort:
                index.hnsw.efSearch = effort
            for k in (100, 400) if name == "RaBitQ" else (100,):
                took, rows = timed(lambda index=index, k=k: [index.search((s * q).numpy(), k)[1] for s in (1, -1)])
                both = torch.cat([torch.from_numpy(part) for part in rows], 1)
                hits = [torch.isin(one, own).double().mean() for one, own in zip(top.T, both, strict=True)]
                print(
                    name, effort, 2 * k, f"{took / len(q) / ours:.2f} {float(torch.stack(hits).mean()):.3f}", flush=True
                )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--faiss", action="store_true", help="compares indexes of faiss, too")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    train, test = SMALL.data(SMALL.n, SMALL.questions)
    risk = risk_of(trained(SMALL, *train), train, SMALL.batch)
    with tempfile.TemporaryDirectory() as folder:
        index = cf.Index.build(risk, cf.EKFAC(), Path(folder) / "index", dtype="int8", tolerance=0.2)
        opened, shards, reader = index._opened, index._manifest.shards, index._reader
        roots = [energy.float().sqrt() for energy in opened.energies]
        (chunk,) = index._asked(each(tuple(part[:QUESTIONS] for part in test)), "stages")
        numbers = [number for number, k in enumerate(opened.coordinates.lengths) if k]
        q = torch.cat([chunk.blocks[number].float() / roots[number] for number in numbers], 1)
        x = torch.cat([
            torch.cat([opened.code.decoded(shard.at(slice(None)), number) * roots[number] for number in numbers], 1)
            for shard in reader.all(shards)
        ])  # fmt: skip
        one = opened.code.question([part[:1] for part in chunk.blocks])
        ours = min(seconds(lambda: list(scanned(reader, shards, one))) for _ in range(5))
    exact = x @ q.T
    for name, size, products in stages(x, q):
        print(f"{name}, {size:.0f} bytes", *found(products(), exact), sep="  ", flush=True)
    if asked.faiss:
        library(x, q, exact, ours)


if __name__ == "__main__":
    main()
