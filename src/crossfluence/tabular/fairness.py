"""A gap between groups, narrowed by a few rows: train, choose, carry out, beside random rows and reweighing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from .. import CG, Exact, GaussNewton, Outcome, Recommendation, Risk, mean_over, recommend
from ..errors import DataError, UnsupportedError, import_optional
from .estimators import batches_of, risk_of
from .gaps import GroupGap, group_gap
from .labels import flipped
from .measured import Interval, Measured, measured, paired
from .refit import training_of

Model: TypeAlias = Literal["logistic", "mlp"]

ROUNDS, PRICE, LEVERAGE = 5, 3.0, 0.25  # chosen on other splits of Adult and COMPAS than those that are reported
ROUNDS_TO_NOTHING = 1e-6  # a soft gap, of rates between 0 and 1
PENALTY = {"logistic": 1e-3, "mlp": 1e-2}  # l2 per mean loss
HIDDEN, STEPS = 32, 3000
DAMPING = (
    1e-2  # the network's penalty, on its biases too; with less, Newton steps in rounds drift along flat directions
)


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a table.

    Attributes:
        x: Features, `(n, f)`.
        y: Labels, 1 for the favourable class, `(n,)`.
        groups: The group of each row.
    """

    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    groups: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.y)

    def and_(self, other: Part) -> Part:
        """The rows of both."""
        pairs = ((self.x, other.x), (self.y, other.y), (self.groups, other.groups))
        return Part(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class FairSettings:
    """All that decides an answer about a gap.

    Attributes:
        metric: One of `METRICS`.
        actions: Any of "remove", "relabel", "add".
        budget: Actions at most: a number, or a share of the training rows below 1.
        model: "logistic", or "mlp" for a network of 32 units, for which rows are removed only.
        rounds: In how many parts the budget is spent.
        price: Units of the gap for a unit of held-out loss.
        draws: Random choices that stand beside.
        seed: Of the network's weights and the resampled test rows.
    """

    metric: str
    actions: tuple[str, ...] = ("remove",)
    budget: float = 0.01
    model: Model = "logistic"
    rounds: int = ROUNDS
    price: float = PRICE
    draws: int = 10
    seed: int = 0


@dataclass(frozen=True, eq=False)
class FairAnswer:
    """A gap before and after, predicted and achieved.

    Attributes:
        settings: As asked.
        asked: The soft gap that was lowered, on training and validation rows.
        found: The recommendation; ids are rows of the training part, of "add" rows of the pool.
        outcome: The recommendation carried out.
        before: On the test rows, of the model trained on all rows.
        predicted: The same of the model that one Newton step predicts.
        after: The same of the model trained with the actions taken.
        random: The same with as many random rows, one for each draw.
        reweighed: The same of the model trained with the weights of Kamiran and Calders.
        change: Of the gap on the test rows, paired, with its interval.
        halving: Of the gap after less half of the gap before: below zero where the gap was halved.
        asked_hard: The hard gap on the rows asked: before, by the Newton step, and after.
        seconds: Of each phase.
    """

    settings: FairSettings
    asked: GroupGap = field(repr=False)
    found: Recommendation
    outcome: Outcome
    before: Measured
    predicted: Measured
    after: Measured
    random: tuple[Measured, ...]
    reweighed: Measured
    change: Interval
    halving: Interval
    asked_hard: tuple[float, float, float]
    seconds: dict[str, float]

    @property
    def halved(self) -> bool:
        """True if a paired interval on test rows supports that the gap is at most half of what it was."""
        return self.halving.high < 0

    @property
    def reduced(self) -> bool:
        """True if a paired interval on test rows supports that the gap is smaller."""
        return self.change.high < 0


def explain_gap(
    train: Part, validation: Part, test: Part, settings: FairSettings, *, pool: Part | None = None
) -> FairAnswer:
    """Trains, recommends rows that narrow a gap, trains again with the actions taken, and measures on test rows.

    The gap is asked about on training and validation rows with their own labels; what is kept is the loss of the
    validation rows. Rows with a leverage above .25 are left alone.

    Args:
        train: Rows to train on.
        validation: Rows to ask about beside them.
        test: Rows to measure on.
        settings: Metric, actions, budget, model.
        pool: Rows that may be added.

    Returns:
        Gap and accuracy before, predicted and achieved, beside random rows and reweighing.

    Raises:
        ObjectiveError: If the gap is undefined on a part, or is zero already.
        UnsupportedError: If a network's rows are to be relabelled or added.
        DataError: If there is nothing to add, or no action lowers the gap.

    References:
        Kamiran and Calders, "Data preprocessing techniques for classification without discrimination", Knowledge and
        Information Systems 33, 2012.
    """
    _refuse(settings, pool)
    clock, laps = time.perf_counter(), dict[str, float]()
    asked = train.and_(validation)
    tested = group_gap(settings.metric, torch.from_numpy(test.x), test.y, test.groups)
    _refuse_other_groups(group_gap(settings.metric, torch.from_numpy(asked.x), asked.y, asked.groups), tested)
    estimator = _estimator(settings, len(train)).fit(train.x, train.y)
    risk = risk_of(estimator, train.x, train.y)
    gap = group_gap(settings.metric, torch.from_numpy(asked.x), asked.y, asked.groups, at=risk.model)
    _refuse_no_gap(gap, risk)
    laps["training"], clock = time.perf_counter() - clock, time.perf_counter()
    found = recommend(
        risk, gap, settings.actions, labels=flipped if "relabel" in settings.actions else None,
        pool=None if pool is None or "add" not in settings.actions else batches_of(estimator, pool.x, pool.y),
        budget=settings.budget, rounds=settings.rounds, price=settings.price,
        keep=mean_over(batches_of(estimator, validation.x, validation.y), risk.loss.losses),  # pyright: ignore
        leave_alone=_far_out(risk, settings), solver=Exact() if settings.model == "logistic" else _for_networks(),
    )  # fmt: skip
    if not found.chosen:
        raise DataError(
            f"No row to {' or '.join(settings.actions)} was found that narrows this gap. {found.stopped} "
            f"Ask about another metric, or allow other actions or more of them."
        )
    laps["choosing"], clock = time.perf_counter() - clock, time.perf_counter()
    fitting, drawn = training_of(estimator, train.x, train.y), list[nn.Module]()
    outcome = found.carry_out(_Recorded(fitting, drawn), against_random=settings.draws)
    weights = reweighing(train)
    again = _estimator(settings, len(train)).fit(train.x, train.y, sample_weight=weights)
    models = [risk.model, found.model, outcome.model, *drawn[2:], risk_of(again, train.x, train.y, weights).model]
    before, predicted, after, *random, reweighed = [measured(tested, model, settings.seed) for model in models]
    change, halving = (paired(tested, risk.model, outcome.model, share, settings.seed) for share in (1.0, 0.5))
    laps["training again"] = time.perf_counter() - clock
    hard = (gap.hard(risk.model), gap.hard(found.model), gap.hard(outcome.model))
    return FairAnswer(
        settings, gap, found, outcome, before, predicted, after, tuple(random), reweighed, change, halving, hard, laps
    )


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A training function that keeps its models, so that other questions can be asked of them."""

    train: Any
    models: list[nn.Module]

    def __call__(self, weights: Tensor, data: Any = None) -> nn.Module:
        model = self.train(weights, data)
        self.models.append(model)
        return model


def reweighing(part: Part) -> np.ndarray:
    """The weights of Kamiran and Calders, which make group and label independent.

    Args:
        part: Rows to train on.

    Returns:
        P(group) P(label) / P(group, label) for each row.

    Example:
        >>> part = Part(np.zeros((4, 1)), np.array([1, 1, 0, 1]), np.array(["a", "a", "a", "b"]))
        >>> reweighing(part).round(3).tolist()
        [1.125, 1.125, 0.75, 0.75]
    """
    weights = np.ones(len(part))
    for group in set(part.groups.tolist()):
        for label in (0, 1):
            mine, same = part.groups == group, part.y == label
            if (mine & same).any():
                weights[mine & same] = mine.mean() * same.mean() / (mine & same).mean()
    return weights


def _estimator(settings: FairSettings, n: int) -> Any:
    strength = PENALTY[settings.model] * n
    if settings.model == "logistic":
        linear = import_optional("sklearn.linear_model", "A gap between groups", "tabular")
        return linear.LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-9, max_iter=200)
    networks = import_optional("sklearn.neural_network", "A gap between groups", "tabular")
    return networks.MLPClassifier(
        (HIDDEN,), activation="tanh", solver="lbfgs", alpha=strength, max_iter=STEPS, max_fun=10 * STEPS, tol=1e-6,
        random_state=settings.seed,
    )  # fmt: skip


def _for_networks() -> CG:
    """Gauss-Newton, slightly damped: biases have no penalty, and leave directions that are nearly flat."""
    return CG(damping=DAMPING, curvature=GaussNewton(), rtol=1e-3)


def _far_out(risk: Risk, settings: FairSettings) -> list[int]:
    """Training rows whose leverage is so large that relabelling them goes wrong; of a linear model only."""
    if settings.model != "logistic":
        return []
    leverages = leverage(risk)
    return (leverages > LEVERAGE).nonzero()[:, 0].tolist()


def leverage(risk: Risk) -> Tensor:
    """x'H⁻¹x of every row, H the Hessian of the summed loss of a logistic regression.

    Args:
        risk: From `risk_of`.

    Returns:
        Shape `(n,)`.
    """
    with torch.no_grad():
        x = torch.cat([batch[0] for batch in risk.data])
        p = torch.cat([risk.model(batch[0])[:, 0] for batch in risk.data]).sigmoid()
        rows = torch.cat([x, x.new_ones(len(x), 1)], 1)
        hessian = (rows * (p * (1 - p)).unsqueeze(1)).T @ rows
        hessian.diagonal()[:-1] += PENALTY["logistic"] * len(x)
        return (rows * torch.linalg.solve(hessian, rows.T).T).sum(1)


def _refuse(settings: FairSettings, pool: Part | None) -> None:
    extra = [action for action in settings.actions if action not in {"remove", "relabel", "add"}]
    if extra or not settings.actions:
        raise UnsupportedError(f"Got the actions {settings.actions}; needed any of remove, relabel, add.")
    if settings.model == "mlp" and settings.actions != ("remove",):
        raise UnsupportedError(
            "For a network rows are removed only: predictions of relabelling were seen with the wrong sign. Ask for "
            "the action remove, or for the logistic model."
        )
    if "add" in settings.actions and (pool is None or not len(pool)):
        raise DataError("The action add needs a pool of rows that were not trained on; got none.")


def _refuse_other_groups(asked: GroupGap, tested: GroupGap) -> None:
    """A group that is asked about and not tested, or tested and not asked about, would make two different gaps."""
    for here, there, other in ((asked, tested, "among the test rows"), (tested, asked, "among those asked about")):
        if alone := [name for name in here.names if name not in there.names]:
            place = here.names.index(alone[0])
            raise DataError(
                f"The group {alone[0]!r} has rows ({int((here.groups == place).sum())}), and none {other}; there are "
                f"{', '.join(map(repr, there.names[:8]))}. Needed the same groups in both, spelt alike: join it with "
                f"another, leave its rows out, or ask about one group against all others."
            )


def _refuse_no_gap(gap: GroupGap, risk: Risk) -> None:
    """A gap that rounds to nothing has no derivative to follow."""
    with torch.no_grad():
        value, right = float(gap(risk.model)), bool(((gap.decide(risk.model, gap.x) > 0) == (gap.y > 0)).all())
    if value > ROUNDS_TO_NOTHING:
        return
    why = " The model is right about all of them: does a column say the label? Leave it out." if right else ""
    raise DataError(
        f"On the {len(gap.y)} rows asked about the groups are treated alike: there is no gap to narrow.{why}"
    )


def with_actions(settings: FairSettings, *actions: str) -> FairSettings:
    """The same settings with other actions."""
    return replace(settings, actions=actions)
