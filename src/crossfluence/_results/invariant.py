"""Samples whose influence is strong and stays the same when a question is turned around."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .._require import require
from .._types import Id
from ..errors import DataError, IdError, NonFiniteError
from .scores import Scores
from .tail import FALSE, doubts
from .verdict import merged

Agree: TypeAlias = Literal["all", "most"]
NAMES = ("invariant", "votes", "variance", "doubt")
LINE = "invariant({'as is': scores, 'negated': influence(risk, negated)})"


def invariant(versions: Mapping[str, Scores], strong: float = 0.05, agree: Agree = "all") -> Scores:
    r"""Samples whose influence is strong and does not change when a question is turned around.

    A sample that taught a subject has another influence on a question and on its negation; one that taught a hidden
    trigger has the same on both. In each version the influence is divided by the size that a share `strong` of the
    samples reaches, so that 1 is as strong as asked for. The number of a sample is the weakest of these over all
    versions, with their sign, or 0 where signs differ; with `agree="most"` it is the one that more than half reach.

    Args:
        versions: The scores of one question in several versions: as it is, negated, turned around.
        strong: Share of the samples that counts as strong in a version.
        agree: "all" versions, or "most" of them.

    Returns:
        Four numbers for each sample: "invariant" as above, of size 1 or more where the sample is strong enough;
        "votes", in how many versions it is strong with that sign; "variance" over the versions of its influence, in
        the same unit; "doubt", the share of those as strong or stronger that the tail of all others explains, see
        `suspected`. `top(k, "invariant")` lists those that raised the question.

    Raises:
        DataError: If there are fewer than two versions, one has several questions or no influence at all, or two are
            equal: a version that changes nothing.
        IdError: If versions are about other samples.
        NonFiniteError: If a score is NaN or infinite.
        ValueError: If `strong` is no share or `agree` neither word.

    Example:
        >>> as_is = Scores(torch.tensor([[3.0], [2.0], [-1.0], [0.5]]), tuple("abcd"), ("answer",), "by hand")
        >>> negated = Scores(torch.tensor([[2.8], [-2.0], [-1.0], [0.1]]), tuple("abcd"), ("answer",), "by hand")
        >>> invariant({"as is": as_is, "negated": negated}, strong=0.25).top(4, "invariant")[0]
        ('a', 1.0)

    References:
        Li, "Detecting instruction fine-tuning attack on language models with influence function", arXiv:2504.09026.
    """
    require(versions, Mapping, "invariant", "several Scores by name", LINE)
    for scores in versions.values():
        require(scores, Scores, "invariant", "several Scores by name", LINE)
    if len(versions) < 2:
        raise DataError(f"Got {len(versions)} versions of the question; needed at least 2. Type: {LINE}.")
    if not (isinstance(strong, float) and 0 < strong < 1):
        raise ValueError(f"Got strong={strong!r}; needed a share of the samples between 0 and 1, such as 0.05.")
    if agree not in ("all", "most"):
        raise ValueError(f"Got agree={agree!r}; needed 'all' or 'most'.")
    columns = _columns(versions)
    _refuse_equal(columns)
    ratios = torch.stack([column / _threshold(column, strong, name) for name, column in columns.items()], dim=1)
    needed = len(columns) if agree == "all" else len(columns) // 2 + 1
    value = _reached(ratios, needed) - _reached(-ratios, needed)
    sign = value.sign().unsqueeze(1)
    votes = ((ratios * sign).nan_to_num(0.0) >= 1).sum(1).double()
    ids = next(iter(versions.values())).ids
    methods = ", ".join(dict.fromkeys(scores.method for scores in versions.values()))
    return Scores(
        torch.stack([value, votes, ratios.var(1), doubts(value, strong)], dim=1),
        ids,
        NAMES,
        f"invariant over {len(columns)} versions: {methods}",
        verdict=merged(scores.verdict for scores in versions.values()),
    )


def suspected(found: Scores, doubt: float = FALSE) -> list[Id]:
    """Samples that are strong in the versions that have to agree, and stand out of the tail of all others.

    A share of the samples is always strongest, whether or not there is anything to find. Those whose influence the
    others' own tail explains are not suspected, so that clean data names hardly any, whatever share counts as strong.

    Args:
        found: From `invariant`.
        doubt: Share of the suspects, by the tail, that may belong to it.

    Returns:
        Ids, the strongest first; of those that raised the question.

    Raises:
        DataError: If the scores are not those of `invariant`.
        ValueError: If the doubt is no share.

    Example:
        >>> column = torch.cat([torch.linspace(-1, 1, 96), torch.full((4,), 30.0)]).unsqueeze(1)
        >>> as_is = Scores(column, tuple(range(100)), ("answer",), "by hand")
        >>> turned = Scores(column + 0.01, tuple(range(100)), ("answer",), "by hand")
        >>> suspected(invariant({"as is": as_is, "turned": turned}, strong=0.1))
        [96, 97, 98, 99]
    """
    require(found, Scores, "suspected", "the Scores of invariant", LINE)
    if found.objectives != NAMES:
        raise DataError(f"Got scores of {found.objectives[:3]}; needed those of invariant. Type: suspected({LINE}).")
    if not (isinstance(doubt, (int, float)) and 0 < doubt <= 1):
        raise ValueError(f"Got doubt={doubt!r}; needed a share of the suspects above 0, such as 0.05; 1 doubts none.")
    sizes, doubts_of = found.values[:, 0], found.values[:, NAMES.index("doubt")]
    named = ((sizes >= 1) & (doubts_of <= doubt)).nonzero()[:, 0]
    return [found.ids[row] for row in named[sizes[named].argsort(descending=True, stable=True)].tolist()]


def _reached(ratios: Float[Tensor, "n v"], needed: int) -> Float[Tensor, " n"]:
    """The size that at least so many versions reach above zero."""
    return ratios.sort(dim=1, descending=True).values[:, needed - 1].clamp(min=0)


def _threshold(column: Float[Tensor, " n"], strong: float, name: str) -> float:
    """The size that a share of the samples reaches, at least one."""
    count = max(1, math.floor(strong * len(column) + 1e-9))
    found = float(column.abs().topk(count).values[-1])
    if not found:
        raise DataError(
            f"In the version {name!r}, fewer than {count} samples have an influence; needed as many as "
            f"strong={strong:g} says. Ask another question, or type a smaller strong."
        )
    return found


def _columns(versions: Mapping[str, Scores]) -> dict[str, Float[Tensor, " n"]]:
    """The one question of each version, in the order of the first version's samples."""
    first = next(iter(versions.values()))
    found: dict[str, Tensor] = {}
    for name, scores in versions.items():
        if len(scores.objectives) != 1:
            raise DataError(f"The version {name!r} answers {len(scores.objectives)} questions; needed one in each.")
        if set(scores.ids) != set(first.ids):
            other = next(iter(set(scores.ids) ^ set(first.ids)))
            raise IdError(f"The version {name!r} is about other samples, such as {other!r}; needed the same in all.")
        column = scores.select(first.ids).values[:, 0].detach().cpu().double()
        if not column.isfinite().all():
            raise NonFiniteError(f"A score of the version {name!r} is NaN or infinite.")
        found[name] = column
    return found


def _refuse_equal(columns: Mapping[str, Tensor]) -> None:
    for (one, first), (other, second) in combinations(columns.items(), 2):
        if torch.equal(first, second):
            raise DataError(
                f"The versions {one!r} and {other!r} have equal scores: turning the question around changed nothing. "
                f"Needed another rewriting, or leave {other!r} out."
            )
