"""A choice of samples to remove, relabel, duplicate or add so that a measure falls, and its effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._attribution.influence import influence
from .._autodiff.copies import copied
from .._autodiff.functional import isolated
from .._autodiff.params import put
from .._default.auto import Auto
from .._evaluation.leave_out import Training
from .._require import listed, require_question, require_risk
from .._results.ids import row_of
from .._results.scores import Scores
from .._results.verdict import Verdict
from .._risk.base import AbstractRisk
from .._risk.objectives import evaluate
from .._solvers.base import AbstractSolver
from .._training.recipe import Recipe
from .._types import Batch, Id, Objective
from ..errors import DataError, ObjectiveError, UnsupportedError, import_optional
from .by_replay import effects_by_replay, moved_by_replay, refuse_by_replay, together
from .carry_out import Chosen, carry_out
from .options import ACTIONS, Labels, Options, labels_of, options_of
from .outcome import Outcome
from .rounds import NAMES, Choice, Chooser, Round, newton, value_of


@dataclass(frozen=True)
class Action:
    """One thing to do with one sample.

    Attributes:
        kind: "remove", "relabel", "duplicate" or "add".
        id: Of the sample; for "add", its number in the pool.
        label: The name of the new label, where several were offered.
        change: Predicted first-order change of the question.
        keep: Predicted first-order change of what is kept; 0 if nothing is.
    """

    kind: str
    id: Id
    label: str
    change: float
    keep: float


@dataclass(frozen=True, eq=False)
class Recommendation:
    """Actions within a budget, with what they are predicted to do.

    Attributes:
        table: The predicted change of the question, and of what is kept, for every action on every sample; ids are
            `(action, id)`, or `(action, id, label)` where several labels were offered.
        chosen: What to do, in the order in which it was chosen.
        before: Values of the question and of what is kept at the trained model.
        linear: Their predicted changes by all chosen actions: the sum of the table's rows.
        predicted: Their predicted changes by one Newton step on the loss with all chosen actions taken; of a recipe,
            at the parameters displaced to first order.
        model: The model that this step predicts; ask it any other question.
        chooser: All that decided the choice.
        choice: The choice as numbers of options; what each round did; why it ended.

    Example:
        >>> from crossfluence import Risk, batches
        >>> x, net = torch.tensor([[1.0], [2.0]]), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(net.weight, 0.6)  # the least-squares solution
        >>> risk = Risk(net, lambda model, batch: (model(batch)[:, 0] - 1) ** 2, batches(x))
        >>> found = recommend(risk, lambda model: model.weight.sum(), ("remove",), budget=1)
        >>> [(action.kind, action.id) for action in found.chosen], found.stopped
        ([('remove', 0)], 'The budget of 1 was used.')
    """

    table: Scores = field(repr=False)
    chosen: tuple[Action, ...] = field(repr=False)
    before: Float[Tensor, " m"]
    linear: Float[Tensor, " m"]
    predicted: Float[Tensor, " m"]
    model: nn.Module = field(repr=False)
    chooser: Chooser = field(repr=False)
    choice: Choice = field(repr=False)

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The effect of each round of choosing."""
        return self.choice.rounds

    @property
    def stopped(self) -> str:
        """The reason why choosing ended, as a sentence."""
        return self.choice.stopped

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on the table."""
        return self.table.verdict

    def to_frame(self) -> Any:
        """The chosen actions as a pandas frame, one in each row."""
        pandas = import_optional("pandas", "Recommendation.to_frame", "frame")
        columns = ["action", "id", "label", "change", "keep"]
        rows = [(one.kind, one.id, one.label, one.change, one.keep) for one in self.chosen]
        return pandas.DataFrame(rows, columns=columns)

    def carry_out(self, train: Training | Any, seeds: int = 1, against_random: int = 20) -> Outcome:
        """Trains again with the chosen actions taken, and with as many at random; see `carry_out`.

        Args:
            train: A recipe, or a training function as for `leave_out`. To relabel or add, a function needs a second
                argument: it gets a weight for every row, and batches that hold the training data, its versions with
                other labels, and the pool, in this order.
            seeds: Orders of the data over which changes are averaged; more than one needs a recipe.
            against_random: How many random choices of the same number of each action stand beside it.

        Returns:
            Predicted beside achieved; `random` holds the changes by random choices, `noise` the standard error.
        """
        outcome = carry_out(Chosen(self.chooser, self.choice), train, seeds, against_random)
        return replace(outcome, predicted=self.predicted, linear=self.linear)


def recommend(
    risk: AbstractRisk | Recipe,
    question: Objective,
    actions: Sequence[str] = ACTIONS,
    *,
    pool: Iterable[Batch] | None = None,
    labels: Labels | Mapping[str, Labels] | None = None,
    budget: float,
    keep: Objective | None = None,
    rounds: int = 1,
    price: float = 3.0,
    until: float = 0.0,
    leave_alone: Iterable[Id] = (),
    solver: AbstractSolver = Auto(0.0),
) -> Recommendation:
    r"""Chooses samples to remove, relabel, duplicate or add so that a measure falls, within a budget.

    Every action is a change of sample weights, and its first-order effect is exact: removing sample i changes the
    question by minus its score, duplicating by its score, adding a sample by the score of a candidate, and replacing
    its loss $\ell_i$ by $\ell'_i$ under another label by $-\nabla m^\top J^{-1}(\nabla\ell'_i - \nabla\ell_i)/n$.
    Effects of a group do not add up exactly, so the choice ends with one Newton step on the changed loss; both numbers
    are reported. With rounds, a part of the budget is chosen at a time and two Newton steps are taken between; a round
    that falls by less than 30 % of its prediction is undone and the next one is a quarter as large.

    Args:
        risk: What training minimised, and where it ended.
        question: One number to lower, such as a gap; for what has a sign, ask for its size or square.
        actions: Any of "remove", "relabel", "duplicate", "add". Of the default, relabel is left out without `labels`
            and add without `pool`.
        pool: Batches of samples that may be added.
        labels: `batch -> batch` with other labels, or several such functions by name.
        budget: The most actions: a whole number, or a share of the samples below 1.
        keep: One number that should not rise, such as a held-out loss; of a quality, give the negative.
        rounds: In how many parts the budget is spent.
        price: How many units of the question a unit of `keep` is worth; an action counts by change + price x keep.
        until: Value of the question below which nothing is to be gained.
        leave_alone: Ids of samples that are not touched.
        solver: How to solve with the curvature; of a recipe nothing is solved.

    Returns:
        The table of all actions, the choice, and what it is predicted to do.

    Raises:
        DataError: If the budget is larger than the data, or pool or labels cannot be read.
        ObjectiveError: If the question or `keep` is not one number, or the question is at its end already.
        UnsupportedError: If an action is unknown, lacks its `labels` or `pool`, or the loss couples samples.
        IdError: If an id to leave alone is unknown.

    Warns:
        UnreliableWarning: If the effects cannot be believed; `verdict` has the reasons.

    Example:
        >>> from crossfluence import Exact, Risk, batches
        >>> class Mean(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.at = nn.Parameter(torch.tensor([2.0]))
        >>> x = torch.tensor([[0.0], [1.0], [5.0]])
        >>> risk = Risk(Mean(), lambda model, batch: (batch[:, 0] - model.at) ** 2 / 2, batches(x))
        >>> found = recommend(risk, lambda model: model.at[0], ("remove",), budget=1, solver=Exact())
        >>> found.chosen[0].id, round(found.linear.item(), 2), round(found.predicted.item(), 2)
        (2, -1.0, -1.5)
    """
    if not isinstance(risk, Recipe):
        require_risk(risk, AbstractRisk, "recommend")
    asked = (question,) if keep is None else (question, keep)
    _ = [require_question(each, "recommend") for each in asked]
    if not isinstance(solver, AbstractSolver):
        raise UnsupportedError("recommend solves at several points; it needs a solver, such as crossfluence.Auto().")
    _refuse_numbers(rounds, price)
    kinds = _possible(actions, labels, pool)
    recipe = risk if isinstance(risk, Recipe) else None
    if recipe is not None:
        refuse_by_replay(recipe, kinds, rounds)
        risk = recipe.risk(recipe.train())
    assert isinstance(risk, AbstractRisk)
    with isolated():
        risk.check()
        before = torch.stack([_one_value(each, risk, name) for each, name in zip(asked, NAMES, strict=False)])
        if not float(before[0]) > until:
            raise ObjectiveError(
                f"The question is {before[0].item():.4g}, not above until={until:g}: nothing to lower."
            )
        options = options_of(risk, kinds, labels, pool)
    count = _budget(budget, risk.n)
    chooser = Chooser(
        options, solver, question, keep, price, until, count, _allowed(options, risk, leave_alone)
    )  # fmt: skip
    if recipe is not None:
        return _through_training(recipe, risk, chooser, before, labels_of(labels, kinds))
    inverse = solver.invert(options.risk)
    scored = [influence(options.risk, each, inverse) for each in asked]
    effects = options.effects(torch.cat([one.values for one in scored], 1).double().cpu())
    with isolated():
        choice = (
            chooser.in_one(effects, float(before[0]))
            if rounds == 1
            else chooser.in_rounds(effects, float(before[0]), rounds, inverse)
        )
        model, predicted = _predicted(options, solver, choice, asked, before)
    return _recommended(chooser, choice, effects, scored[0], f"recommend({inverse.solver})", before, predicted, model)


def _through_training(
    recipe: Recipe, risk: AbstractRisk, chooser: Chooser, before: Tensor, labels: Sequence[Labels]
) -> Recommendation:
    """A choice by effects through every step of a training."""
    asked = together(chooser.asked, NAMES)
    rows, scores = effects_by_replay(recipe, asked, labels)
    effects = chooser.options.effects(rows)
    choice = chooser.in_one(effects, float(before[0]))
    model, predicted = copied(risk.model), torch.zeros_like(before)
    if choice.chosen:
        model = moved_by_replay(recipe, risk.model, chooser.options, choice.chosen, labels)
        with isolated():
            predicted = evaluate(asked, model)[1] - before
    return _recommended(chooser, choice, effects, scores, "recommend(replay)", before, predicted, model)


def _recommended(
    chooser: Chooser, choice: Choice, effects: Tensor, scores: Scores, method: str, before: Tensor, predicted: Tensor,
    model: nn.Module,
) -> Recommendation:  # fmt: skip
    names = NAMES[: len(chooser.asked)]
    table = Scores(effects, chooser.options.ids, names, method, scores.report, verdict=scores.verdict)
    chosen = tuple(_action(chooser.options.ids[number], effects[number].tolist()) for number in choice.chosen)
    return Recommendation(
        table, chosen, before, effects[list(choice.chosen)].sum(0), predicted, model, chooser, choice
    )  # fmt: skip


def _predicted(
    options: Options, solver: AbstractSolver, choice: Choice, asked: tuple[Objective, ...], before: Tensor
) -> tuple[nn.Module, Float[Tensor, " m"]]:
    """One Newton step with all chosen actions taken."""
    model = copied(options.risk.model)
    if not choice.chosen:
        return model, torch.zeros_like(before)
    changed = options.risk._reweighted(options.weights(choice.chosen))
    put(newton(changed, solver, options.risk.gradient), model)
    after = torch.stack([evaluate(each, model)[1][0] for each in asked])
    return model, after - before


def _action(label: tuple[Id, ...], effects: list[float]) -> Action:
    change, keep = [*effects, 0.0][:2]
    return Action(str(label[0]), label[1], str(label[2]) if len(label) > 2 else "", change, keep)


def _possible(actions: Sequence[str], labels: object, pool: object) -> tuple[str, ...]:
    """The actions asked for; of the default, those for which there is what they need."""
    kinds = (actions,) if isinstance(actions, str) else tuple(dict.fromkeys(actions))
    if unknown := [kind for kind in kinds if kind not in ACTIONS]:
        raise UnsupportedError(f"There is no action {unknown[0]!r}; there are {', '.join(ACTIONS)}.")
    lacking = {
        kind: line
        for kind, given, line in (
            ("relabel", labels, "labels=lambda batch: (batch[0], 1 - batch[1])"),
            ("add", pool, "pool=crossfluence.batches(x, y)"),
        )
        if given is None
    }
    if kinds == ACTIONS:
        return tuple(kind for kind in kinds if kind not in lacking)
    if missing := [kind for kind in kinds if kind in lacking]:
        raise UnsupportedError(f"The action {missing[0]!r} needs more. Type: {lacking[missing[0]]}.")
    if not kinds:
        raise UnsupportedError(f"Got no actions; needed some of {', '.join(ACTIONS)}.")
    return kinds


def _budget(budget: float, n: int) -> int:
    """A number of actions, from a number or a share."""
    plain = isinstance(budget, (int, float)) and not isinstance(budget, bool) and budget > 0
    if not plain or (budget >= 1 and budget != int(budget)):
        raise DataError(f"Got budget={budget!r}; needed a number of actions such as 100, or a share such as 0.01.")
    count = int(budget) if budget >= 1 else int(budget * n)
    if count > n:
        raise DataError(f"The budget of {count} actions is larger than the data of {n} samples.")
    if not count:
        raise DataError(f"The budget {budget:g} of {n} samples is less than one. Type budget=1.")
    return count


def _one_value(objective: Objective, risk: AbstractRisk, name: str) -> Tensor:
    names, values = evaluate(objective, risk.model)
    if len(names) != 1 or not bool(values.isfinite().all()):
        came = f"{len(names)} values, {names[:3]}" if len(names) != 1 else f"the value {value_of(objective, risk)}"
        raise ObjectiveError(f"The {name} has {came}; needed one finite number to weigh actions by. Combine them.")
    return values[0]


def _refuse_numbers(rounds: Any, price: Any) -> None:
    if not isinstance(rounds, int) or rounds < 1:
        raise UnsupportedError(f"Got rounds={rounds!r}; needed a whole number such as 5.")
    if not isinstance(price, (int, float)) or not 0 <= price < float("inf"):
        raise UnsupportedError(f"Got price={price!r}; needed a number such as 3.0, or 0 to weigh nothing against it.")


def _allowed(options: Options, risk: AbstractRisk, leave_alone: Iterable[Id]) -> Tensor:
    left = [row_of(label, risk.rows) for label in listed(leave_alone, "leave_alone=")]
    return ~torch.isin(options.samples, torch.tensor(left, dtype=torch.long))
