"""Trained parameters as a question: how far a sample moves each of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from .._autodiff.params import trained_parameters
from .._types import Params
from ..errors import ParameterError
from .base import AbstractRisk

LARGEST = 4096  # parameters whose Fisher matrix is kept beside their scores


@dataclass(frozen=True)
class Parameters:
    """Every number in some parameters, one question each. Made by `parameters`.

    Attributes:
        globs: Over parameter names.
    """

    globs: tuple[str, ...]

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """Each number under its name, such as "items.slope[3]"."""
        named = dict(model.named_parameters())
        own = trained_parameters(model, self.globs)
        flat = torch.cat([named[name].reshape(-1) for name in own])
        return dict(zip(labels_of(own), flat.unbind(), strict=True))


def parameters(*globs: str) -> Parameters:
    r"""Trained parameters as a question: scores say how far each sample moves each number.

    Scores add up over the samples of a group (`Scores.sum_by`), and then have a size: `Scores.norm("euclid")`, or, in
    standard errors of the estimate, `Scores.norm("fisher")`. Sizes do not add up, so the sum comes first.

    Args:
        globs: Over parameter names, such as "items.*"; default: all.

    Returns:
        An objective with one value for each number.

    Raises:
        ParameterError: When asked, if a glob matches no trained parameter.

    Example:
        >>> from crossfluence import Exact, Risk, batches, influence
        >>> class Mean(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.at = nn.Parameter(torch.tensor([2.0, 0.0]))
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 3.0], [4.0, -3.0]])
        >>> risk = Risk(Mean(), lambda model, batch: (batch - model.at).square().sum(1) / 2, batches(x))
        >>> moves = influence(risk, parameters("at"), Exact())
        >>> moves.objectives, moves.sum_by(["a", "b", "b"]).norm().top(2)
        (('at[0]', 'at[1]'), [('a', 0.6666666865348816), ('b', 0.6666666865348816)])
    """
    given = globs or ("*",)
    if not all(isinstance(glob, str) for glob in given):
        raise ParameterError(f"Got parameters{globs!r}; needed globs over names, such as parameters('items.*').")
    return Parameters(given)


def labels_of(params: Params) -> list[str]:
    """The name of every number."""
    return [
        f"{name}[{', '.join(map(str, place))}]" if tensor.ndim else name
        for name, tensor in params.items()
        for place in product(*map(range, tensor.shape))
    ]


def chosen_columns(objective: Parameters, model: nn.Module, theta: Params) -> Shaped[Tensor, " m"]:
    """Places of a question's numbers among the parameters of a risk.

    Args:
        objective: The question.
        model: The trained module.
        theta: The parameters of the risk.

    Returns:
        Positions in the flat vector of all.

    Raises:
        ParameterError: If a parameter asked about is not among those of the risk.
    """
    own = trained_parameters(model, objective.globs)
    if missing := [name for name in own if name not in theta]:
        raise ParameterError(f"The parameter {missing[0]!r} is no trained parameter of this risk: {list(theta)[:5]}.")
    sizes = [tensor.numel() for tensor in theta.values()]
    pieces = dict(zip(theta, torch.arange(sum(sizes)).split(sizes), strict=True))
    return torch.cat([pieces[name] for name in own])


def fisher_of(objective: Parameters, risk: AbstractRisk) -> Shaped[Tensor, "m m"] | None:
    r"""The empirical Fisher information of all samples about some parameters, $\sum_i g_i g_i^\top$.

    Its inverse is the covariance of their estimate if the loss is a negative log likelihood, others held.

    Args:
        objective: Which parameters.
        risk: The trained model.

    Returns:
        In double precision; nothing beyond a few thousand parameters.
    """
    columns = chosen_columns(objective, risk.model, risk.theta)
    if len(columns) > LARGEST:
        return None
    total = torch.zeros(len(columns), len(columns), dtype=torch.float64)
    for rows in risk.sample_gradients():
        own = rows[:, columns.to(rows.device)].double().cpu() * risk.n
        total.addmm_(own.T, own)
    return total
