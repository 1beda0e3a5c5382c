"""The share of several trainings' mean effects that is no chance, and the verdict on them."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from .ensemble import ensemble
from .scores import Scores
from .verdict import LOOSE, TRUE, Verdict

FEWEST = 3  # effects whose spread tells anything


def reliability(values: Float[Tensor, " n"], errors: Float[Tensor, " n"]) -> float:
    r"""The share of the variance of some means that is not their own error, between 0 and 1.

    It is the correlation with means over as many other trainings; its root is that with the means over infinitely many,
    which no prediction can exceed.

    Args:
        values: Means over independent trainings.
        errors: Their standard errors.

    Returns:
        $1 - \overline{\text{errors}^2} / \operatorname{var}(\text{values})$; 0 where all is noise, 1 where nothing is.

    Example:
        >>> import torch
        >>> round(reliability(torch.tensor([-1.0, 0.0, 1.0]), torch.full((3,), 0.5)), 2)
        0.75

    References:
        Spearman, "Correlation calculated from faulty data", British Journal of Psychology, 1910.
    """
    noise = float(errors.double().square().mean())
    if not noise:
        return 1.0
    spread = float(values.double().var())
    return max(0.0, 1 - noise / spread) if spread else 0.0


def over_orders(members: list[Scores]) -> Scores:
    """The mean of effects that were found in several orders of the data, with a verdict from its noise.

    Args:
        members: One for each order, of the same groups and questions; at least two.

    Returns:
        Their mean with its standard error; the verdict is "sizes" where another such mean would agree.
    """
    found = ensemble(members)
    assert found.errors is not None
    k, method = len(members), f"retraining, mean of {len(members)} orders"
    if len(found) < FEWEST:
        return replace(found, method=method, verdict=Verdict("sizes", (f"trained again in {k} orders of the data",)))
    each = [reliability(*pair) for pair in zip(found.values.T, found.errors.T, strict=True)]
    share = sorted(each)[(len(each) - 1) // 2]  # of the median question
    one = share / (k - (k - 1) * share)
    several = "in the median question, " if len(each) > 1 else ""
    reason = (
        f"trained again in {k} orders of the data: {several}the mean over as many others would correlate with this one "
        f"at {share:.2f}, one order alone with another at {one:.2f}"
    )
    truth = share**0.5
    level = "sizes" if truth > TRUE else "order" if truth > LOOSE else "unreliable"
    advice = () if level == "sizes" else ("Leave out larger groups, or take more orders: leave_out(..., seeds=...).",)
    return replace(found, method=method, verdict=Verdict(level, (reason,), advice))
