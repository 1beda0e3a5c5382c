"""Training again without some samples, beside what was predicted."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .._attribution.influence import influence
from .._evaluation.leave_out import Training, trained_models
from .._require import AbstractTraining, listed, require, require_answered, require_question, require_training
from .._results.ids import numbered, plain_id, row_of
from .._results.scores import Scores
from .._risk.objectives import evaluate
from .._types import Id, Objective
from ..errors import DataError
from .outcome import Outcome


def remove(
    train: Training,
    ids: Iterable[Id],
    objective: Objective,
    *,
    scores: Scores | None = None,
    n: int | None = None,
) -> Outcome:
    """Trains with and without the samples, and sets the predicted change beside the achieved one.

    Args:
        train: Sample weights `(n,)` to a trained model, or a `Recipe`, or a `Bank` of its models.
        ids: The samples to remove.
        objective: The question.
        scores: Influences on the same objectives, from which the change is predicted (minus their sum). A recipe
            computes them itself if they are not given.
        n: Number of samples; needed only for a training function without scores.

    Returns:
        The model trained without the samples.

    Raises:
        DataError: If the number of samples is unknown.
        IdError: If an id is unknown.
        ObjectiveError: If the scores answer other questions.
        ValueError: If there is nothing to remove.

    Example:
        >>> from crossfluence import Recipe, SGD
        >>> x, y = torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([[0.0], [0.0], [3.0]])
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)
        >>> recipe = Recipe(torch.nn.Linear(1, 1, bias=False), loss, (x, y), optimizer=SGD(0.3), epochs=40)
        >>> outcome = remove(recipe, [2], lambda model: model.weight[0, 0])
        >>> round(outcome.achieved.item(), 3), round(outcome.predicted.item(), 3)
        (-1.0, -0.667)
    """
    require_training(train, "remove")
    require_question(objective, "remove")
    if scores is not None:
        require(scores, Scores, "remove(scores=)", "Scores", "remove(train, ids, objective, scores=influence(...))")
    chosen = [plain_id(label) for label in listed(ids, "the samples of remove")]
    if not chosen:
        raise ValueError("Got no samples to remove; needed at least one id.")
    _ = numbered(chosen)  # an id that stands twice would be predicted twice
    count = train.n if isinstance(train, AbstractTraining) else len(scores) if scores is not None else n
    if count is None:
        raise DataError("remove needs to know how many samples there are: pass scores= or n=.")
    if scores is not None and len(scores) != count:
        raise DataError(f"Got scores of {len(scores)} samples for a training set of {count}; needed one for each.")
    rows = numbered(scores.ids if scores is not None else range(count))
    weights = torch.ones(2, count)
    weights[1, [row_of(label, rows) for label in chosen]] = 0
    with torch.random.fork_rng(), torch.enable_grad():
        whole, rest = trained_models(train, weights)
    names, before = evaluate(objective, whole)
    _, after = evaluate(objective, rest)
    if scores is None and isinstance(train, AbstractTraining):
        scores = influence(train.recipe.risk(whole), objective)
    if scores is not None:
        require_answered(scores.objectives, names)
    predicted = None if scores is None else -scores.select(chosen).values.double().sum(0).cpu()
    return Outcome(rest, names, before, after, predicted, None, f"remove({len(chosen)} samples)")
