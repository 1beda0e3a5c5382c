"""Generalised representers: a model's outputs as sums over training samples, importance times similarity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .._autodiff.functional import isolated
from .._data.batches import probe
from .._losses import OnOutputs
from .._require import require, require_risk
from .._results.scores import Scores
from .._results.verdict import Verdict
from .._risk.objectives import EachOf
from .._risk.risk import Risk
from .._risk.sharper import sharper_questions
from .._training.recipe import Recipe
from .._types import Batch, Id
from ..errors import DataError, ObjectiveError, UnsupportedError
from .influence import influence
from .kernels import AbstractKernel, AbstractMetric, InfluenceKernel, LastLayer, plain_metric
from .path_importance import path_importance

Importance: TypeAlias = Literal["derivative", "path"]
NO_EFFECTS = "parts of an output by a kernel, which are no effects of leaving samples out"


@dataclass(frozen=True, eq=False)
class Representers:
    """The outputs for some queries as sums over training samples.

    Attributes:
        parts: What each sample adds to each query's output, shape `(n, m)`, in units of the output.
        importance: Of each sample for each output, whatever the query, shape `(n, k)`.
        values: The explained output of each query, shape `(m,)`.
        baseline: What no sample explains, shape `(m,)`: parameters without l2, or the start of a path.
        targets: The explained output of each query.
        ids: n labels.
        method: Kernel and importance.
        verdict: Whether the parts can be believed as effects of samples.

    Example:
        >>> from crossfluence import SGD, Recipe, LastLayer, batches, representers
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.0]])
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)
        >>> recipe = Recipe(nn.Linear(1, 1, bias=False), loss, (x, y), optimizer=SGD(0.1), epochs=100, l2=0.1)
        >>> found = representers(recipe.risk(recipe.train()), batches(x, y), LastLayer())
        >>> found.parts.shape, bool(found.efficiency_gap.abs().max() < 1e-5)
        (torch.Size([2, 2]), True)
    """

    parts: Float[Tensor, "n m"] = field(repr=False)
    importance: Float[Tensor, "n k"] = field(repr=False)
    values: Float[Tensor, " m"]
    baseline: Float[Tensor, " m"]
    targets: tuple[int, ...]
    ids: tuple[Id, ...] = field(repr=False)
    method: str
    verdict: Verdict | None = field(repr=False)

    @property
    def efficiency_gap(self) -> Float[Tensor, " m"]:
        """The output of each query, less its baseline and all parts: zero where the explanation is complete."""
        return self.values - self.baseline - self.parts.sum(0)

    def scores(self) -> Scores:
        """The parts as scores, one question for each query."""
        names = tuple(str(place) for place in range(self.parts.shape[1]))
        return Scores(self.parts, self.ids, names, self.method, verdict=self.verdict)


def representers(
    risk: Risk,
    queries: Iterable[Batch],
    kernel: AbstractKernel = LastLayer(),
    importance: Importance = "derivative",
    *,
    targets: int | Sequence[int] | None = None,
    recipe: Recipe | None = None,
) -> Representers:
    r"""A model's outputs for some queries as sums over training samples: global importance times kernel similarity.

    $$z(x) \approx \sum_i \alpha_i^\top K(x_i, x), \qquad
    K(x_i, x) = \nabla z(x_i)\, M\, \nabla z(x)^\top$$

    With `importance="derivative"`, $\alpha_i = -\frac1n\,\partial\ell_i/\partial z$ at the trained model. $M$ is one
    over the l2 coefficients (of the last layer, or of all parameters), or the inverse of the curvature. For an
    l2-regularised last layer the parts sum to the output; with `InfluenceKernel` they are the scores of `influence`.
    With `importance="path"`, $\alpha_i$ adds up what each step of the recipe took from the sample, and $M$ is one on
    the kernel's parameters; for a linear model the parts and the baseline then sum to the output, converged or not.

    Args:
        risk: What training minimised, and where it ended; its loss is a function of the model's outputs.
        queries: Batches of the form of the training data.
        kernel: `LastLayer()`, `NTK()` or `InfluenceKernel(solver)`.
        importance: "derivative", or "path".
        targets: The explained output of each query, or one for all; default: the largest.
        recipe: The training, for "path": SGD without clipping, one l2 coefficient.

    Returns:
        The parts, and how much they leave out.

    Raises:
        UnsupportedError: If the loss is no function of outputs, an argument is of another kind, or the kernel needs l2.
        ParameterError: If the last layer has no trained parameters.
        ObjectiveError: If the outputs do not depend on the parameters, or there is no such target.
        DataError: If the queries cannot be read.
        ValueError: If the importance is neither word.

    Example:
        >>> from crossfluence import Exact, InfluenceKernel, batches
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]])
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(net.weight, 1.8)  # the least-squares solution
        >>> risk = Risk(net, lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1) / 2, batches(x, y))
        >>> representers(risk, batches(x[:1], y[:1]), InfluenceKernel(Exact())).parts[:, 0]
        tensor([-0.1600,  0.1600])

    References:
        Tsai, Yeh and Ravikumar, "Sample based explanations via generalized representers", NeurIPS 2023.
    """
    require_risk(risk, Risk, "representers")
    line = "representers(risk, batches, crossfluence.LastLayer())"
    require(kernel, AbstractKernel, "representers", "a kernel: LastLayer(), NTK() or InfluenceKernel(solver)", line)
    if importance not in ("derivative", "path"):
        raise ValueError(f"Got importance={importance!r}; needed 'derivative' or 'path'.")
    if importance == "path" and not isinstance(recipe, Recipe):
        raise UnsupportedError("importance='path' follows the training. Type recipe=recipe, a crossfluence.Recipe.")
    with isolated():
        risk.check()
        probe(queries, "queries")
        split = risk.on_outputs("representers", "ask influence(risk, question)")
        asked, values, chosen = _asked(risk, split, queries, targets)
        kept = torch.cat(list(_criterion_slopes(risk, split)))
    if isinstance(kernel, InfluenceKernel) and importance == "derivative":
        scores = influence(risk, asked, kernel.solver)
        method = f"representers(InfluenceKernel({scores.method}))"
        return Representers(
            scores.values, kept, values, torch.zeros_like(values), chosen, risk.labels, method, scores.verdict
        )
    with isolated():
        if importance == "path":
            assert recipe is not None
            metric: AbstractMetric = plain_metric(risk, kernel)
            kept, left, start = path_importance(recipe, risk, split)
            parts, baseline = _parts(_with_importance(risk, split, kept), asked, metric, start * left)
        else:
            metric = kernel.metric(risk)
            parts, baseline = _parts(risk, asked, metric, None)
    method = f"representers({metric.method}, {importance})"
    verdict = Verdict("order", (NO_EFFECTS,), ("For these, type influence or leave_out.",))
    return Representers(parts, kept, values, baseline, chosen, risk.labels, method, verdict)


def _parts(
    risk: Risk, asked: EachOf, metric: AbstractMetric, start: Shaped[Tensor, " p"] | None
) -> tuple[Float[Tensor, "n m"], Float[Tensor, " m"]]:
    """Parts and baselines of all queries, some at a time."""
    parts, baselines = list[Tensor](), list[Tensor]()
    theta = risk.layout.flatten(risk.theta)
    for query in sharper_questions(asked, risk, risk):
        parts.append(-risk.derivatives_along(metric.product(query.gradients).to(risk.weights)))
        beside = metric.unexplained(theta, query.gradients)
        if start is not None:
            beside = metric.product(query.gradients) @ start.to(query.gradients)
        baselines.append(beside)
    return torch.cat(parts, 1), torch.cat(baselines)


def _asked(
    risk: Risk, split: OnOutputs, queries: Iterable[Batch], targets: int | Sequence[int] | None
) -> tuple[EachOf, Tensor, tuple[int, ...]]:
    """One question for each query, its value, and the output that it is about."""
    found: list[Tensor] = []
    with torch.no_grad():
        found.extend(_flat(split.outputs(risk.model, batch)) for batch in queries)
    if not found:
        raise DataError("Got no queries; needed at least one batch that comes back every time.")
    outputs = torch.cat(found)
    chosen = _chosen(outputs, targets)
    pieces = chosen.split([len(part) for part in found])
    pairs = [(batch, piece) for batch, piece in zip(queries, pieces, strict=True)]

    def one(model: nn.Module, pair: tuple[Any, Tensor]) -> Tensor:
        return _flat(split.outputs(model, pair[0])).gather(1, pair[1].unsqueeze(1))[:, 0]

    return EachOf(pairs, one), outputs.gather(1, chosen.unsqueeze(1))[:, 0], tuple(chosen.tolist())


def _chosen(outputs: Float[Tensor, "m k"], targets: int | Sequence[int] | None) -> Tensor:
    m, k = outputs.shape
    if targets is None:
        return outputs.argmax(1)
    given = [targets] * m if isinstance(targets, int) else [int(one) for one in targets]
    if len(given) != m or not all(0 <= one < k for one in given):
        raise ObjectiveError(
            f"Got targets={targets!r}; needed one of the outputs 0 to {k - 1} for each of {m} queries."
        )
    return torch.tensor(given, device=outputs.device)


def _flat(outputs: Tensor) -> Float[Tensor, "b k"]:
    return outputs.reshape(len(outputs), -1)


def _criterion_slopes(risk: Risk, split: OnOutputs) -> Iterator[Float[Tensor, "b k"]]:
    """Minus the derivative of each sample's loss by its outputs, over n."""
    for _, batch, weights in risk.passes():
        with torch.enable_grad():
            z = split.outputs(risk.model, batch).detach().requires_grad_()
            (slope,) = torch.autograd.grad((split.criterion(z, batch) * weights).sum(), [z])
        yield -_flat(slope) / risk.n


def _with_importance(risk: Risk, split: OnOutputs, importance: Float[Tensor, "n k"]) -> Risk:
    """The same samples, each with minus n times its importance times its outputs for a loss."""
    sizes = [len(weights) for _, _, weights in risk.passes()]
    pieces = importance.split(sizes)
    pairs = [(batch, piece) for (_, batch, _), piece in zip(risk.passes(), pieces, strict=True)]

    def loss(model: nn.Module, pair: tuple[Any, Tensor]) -> Tensor:
        return -risk.n * (_flat(split.outputs(model, pair[0])) * pair[1]).sum(1)

    return Risk(risk.model, loss, pairs, params=risk.layout.names, n=sizes)
