"""The verdict on an answer, from numbers that were measured beside it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import UnreliableWarning

Level: TypeAlias = Literal["sizes", "order", "unreliable"]

LEVELS: tuple[Level, ...] = ("sizes", "order", "unreliable")
MEANING = {
    "sizes": "Sizes and order can be believed",
    "order": "The order can be believed, the sizes cannot",
    "unreliable": "These scores cannot be believed",
}

# Chosen on seeds 0 and 1 of benchmarks/solvers/verdicts.py, and counted on seed 2.
ENDED = 0.05  # drift over the strongest score: below it, training had ended
DRIFTED = 0.2  # the same: above it, what is left of training rivals the samples
STILL = 1e-3  # the same: below it, even a point that is no minimum stays where it is
OPEN = (0.05, 0.5)  # share of the strongest score that a solve left open: above, order only; unreliable
DAMPED = 0.2  # share of what was solved that is damping and no curvature
DROWNED = 0.8  # the same: above it, little but the damping is left
BENT = (0.8, 1.25)  # curvature of the loss itself along the solution, over the one that was solved with
KINKED = 0.003  # jumps of slopes over all slopes of the samples
STRANGER = 0.005  # fall of the mean loss with weights 3 % smaller; trained models had at most .001
WORSE = 0.01  # fall of the mean loss with weights of zero
TRUE_SLOPE, TRUE = (0.75, 1.33), 0.9  # of trainings that were run to test the answer: sizes
LOOSE_SLOPE, LOOSE = (0.2, 5.0), 0.6  # of the same: order


@dataclass(frozen=True)
class Verdict:
    """A judgement of scores: their sizes can be believed, or only their order, or neither.

    Attributes:
        level: "sizes": a score is about the effect that retraining finds. "order": samples with larger scores have
            larger effects, by some factor. "unreliable": neither is to be expected.
        reasons: Clauses, the weightiest first.
        advice: Sentences that say what to type next.

    Example:
        >>> print(Verdict("order", ("gradient similarity has no unit",), ("Type solver=Auto().",)))
        The order can be believed, the sizes cannot: gradient similarity has no unit. Type solver=Auto().
    """

    level: Level
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"Got level={self.level!r}; needed one of {', '.join(map(repr, LEVELS))}.")
        object.__setattr__(self, "reasons", tuple(self.reasons))
        object.__setattr__(self, "advice", tuple(self.advice))

    def __str__(self) -> str:
        reasons = f": {'; '.join(self.reasons)}" if self.reasons else ""
        return " ".join([f"{MEANING[self.level]}{reasons}.", *self.advice])


@dataclass(frozen=True)
class Evidence:
    """Measurements beside the answers to m queries.

    Attributes:
        drift: How far one more Newton step of training would move each question.
        strongest: The largest score of each question in size, in the same unit.
        errors: How far the solve leaves each question's scores open, in the same unit.
        damped: For each question the share of what was solved that is damping.
        bend: Curvature of the loss along the first solution over that which was solved with; 1 where they are one, NaN
            where it is not known.
        kinks: Jumps of the samples' slopes at the trained parameters, over the sum of their sizes.
        stranger: Share by which the mean loss falls when weights are made 3 % smaller.
        worse: Share by which it falls when they are zero.
        lowest: A negative eigenvalue that the damping does not outweigh; `None` where there is none.
        approximation: What the solver leaves out, as a clause; empty where it solves with the curvature itself.
        notes: Sentences of the risk that limit what can be believed.
        basis: Why sizes can be believed, as a clause, where that is not because training had ended.
        agreements: With a curvature that nothing was sampled of, foretold by two halves: correlation and slope.
    """

    drift: Sequence[float] = ()
    strongest: Sequence[float] = ()
    errors: Sequence[float] = ()
    damped: Sequence[float] = ()
    bend: float = 1.0
    kinks: float = 0.0
    stranger: float = 0.0
    worse: float = 0.0
    lowest: float | None = None
    approximation: str = ""
    notes: tuple[str, ...] = ()
    basis: str = ""
    agreements: tuple[tuple[float, float], ...] = ()

    @property
    def left(self) -> float:
        """Drift over strongest scores, the questions taken together."""
        return _ratio(self.drift, self.strongest)


@dataclass(frozen=True)
class Finding:
    """One thing that limits what can be believed.

    Attributes:
        level: The most that is left.
        reason: A clause.
        advice: A sentence, or nothing.
    """

    level: Level
    reason: str
    advice: str = ""


def suspicious(evidence: Evidence) -> bool:
    """True if training had not ended, so that it is worth looking for the cause."""
    return not evidence.left <= ENDED


def of_influence(evidence: Evidence) -> Verdict:
    """The verdict on scores that a solve at trained parameters gave.

    Args:
        evidence: What was measured.

    Returns:
        The lowest level that any of it leaves, with all reasons.
    """
    rules = (_stranger, _kinks, _drift, _indefinite, _errors, _damping, _bend, _approximation, _halves)
    findings = [found for rule in rules if (found := rule(evidence)) is not None]
    findings += [Finding("order", note.rstrip(".")) for note in evidence.notes]
    ended = (
        f"training had ended: what is left of it would move the question by {evidence.left:.2g} of the largest score"
    )
    return verdict_of(findings, evidence.basis or ended)


def of_trainings(predicted: Sequence[float], actual: Sequence[float], what: str, advice: str) -> Verdict:
    """The verdict on scores that were tested by a few trainings.

    Args:
        predicted: Effects of some groups according to the scores, for all questions.
        actual: What training without them gave.
        what: What was trained, as a clause: "leaving out 3 groups".
        advice: What to type if they disagree.

    Returns:
        By correlation and slope, both about zero: the effect of nothing is known.
    """
    r, slope = _agreement(predicted, actual)
    reason = f"{what} moved the question {slope:.2g} times as far as predicted, with a correlation of {r:.2g}"
    if r > TRUE and TRUE_SLOPE[0] <= slope <= TRUE_SLOPE[1]:
        return Verdict("sizes", (reason,))
    if r > LOOSE and LOOSE_SLOPE[0] <= slope <= LOOSE_SLOPE[1]:
        return Verdict("order", (reason,), ("Take sizes from leave_out(recipe, objective, groups).",))
    return Verdict("unreliable", (reason,), (advice,))


ROUGH = (
    "Training is rough: type AdamW(lr, eps_root=1e-6), or Adam, with schedule=WarmUp(0.2), or SGD with a lower "
    "learning rate; larger batches and smooth activations (GELU, tanh) help. Or ask leave_out."
)


def verdict_of(findings: Iterable[Finding], otherwise: str) -> Verdict:
    """Puts findings together.

    Args:
        findings: Each with the most that it leaves.
        otherwise: The reason for "sizes", if there are none.

    Returns:
        The lowest level, with all reasons, those of the lowest level first.
    """
    found = sorted(findings, key=lambda one: -LEVELS.index(one.level))
    if not found:
        return Verdict("sizes", (otherwise,))
    advice = dict.fromkeys(one.advice for one in found if one.advice)
    return Verdict(found[0].level, tuple(dict.fromkeys(one.reason for one in found)), tuple(advice))


def merged(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    """The verdict on a mean of several scores: the lowest of theirs, with its reasons and how many say so.

    Args:
        verdicts: Of the members; `None` for scores made by hand.

    Returns:
        `None` if no member has one.
    """
    known = [one for one in verdicts if one is not None]
    if not known:
        return None
    level = LEVELS[max(LEVELS.index(one.level) for one in known)]
    worst = [one for one in known if one.level == level]
    count = f"{len(worst)} of {len(known)} members: " if len(known) > 1 else ""
    return Verdict(level, (count + "; ".join(worst[0].reasons),), worst[0].advice)


def at_most_order(verdict: Verdict, reason: str) -> Verdict:
    """The verdict, without a promise of sizes.

    Args:
        verdict: Any.
        reason: Why sizes cannot be promised, as a clause.

    Returns:
        The same if it promises none.
    """
    return Verdict("order", (*verdict.reasons, reason), verdict.advice) if verdict.level == "sizes" else verdict


def announce(verdict: Verdict, *, depth: int = 3) -> Verdict:
    """Warns if the scores cannot be believed, before anyone reads a number.

    Args:
        verdict: On the scores.
        depth: Frames up to the user's line.

    Returns:
        The verdict.

    Warns:
        UnreliableWarning: If its level is "unreliable".
    """
    if verdict.level == "unreliable":
        warnings.warn(str(verdict), UnreliableWarning, stacklevel=depth)
    return verdict


TRAIN_ON = (
    "Train until the gradient is small, or type replay(recipe, objective), which needs no minimum. Check with "
    "compare(scores, leave_out(...)) on a few groups."
)


def _drift(evidence: Evidence) -> Finding | None:
    left = evidence.left
    if left <= ENDED:
        return None
    reason = f"training had not ended: one more Newton step would move the question by {left:.2g} of the largest score"
    return Finding("order" if left <= DRIFTED else "unreliable", reason, TRAIN_ON)


def _kinks(evidence: Evidence) -> Finding | None:
    if evidence.kinks <= KINKED:
        return None
    return Finding(
        "unreliable",
        f"training ended in a kink of the loss, where second derivatives see nothing: slopes jump there by "
        f"{evidence.kinks:.1%} of those of all samples",
        "Smooth the loss (a squared hinge or softplus, a Huber loss for the absolute error), or ask leave_out.",
    )


def _stranger(evidence: Evidence) -> Finding | None:
    if evidence.stranger <= STRANGER and evidence.worse <= WORSE:
        return None
    smaller = evidence.stranger > STRANGER
    fall, how = (evidence.stranger, "made 3 % smaller") if smaller else (evidence.worse, "set to zero")
    return Finding(
        "unreliable",
        f"the model does not belong to these samples, or was hardly trained on them: their mean loss falls by "
        f"{fall:.1%} when its weights are {how}, which training would have done",
        "Give the samples, labels and preprocessing of the training, and its loss.",
    )


def _indefinite(evidence: Evidence) -> Finding | None:
    if evidence.lowest is None:
        return None
    known = f" (its smallest eigenvalue is {evidence.lowest:.2g})" if evidence.lowest else ""
    return Finding(
        "order" if evidence.left <= STILL else "unreliable",
        f"the curvature{known} is not positive with this damping, as it would be at a minimum",
        "Give a damping above it, or curvature=GaussNewton(), or train on.",
    )


def _errors(evidence: Evidence) -> Finding | None:
    shares = [error / size for error, size in zip(evidence.errors, evidence.strongest, strict=False) if size > 0]
    worst = max(shares, default=0.0)
    if worst <= OPEN[0]:
        return None
    several = f" in {sum(share > OPEN[0] for share in shares)} of {len(shares)} questions" if len(shares) > 1 else ""
    return Finding(
        "unreliable" if not worst <= OPEN[1] else "order",
        f"the solve stopped where scores may be off by {worst:.2g} of the largest{several}",
        "Raise max_steps or the damping, or give a preconditioner.",
    )


def _damping(evidence: Evidence) -> Finding | None:
    share = max(evidence.damped, default=0.0)
    if share <= DAMPED:
        return None
    near = ", which is nearly gradient similarity" if share > DROWNED else ""
    return Finding("order", f"{share:.0%} of what was solved is damping in place of curvature{near}", "Lower it.")


def _bend(evidence: Evidence) -> Finding | None:
    if BENT[0] <= evidence.bend <= BENT[1]:
        return None
    if math.isnan(evidence.bend):
        return Finding("order", "the curvature that was solved with could not be compared with that of the loss")
    return Finding(
        "order",
        f"along the solution the loss curves {evidence.bend:.2g} times as much as the curvature that was solved with",
        "Type curvature=Hessian().",
    )


def _approximation(evidence: Evidence) -> Finding | None:
    return Finding("order", evidence.approximation) if evidence.approximation else None


def _halves(evidence: Evidence) -> Finding | None:
    """Judged as trainings are that test an answer."""
    if not evidence.agreements:
        return None
    r, slope = (min(pair[place] for pair in evidence.agreements) for place in (0, 1))
    if r > TRUE and slope >= TRUE_SLOPE[0]:
        return None
    return Finding(
        "order" if r > LOOSE and slope >= LOOSE_SLOPE[0] else "unreliable",
        f"two halves of what the curvature was sampled with foretell that more would agree with a correlation of "
        f"{r:.2g} and a slope of {slope:.2g} only",
        "Take more: Horizon(roots=...) or Horizon(pilot=...).",
    )


def _ratio(part: Sequence[float], whole: Sequence[float]) -> float:
    """Of sums of sizes; zero of zero is nothing."""
    top, bottom = sum(map(abs, part)), sum(map(abs, whole))
    return top / bottom if bottom else float("inf") if top else 0.0


def _agreement(predicted: Sequence[float], actual: Sequence[float]) -> tuple[float, float]:
    """Correlation and slope about zero; those of nothing with nothing are 1."""
    both = sum(x * y for x, y in zip(predicted, actual, strict=True))
    one, other = sum(x * x for x in predicted), sum(y * y for y in actual)
    if not one or not other:
        return (1.0, 1.0) if one == other else (0.0, 0.0)
    return both / (one * other) ** 0.5, both / one
