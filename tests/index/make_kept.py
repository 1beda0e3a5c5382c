"""Makes the indexes of tests/index/kept, one of each dtype: python tests/index/make_kept.py FOLDER.

Files that a version has made are never made again: later versions must read them as they are. A new format gets a
folder of its own, `kept/2` and so on, made by this command.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import crossfluence as cf

DTYPES = ("float32", "float16", "int8", "int4", "sign")
N = 12


class Reader(nn.Module):
    """A table, of which each sample reads one row, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.words(words).tanh())


def reader() -> Reader:
    """Trained to its end, in full batches: the same on every machine to rounding, hence kept in a file."""
    model, (x, y) = Reader(), data()
    with torch.no_grad():
        for seed, part in enumerate(model.parameters()):
            part.copy_(torch.linspace(-1, 1, part.numel()).cos().roll(seed).view_as(part))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3_000):
        optimizer.zero_grad()
        whole = loss(model, (x, y)).mean() + 0.005 * sum(part.square().sum() for part in model.parameters())
        whole.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()


def data() -> tuple[Tensor, Tensor]:
    x = torch.arange(N) % 5
    return x, (x + torch.arange(N) // 5) % 2


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def question(model: nn.Module) -> dict[str, Tensor]:
    return {"a logit": model(torch.tensor([2]))[0, 1], "weights": model.out.weight.square().sum()}


def opened(folder: Path, dtype: str) -> cf.Index:
    """An index that was kept, with its model."""
    model = Reader().eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return cf.Index.open(folder / dtype, model)


def main(folder: Path) -> None:
    folder.mkdir()
    warnings.simplefilter("ignore")
    model, (x, y) = reader(), data()
    save_file(model.state_dict(), folder / "model.safetensors")
    ids = [f"sample {row}" if row % 2 else row for row in range(N)]
    risk = cf.Risk(model, loss, cf.batches(x, y, size=5), l2=0.01, ids=ids)
    answers = {}
    for dtype in DTYPES:
        index = cf.Index.build(risk, cf.EKFAC(0.1), folder / dtype, dtype=dtype, tolerance=0.0)
        (folder / dtype / "building.lock").unlink(missing_ok=True)
        answers[dtype] = {"scores": index.scores(question).values.tolist(),
                          "own": index.self_influence().values[:, 0].tolist()}  # fmt: skip
    exact = cf.influence(risk, question, cf.EKFAC(0.1)).values.tolist()
    (folder / "answers.json").write_text(json.dumps({"ids": ids, "influence": exact, **answers}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
