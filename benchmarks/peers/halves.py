"""Linear datamodelling scores: models trained on random halves of the data, against sums of scores over the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common.losses import LOSSES, Pair

DRAWS = 1_000  # of questions, for an interval


def half(n: int, number: int) -> Tensor:
    """Samples of one random half, in order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(number))[: n // 2].sort().values


def retrained(
    train: Callable[[Tensor, Tensor], nn.Module], data: Pair, test: Pair, halves: int, folder: Path
) -> Tensor:
    """Losses of the questions after training on each half, `(halves, m)`; what is in the folder is not trained again.

    Args:
        train: From samples and targets to a model.
        data: All samples and targets.
        test: The questions.
        halves: How many.
        folder: Where answers are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answers = []
    for number in range(halves):
        file = folder / f"half-{number}.pt"
        if not file.exists():
            rows = half(len(data[0]), number)
            model = train(data[0][rows], data[1][rows])
            with torch.no_grad():
                torch.save(LOSSES["cross entropy"](model(test[0]), test[1]), file)
        answers.append(torch.load(file))
    return torch.stack(answers)


def lds(scores: Tensor, answers: Tensor) -> Tensor:
    """Spearman correlations over the halves, one for each question.

    Args:
        scores: Of each sample for each question, `(n, m)`.
        answers: Of the models trained on the halves, `(halves, m)`.

    Example:
        >>> masks = torch.stack([torch.zeros(6).index_fill(0, half(6, k), 1.0) for k in range(4)])
        >>> scores = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0], [32.0]])
        >>> lds(scores, masks @ scores)
        tensor([1.])
    """
    n = len(scores)
    kept = torch.stack([torch.zeros(n).index_fill(0, half(n, number), 1.0) for number in range(len(answers))])
    one, other = (_centred_ranks(part) for part in (kept @ scores.float(), answers))
    return (one * other).sum(0) / (one.norm(dim=0) * other.norm(dim=0))


def _centred_ranks(values: Tensor) -> Tensor:
    ranks = values.argsort(0).argsort(0).float()
    return ranks - ranks.mean(0)


def difference(one: Tensor, other: Tensor) -> tuple[float, float]:
    """95 % of the mean difference of two LDS over questions, which are drawn with replacement."""
    drawn = torch.randint(len(one), (DRAWS, len(one)), generator=torch.Generator().manual_seed(0))
    low, high = (one - other)[drawn].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
