"""The first sentence of every answer: whether its scores can be relied on, why not, and what to type instead.

The rule is made of comparisons that the commands make anyway. A level is the worst that any of them gives:

=========================================== =================== ================= ====================
comparison                                  sizes               order             unreliable
=========================================== =================== ================= ====================
one by one: r with retraining               at least .9         at least .6       below
one by one: slope (retrained per predicted) .67 to 1.5          any other
a group: achieved per predicted change      .67 to 1.5          .2 to 5           other, or another sign
training's own noise per achieved change    at most .2          at most .5        more
what is left of training, per such change   at most .2          at most .5        more
=========================================== =================== ================= ====================

A group has two predictions, the sum of its scores and one Newton step without it. Neither may have the other sign, nor
be far off in size, unless it misses by no more than noise, or by at most .2 of the change by the strongest group: then
it is no worse than "order". A sum of the right sign that is far off is "order" too where the Newton step foretells
the group within .67 to 1.5. Noise is the largest change by a random group that was not foretold. Where fewer than ten
samples were left out, r is taken about zero: three points lie on many lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from ..._results.agreement import Agreement

Level: TypeAlias = Literal["sizes", "order", "unreliable"]
Finding: TypeAlias = tuple[Level, str]
"""What one comparison says: a level, and its figures in words."""

LEVELS: tuple[Level, ...] = ("sizes", "order", "unreliable")
"""From the best to the worst."""

SAID: dict[Level, str] = {
    "sizes": "These scores can be relied on, in order and size",
    "order": "These scores can be relied on in their order, not in their sizes",
    "unreliable": "These scores cannot be relied on",
}
HIGH, SOME = 0.9, 0.6  # r
LOW_SLOPE, HIGH_SLOPE = 0.67, 1.5
LEAST_RATIO, MOST_RATIO = 0.2, 5.0
LITTLE, MUCH = 0.2, 0.5  # noise, or what is left of training, per achieved change
FEW = 10  # samples left out, below which r is taken about zero
NO_EFFECT = 0.05  # one-sided p-value, in either direction


class HasVerdict(Protocol):
    """The interface of a verdict from elsewhere, such as that of `Scores`."""

    @property
    def level(self) -> Level:
        """One of `LEVELS`."""
        ...

    @property
    def reasons(self) -> Sequence[str]:
        """The reasons, in words."""
        ...

    @property
    def advice(self) -> Sequence[str]:
        """The line to type next."""
        ...


@dataclass(frozen=True)
class Removed:
    """A group that was removed together; all changes in the question's unit.

    Attributes:
        name: Which.
        predicted: Change by the sum of scores.
        newton: Change by one Newton step; None or NaN if there was none.
        achieved: Change by training again.
        random: Whether it was drawn at random, or chosen by other means than scores.
    """

    name: str
    predicted: float
    newton: float | None
    achieved: float
    random: bool = False

    @property
    def foretold(self) -> float:
        """The better prediction: the Newton step, where there is one."""
        return self.predicted if self.newton is None or math.isnan(self.newton) else self.newton

    @property
    def missed(self) -> float:
        """The change that was not foretold."""
        return abs(self.achieved - self.foretold)


@dataclass(frozen=True)
class Reliability:
    """A judgement of how far scores can be relied on.

    Attributes:
        level: "sizes", "order" or "unreliable".
        reasons: Why it is no better; if it is the best, what shows it.
        advice: What to type, if it is "unreliable".

    Example:
        >>> print(Reliability("unreliable", ("cluster 9 holds no row",), ("--k 9",)))
        These scores cannot be relied on: cluster 9 holds no row; type --k 9.
    """

    level: Level
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def dependable(self) -> bool:
        """True if at least their order can be relied on."""
        return self.level != "unreliable"

    def __str__(self) -> str:
        why = "; ".join(self.reasons) + (f"; type {', or '.join(self.advice)}" if self.advice else "")
        return f"{SAID[self.level]}: {why}."


def judged(found: Iterable[Finding], *, advice: Sequence[str] = (), verdict: HasVerdict | None = None) -> Reliability:
    """The worst level of several comparisons, with the reasons that gave it.

    Args:
        found: Levels with their reasons.
        advice: What to type if the scores are unreliable.
        verdict: Of the scores themselves, if there is one; its advice counts where there is no other.

    Returns:
        The level, its reasons and the advice.

    Example:
        >>> judged([("sizes", "r = 1.000"), ("order", "slope 0.400")])
        Reliability(level='order', reasons=('slope 0.400',), advice=())
    """
    all_found: list[Finding] = list(found)
    if verdict is not None:
        level: Level = verdict.level
        all_found.extend((level, reason) for reason in verdict.reasons)
        advice = advice or verdict.advice
    worst = LEVELS[max((LEVELS.index(level) for level, _ in all_found), default=0)]
    reasons = tuple(dict.fromkeys(reason for level, reason in all_found if level == worst))
    return Reliability(worst, reasons, tuple(advice) if worst == "unreliable" else ())


def left_out_alone(found: Agreement, noun: str) -> list[Finding]:
    """A judgement by leaving out samples one by one.

    Args:
        found: Predicted beside achieved.
        noun: What a sample is called.

    Returns:
        One finding.
    """
    r, slope, count = _correlation(found), float(found.slope), len(found.ids)
    figures = f"training again without each of {count} {noun}s agrees with r = {r:.3f} and slope {slope:.3f}"
    if not r >= SOME:
        return [("unreliable", figures)]
    sized = r >= HIGH and LOW_SLOPE <= slope <= HIGH_SLOPE
    return [("sizes", figures)] if sized else [("order", figures)]


def _correlation(found: Agreement) -> float:
    if len(found.ids) >= FEW:
        return float(found.pearson)
    size = np.linalg.norm(found.predicted) * np.linalg.norm(found.actual)
    return float((found.predicted * found.actual).sum() / size) if size else math.nan


def removed_together(groups: Sequence[Removed], question: str, unit: str) -> list[Finding]:
    """A judgement by removing groups: each chosen one beside its predictions, and beside the noise of random ones.

    Args:
        groups: Chosen and random ones.
        question: What is asked, such as "the margin".
        unit: Of the question, with a blank before it; empty if it has none.

    Returns:
        Findings.
    """
    most = strongest(groups)
    random = [group for group in groups if group.random]
    noisiest = max(random, key=lambda group: group.missed, default=None)
    noise = 0.0 if noisiest is None else noisiest.missed
    found: list[Finding] = []
    for group in groups:
        if group is noisiest or not group.random:
            level = share_of(group.missed, most) if group.random else foretold(group, most, noise)
            said = f"removing {group.name} together changed {question} by {group.achieved:+.3f}{unit}"
            found.append((level, f"{said}, predicted {predictions(group)}"))
    return found


def strongest(groups: Sequence[Removed]) -> float:
    """The largest change that removing a chosen group made."""
    return max((abs(group.achieved) for group in groups if not group.random), default=0.0)


def foretold(group: Removed, most: float, noise: float = 0.0) -> Level:
    """A level by what a chosen group achieved, beside each of its predictions.

    Args:
        group: Chosen, not random.
        most: The largest change that a chosen group made.
        noise: The largest change by a random group that was not foretold.

    Returns:
        "unreliable" if a prediction has the other sign or is far off in size, beyond noise.

    Example:
        >>> foretold(Removed("it", -0.9, 2.27, -0.74), 0.74), foretold(Removed("it", -0.9, -0.8, -0.74), 0.74)
        ('unreliable', 'sizes')
    """
    given = [group.predicted, *([] if group.foretold == group.predicted else [group.foretold])]
    parts = [_per(group.achieved, one) for one in given]
    if all(LOW_SLOPE <= part <= HIGH_SLOPE for part in parts):
        return "sizes"
    near = [
        LEAST_RATIO <= part <= MOST_RATIO or abs(group.achieved - one) <= max(noise, LITTLE * most)
        for part, one in zip(parts, given, strict=True)
    ]
    bent = parts[0] > 0 and LOW_SLOPE <= parts[-1] <= HIGH_SLOPE  # samples act together, as the Newton step knows
    return "order" if all(near) or bent else "unreliable"


def predictions(group: Removed) -> str:
    """Both predictions in words, as far as there are two."""
    if group.random or group.newton is None or math.isnan(group.newton):
        return f"{group.foretold:+.3f}"
    return f"{group.predicted:+.3f} by summed scores and {group.newton:+.3f} by one Newton step"


def left_of_training(drift: float, groups: Sequence[Removed], question: str, unit: str) -> list[Finding]:
    """A judgement by the rest of training, beside the changes that are explained.

    Args:
        drift: How much one more Newton step of training would move the question.
        groups: Chosen and random ones.
        question: What is asked.
        unit: Of the question.

    Returns:
        One finding, or none if training had ended.
    """
    level: Level = share_of(drift, strongest(groups))
    said = f"training had not ended, and one more Newton step of it would change {question} by {drift:+.3f}{unit}"
    return [] if level == "sizes" else [(level, said)]


def share_of(part: float, whole: float) -> Level:
    """A level by how much of the changes that are explained something else makes up.

    Args:
        part: Of something else: noise, or what is left of training.
        whole: The changes.

    Returns:
        "sizes" up to a fifth, "order" up to a half.
    """
    if not abs(part) <= MUCH * abs(whole):
        return "unreliable"
    return "sizes" if abs(part) <= LITTLE * abs(whole) else "order"


def _per(achieved: float, predicted: float | None) -> float:
    return achieved / predicted if predicted else math.nan


def effect_in(p_value: float, partitions: int) -> Literal["as asked", "opposite", "none"]:
    """A sentence about the effect that an association test found, and its direction.

    Args:
        p_value: One-sided: the share of partitions with a statistic at least as large, the observed one counted.
        partitions: How many there are.

    Returns:
        "as asked" where p is at most .05, "opposite" where it would be in the other direction, "none" otherwise.

    Example:
        >>> [effect_in(p, 12870) for p in (0.001, 0.4, 1.0)]
        ['as asked', 'none', 'opposite']
    """
    if p_value <= NO_EFFECT:
        return "as asked"
    return "opposite" if 1 - p_value + 1 / partitions <= NO_EFFECT else "none"
