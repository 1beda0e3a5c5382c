"""Effects of one more step of training on each question's strongest samples, beside random ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .._autodiff.copies import copied
from .._autodiff.functional import isolated
from .._autodiff.params import put
from .._require import require, require_answered, require_question, require_risk
from .._results.scores import Scores
from .._risk.base import AbstractRisk
from .._risk.objectives import evaluate
from .._training.optimizers import AbstractOptimizer
from .._types import Objective
from ..errors import DataError
from .qld import QLD, beside_random, strongest_and_random


def tail_patch(
    scores: Scores,
    risk: AbstractRisk,
    objective: Objective,
    *,
    optimizer: AbstractOptimizer,
    share: float = 0.01,
    effect: Literal["lowers", "raises"] = "lowers",
    steps: int = 1,
    draws: int = 10,
    seed: int = 0,
) -> QLD:
    """Trains a step more on the strongest samples of each question, and on random ones, and asks how far it moved.

    Where `qld` trains again without samples, this adds a little more of them to the trained model: it costs a gradient
    for each question, needs no recipe, and stays near where training ended. For losses of queries, `effect="lowers"`
    takes the samples that lower a loss most, so that it falls.

    Args:
        scores: Of all samples, in the order of the data.
        risk: Where training ended.
        objective: The questions that the scores answer.
        optimizer: The step on the mean loss of the samples, such as `SGD(1e-3)`; its state begins anew.
        share: Of the samples that the step is taken on; at least one is.
        effect: Which samples: those that lower a question (it should fall), or that raise it.
        steps: How many, each on the same samples.
        draws: Random groups, the same for all questions.
        seed: Of the random groups.

    Returns:
        The mean over questions of the change in the promised direction, over that of random samples, with its
        interval; and each question's own.

    Raises:
        DataError: If the scores are not those of all samples, or a number means nothing.
        ObjectiveError: If the scores answer other questions.
        ValueError: If the effect is neither word.

    Example:
        >>> from crossfluence import SGD, Recipe, influence
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> loss = lambda model, batch: (model(batch) - batch.sum(1, keepdim=True).sin()).square().sum(1)
        >>> recipe = Recipe(torch.nn.Linear(3, 1).double(), loss, x, optimizer=SGD(0.1, 0.9), epochs=100, l2=0.1)
        >>> risk, ask = recipe.risk(recipe.train()), lambda model: loss(model, x[:4] / 2)
        >>> found = tail_patch(influence(risk, ask), risk, ask, optimizer=SGD(0.01), share=0.05)
        >>> found.size, bool(found.value > 0)
        (3, True)

    References:
        Chang et al., "Scalable influence and fact tracing for large language model pretraining", ICLR 2025.
    """
    require(scores, Scores, "tail_patch", "Scores", "tail_patch(influence(...), risk, objective, optimizer=SGD(1e-3))")
    require_risk(risk, AbstractRisk, "tail_patch")
    require_question(objective, "tail_patch")
    require(optimizer, AbstractOptimizer, "optimizer=", "an optimizer", "optimizer=SGD(1e-3)")
    if steps < 1:
        raise DataError(f"Got steps={steps}; needed at least one.")
    groups, sign = strongest_and_random(scores, risk.n, effect=effect, share=share, draws=draws, seed=seed)
    names, before = evaluate(objective, risk.model)
    require_answered(scores.objectives, names)
    after = [_stepped(risk, rows, objective, optimizer, steps) for rows in groups.tolist()]
    return beside_random(torch.stack(after) - before.cpu(), sign, groups.shape[1], names, scores.method, seed)


def _stepped(
    risk: AbstractRisk, rows: Sequence[int], objective: Objective, optimizer: AbstractOptimizer, steps: int
) -> Tensor:
    """The questions after some steps on the mean loss of some samples."""
    labels = risk.labels
    model, only = copied(risk.model), risk.only(labels[row] for row in rows)
    with isolated():
        theta, scale = dict(risk.theta), risk.n / float(only.weights.sum())
        state = optimizer.start(theta)
        for count in range(1, steps + 1):
            own = only.field(theta) - risk.decay * risk.layout.flatten(theta)  # without the l2 term
            gradient = risk.layout.unflatten(scale * own)
            theta, state = optimizer.step(theta, gradient, state, count, 1.0)
        put(theta, model)
    return evaluate(objective, model)[1].cpu()
