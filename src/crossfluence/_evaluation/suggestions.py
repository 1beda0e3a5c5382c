"""Changes of a recipe that make its training smooth, each with the distance of its model from the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from .._autodiff.functional import isolated
from .._require import AbstractTraining
from .._results.agreement import Agreement
from .._training.optimizers import AbstractOptimizer, Adam, AdamW
from .._training.recipe import Recipe
from .._training.schedules import WarmUp
from .._types import Objective
from ..errors import CrossfluenceError, UnsupportedError, import_optional
from .model_cache import Bank
from .nudges import Nudges

if TYPE_CHECKING:
    import pandas as pd

SMOOTH = 0.9  # correlation between the effects of a nudge, scaled up, and of a removal
EPS_ROOT, WARM_UP = 1e-6, 0.2


@dataclass(frozen=True, eq=False)
class SuggestedChange:
    """One change of a recipe.

    Attributes:
        name: The change, as it is typed.
        recipe: The changed recipe.
        smoothness: Correlation of small changes, scaled up, with removals; NaN if a training failed.
        moved: Distance of the trained parameters from the user's, over the distance that the user's training went.
        questions: Change of each question's answer.
        loss: Change of the mean training loss at the end.
        note: Why it failed, if it did.

    Example:
        >>> from crossfluence import SGD
        >>> recipe = Recipe(nn.Linear(1, 1), lambda model, x: model(x)[:, 0] ** 2, torch.ones(3, 1), optimizer=SGD(0.1),
        ...                 epochs=1)
        >>> SuggestedChange("lr=0.1", recipe, smoothness=0.95, moved=0.2, questions={"m": 0.1}, loss=0.01).moved
        0.2
    """

    name: str
    recipe: Recipe = field(repr=False)
    smoothness: float
    moved: float
    questions: dict[str, float]
    loss: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class Suggestions:
    """Changes that were tried on a training, from the nearest to the farthest.

    Attributes:
        agreement: Of the training as it is.
        changes: What was tried.

    Example:
        >>> from crossfluence import SGD, smoothness
        >>> x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> start = nn.Linear(2, 1, dtype=torch.float64)
        >>> _ = nn.init.zeros_(start.weight), nn.init.zeros_(start.bias)
        >>> loss = lambda model, batch: (model(batch)[:, 0] - batch.sum(1)) ** 2
        >>> recipe = Recipe(start, loss, x, optimizer=SGD(0.1), epochs=5)
        >>> found = smoothness(recipe, lambda model: model.weight.sum(), groups=3, suggest=True)
        >>> found.agreement.pearson > 0.9, sorted(one.name for one in found.changes)
        (True, ['lr=0.05', 'lr=0.05, schedule=WarmUp(0.2)', 'schedule=WarmUp(0.2)'])
    """

    agreement: Agreement
    changes: tuple[SuggestedChange, ...]

    @property
    def best(self) -> SuggestedChange | None:
        """The smooth one whose model is nearest to the user's; `None` where none is smooth."""
        return next((one for one in self.changes if one.smoothness >= SMOOTH), None)

    def __str__(self) -> str:
        now = f"As it is, small changes correlate with removals at {self.agreement.pearson:.2f}"
        if self.agreement.pearson >= SMOOTH:
            return f"{now}: smooth enough, nothing needs to be changed."
        if self.best is None:
            return f"{now}; none of {len(self.changes)} changes reaches {SMOOTH}. Ask leave_out, over several seeds."
        best = self.best
        return (
            f"{now}; with {best.name} at {best.smoothness:.2f}. Its model ends {best.moved:.0%} of the way that "
            f"training went from yours, with a training loss that is {best.loss:+.2g}."
        )

    def to_frame(self) -> pd.DataFrame:
        """A table with one row for each change.

        Returns:
            A pandas DataFrame: smoothness, distance, change of the loss and of each question.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        pd = import_optional("pandas", "Suggestions.to_frame", "frame")
        rows = [
            {"smoothness": one.smoothness, "moved": one.moved, "loss": one.loss, **one.questions, "note": one.note}
            for one in self.changes
        ]
        return pd.DataFrame(rows, index=pd.Index([one.name for one in self.changes], name="change"))


def suggestions(
    train: AbstractTraining,
    objective: Objective,
    nudges: Nudges,
    executor: Executor | None,
    store: str | os.PathLike[str] | None,
) -> Suggestions:
    """Tries changes of a recipe.

    Args:
        train: A recipe, or a bank of its models.
        objective: The question.
        nudges: How smoothness is measured.
        executor: As in `leave_out`.
        store: As in `leave_out`.

    Returns:
        All of them, from the nearest model to the farthest; failed ones last.

    Raises:
        UnsupportedError: If it is neither a recipe nor a bank.
    """
    if not isinstance(train, (Recipe, Bank)):
        raise UnsupportedError(f"suggest=True needs a crossfluence.Recipe or a Bank; got {type(train).__name__}.")
    agreement, values = nudges.compared(train, objective, executor, store)
    own, tried = train.recipe.train(), []
    for name, changed in changes(train.recipe):
        other = changed if isinstance(train, Recipe) else replace(train, recipe=changed)
        try:
            found, answers = nudges.compared(other, objective, executor, store)
            model = changed.train()
        except CrossfluenceError as error:  # a training diverged
            nothing = float("nan")
            tried.append(SuggestedChange(name, changed, nothing, nothing, {}, nothing, str(error)))
            continue
        asked = dict(zip(agreement.objectives, (answers - values).tolist(), strict=True))
        loss = _loss(train.recipe, model) - _loss(train.recipe, own)
        tried.append(
            SuggestedChange(name, changed, float(found.pearson), _moved(train.recipe, own, model), asked, loss)
        )
    return Suggestions(agreement, tuple(sorted(tried, key=lambda one: one.moved if one.moved >= 0 else float("inf"))))


def changes(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Changes that may help, as they are typed, and the changed recipes.

    Args:
        recipe: The user's.

    Yields:
        Names and recipes.
    """
    optimizer, smoother = recipe.optimizer, recipe.optimizer
    names: list[str] = []
    if isinstance(optimizer, (Adam, AdamW)) and optimizer.eps_root < EPS_ROOT:
        smoother = replace(optimizer, eps_root=EPS_ROOT)
        names.append(f"eps_root={EPS_ROOT:g}")
        yield names[0], replace(recipe, optimizer=smoother)
    warmed = recipe.schedule
    if not isinstance(warmed, WarmUp):
        warmed = WarmUp(WARM_UP, recipe.schedule)
        names.append(f"schedule=WarmUp({WARM_UP})")
        yield names[-1], replace(recipe, schedule=warmed)
    if len(names) > 1:
        yield ", ".join(names), replace(recipe, optimizer=smoother, schedule=warmed)
    yield f"lr={optimizer.lr / 2:g}", replace(recipe, optimizer=_halved(optimizer))
    if names:
        slower = replace(recipe, optimizer=_halved(smoother), schedule=warmed)
        yield ", ".join([f"lr={optimizer.lr / 2:g}", *names]), slower
    if recipe.order is None and recipe.batch_size is not None and 2 * recipe.batch_size <= recipe.n:
        size = 2 * recipe.batch_size
        yield (
            f"batch_size={size}, epochs={2 * recipe.epochs}",
            replace(recipe, batch_size=size, epochs=2 * recipe.epochs),
        )


def _halved(optimizer: AbstractOptimizer) -> AbstractOptimizer:
    return replace(optimizer, lr=optimizer.lr / 2)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _moved(recipe: Recipe, own: nn.Module, other: nn.Module) -> float:
    """Distance of two models over that from the start to the first."""
    start, first, second = (
        torch.cat([part.detach().double().flatten() for part in model.parameters()])
        for model in (recipe.init, own, other)
    )
    way = float((first - start).norm())
    return float((second - first).norm()) / way if way else float("inf")


def _loss(recipe: Recipe, model: nn.Module) -> float:
    """The mean training loss, without l2; NaN where it has no one value."""
    try:
        with isolated():
            risk = recipe.risk(model)
            totals = [float(risk.total(risk.theta, risk.theta, batch, w)) for _, batch, w in risk.passes()]
    except CrossfluenceError:  # a loss that draws random numbers
        return float("nan")
    return sum(totals) / risk.n
