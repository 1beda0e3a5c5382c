"""Objectives as plain callables, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from .._autodiff.functional import bind, differentiating, evaluated, recorded_twice
from .._autodiff.params import Layout
from .._autodiff.ways import gradient_rows, value_and_rows
from .._checks.question import check_question
from .._data.batch import device_of, length_of, moved
from .._data.batches import probe
from .._data.samples import first_samples
from .._losses import checked_losses
from .._types import Batch, Objective, Params, SampleLoss
from ..errors import NonFiniteError, ObjectiveError
from .parameters import Parameters, chosen_columns

QUERY_CHUNK = 256  # gradients held together when every test sample is a question
NUMBERS_AT_ONCE = 2**26  # in all of them: a quarter of a gigabyte in single precision, some times over in a solver
DEFAULT_NAME = "objective"


@dataclass(frozen=True, eq=False)
class Queries:
    """Some objectives at the trained parameters.

    Attributes:
        names: m labels.
        values: Shape `(m,)`.
        gradients: Shape `(m, p)`.
    """

    names: tuple[str, ...]
    values: Tensor
    gradients: Shaped[Tensor, "m p"]


@dataclass(frozen=True, eq=False)
class MeanOver:
    """The mean of a per-sample quantity over a data set: one question. Made by `mean_over`."""

    batches: Iterable[Batch] = field(repr=False)
    loss: SampleLoss

    def __post_init__(self) -> None:
        _check_batches(self.batches, "mean_over")

    def __call__(self, model: nn.Module) -> Tensor:
        """The mean, a scalar."""
        return torch.cat([self.losses(model, batch) for batch in self.batches]).mean()

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The quantity for each sample of one batch, shape `(b,)`."""
        return _each(self.loss(model, moved(batch, device_of(model))), batch)


@dataclass(frozen=True, eq=False)
class EachOf:
    """A per-sample quantity for every sample of a data set: one question each. Made by `each_of`."""

    batches: Iterable[Batch] = field(repr=False)
    loss: SampleLoss

    def __post_init__(self) -> None:
        _check_batches(self.batches, "each_of")

    def __call__(self, model: nn.Module) -> Tensor:
        """Shape `(m,)`."""
        return torch.cat([self.losses(model, batch) for batch in self.batches])

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The questions of one batch, shape `(b,)`."""
        return _each(self.loss(model, moved(batch, device_of(model))), batch)


def mean_over(batches: Iterable[Batch], loss: SampleLoss) -> MeanOver:
    """One question over a whole test set: the mean of `loss`, differentiated batch by batch.

    Args:
        batches: The test samples, in batches that come back.
        loss: `(model, batch) -> (b,)`.

    Returns:
        An objective.

    Example:
        >>> net, x = nn.Linear(1, 1), [torch.ones(2, 1), torch.ones(3, 1)]
        >>> mean_over(x, lambda model, batch: model(batch)[:, 0])(net).shape
        torch.Size([])
    """
    return MeanOver(batches, loss)


def each_of(batches: Iterable[Batch], loss: SampleLoss) -> EachOf:
    """One question per test sample, named "0", "1", ..., answered in chunks.

    Args:
        batches: The test samples, in batches that come back.
        loss: `(model, batch) -> (b,)`.

    Returns:
        An objective with one value for each test sample.

    Example:
        >>> net, x = nn.Linear(1, 1), [torch.ones(2, 1), torch.ones(3, 1)]
        >>> each_of(x, lambda model, batch: model(batch)[:, 0])(net).shape
        torch.Size([5])
    """
    return EachOf(batches, loss)


def _each(values: Tensor, batch: Batch) -> Tensor:
    """One value for each sample; the values say how many there are."""
    return checked_losses(values, batch, else_type="ask by a function of the model, lambda model: ... -> (m,)")


def evaluate(objective: Objective, model: nn.Module) -> tuple[tuple[str, ...], Tensor]:
    """Names and values of an objective at a model.

    Args:
        objective: Any callable `model -> scalar, (m,) or {name: scalar}`.
        model: Not changed.

    Returns:
        m names and a float64 tensor `(m,)` on the CPU.
    """
    names, values = evaluated(lambda: _named(objective(model)))
    return names, values.detach().cpu().double()


def questions(objective: Objective, model: nn.Module, theta: Params) -> Iterator[Queries]:
    """Values and gradients of an objective, in chunks that fit in memory.

    Args:
        objective: Any callable, or what `mean_over` and `each_of` make.
        model: The trained module.
        theta: The parameters to differentiate by.

    Yields:
        At most `queries_at_once` for samples of a test set; all together for other objectives.

    Raises:
        ObjectiveError: If the objective has another form or does not depend on the parameters.
        NonFiniteError: If a value or a gradient is not finite.
    """
    if isinstance(objective, MeanOver):
        chunks = iter([_mean_questions(objective, model, theta)])
    elif isinstance(objective, EachOf):
        chunks = _each_question(objective, model, theta)
    elif isinstance(objective, Parameters):
        chunks = _parameter_questions(objective, model, theta)
    else:
        chunks = iter([_plain_questions(objective, model, theta)])
    dependent = False
    for chunk in chunks:
        for what, finite in (("", chunk.values.isfinite()), ("gradient of the ", chunk.gradients.isfinite().all(1))):
            refuse_not_finite(chunk.names, what, finite)
        dependent = dependent or bool(chunk.gradients.any())
        yield chunk
    if not dependent:
        refuse_independent(theta)


def refuse_not_finite(names: Sequence[str], what: str, finite: Tensor) -> None:
    """Names the first question that is not finite.

    Args:
        names: m labels.
        what: Of the question, if not its value: "gradient of the ".
        finite: Shape `(m,)`.

    Raises:
        NonFiniteError: If there is one.
    """
    if not finite.all():
        bad = names[int((~finite).nonzero()[0])]
        raise NonFiniteError(f"The {what}objective {bad!r} is NaN or infinite at the trained model.")


def refuse_independent(theta: Params) -> NoReturn:
    """Says that a question's gradient is zero.

    Args:
        theta: The trained parameters.

    Raises:
        ObjectiveError: Always.
    """
    raise ObjectiveError(
        f"The objective does not depend on the trained parameters {list(theta)[:3]}: its gradient is zero. "
        f"Compute it from the model that is passed in, without .detach(), .item(), torch.no_grad(), "
        f"torch.inference_mode(), argmax or rounding. If it is a loss that the model fits perfectly, its gradient is "
        f"below the precision: ask in float64, model.double()."
    )


def queries_at_once(p: int) -> int:
    """Number of queries that `each_of` answers together.

    Args:
        p: Number of trained parameters.

    Returns:
        256, or as many as their gradients have room for.

    Example:
        >>> queries_at_once(10_000), queries_at_once(10_000_000)
        (256, 6)
    """
    return max(1, min(QUERY_CHUNK, NUMBERS_AT_ONCE // p))


def _check_batches(batches: Iterable[Batch], name: str) -> None:
    """Questions belong to samples in order, so their batches are probed as those of the training data are."""
    with torch.random.fork_rng():  # a DataLoader draws from the global generator even if it does not shuffle
        if not isinstance(batches, Sequence) or len(batches):
            probe(batches, f"data of {name}")


def _parameter_questions(objective: Parameters, model: nn.Module, theta: Params) -> Iterator[Queries]:
    """Rows of the identity."""
    flat, columns = Layout.of(theta).flatten(theta), chosen_columns(objective, model, theta)
    names = tuple(objective(model))
    for part in range(0, len(columns), queries_at_once(len(flat))):
        own = columns[part : part + queries_at_once(len(flat))]
        rows = torch.zeros(len(own), len(flat), dtype=flat.dtype, device=flat.device)
        rows[torch.arange(len(own)), own] = 1
        yield Queries(names[part : part + len(own)], flat[own], rows)


def _plain_questions(objective: Objective, model: nn.Module, theta: Params) -> Queries:
    names: list[tuple[str, ...]] = []

    def stacked(params: Params) -> Tensor:
        found, values = _named(bind(objective, model)(params))
        names.append(found)
        return values

    values, gradients = check_question(stacked, model, theta, lambda: names[0])
    return Queries(names[-1], values, gradients)


def _mean_questions(objective: MeanOver, model: nn.Module, theta: Params) -> Queries:
    layout, count = Layout.of(theta), 0
    values, gradients = torch.zeros(()), torch.zeros(())
    bound = bind(objective.losses, model)
    for batch in objective.batches:

        def losses(params: Params, batch: Batch = batch) -> Tensor:
            return bound(params, batch)

        counts: list[int] = []

        def total(params: Params, losses: Callable[[Params], Tensor] = losses, counts: list[int] = counts) -> Tensor:
            each = losses(params)
            counts.append(len(each))
            return each.sum().reshape(1)

        if not count:
            part, rows = check_question(total, model, theta, lambda: (DEFAULT_NAME,))
        else:
            part, named = value_and_rows(total, theta)
            rows = layout.flatten(named)
        values, gradients = values + part[0], gradients + rows[0]
        count += counts[-1]
    if not count:
        raise ObjectiveError("mean_over got no batches; needed at least one that comes back every time.")
    return Queries((DEFAULT_NAME,), values.reshape(1) / count, gradients.reshape(1, -1) / count)


def _each_question(objective: EachOf, model: nn.Module, theta: Params) -> Iterator[Queries]:
    layout, start = Layout.of(theta), 0
    bound = bind(objective.losses, model)
    for batch in objective.batches:
        if not start:
            check_each_question(objective, model, theta, batch)
        with recorded_twice():
            live = {name: part.detach().requires_grad_() for name, part in theta.items()}
            chunks = bound(live, batch).split(queries_at_once(layout.size))
        for values in chunks:
            stop = start + len(values)
            with differentiating():
                gradients = layout.flatten(gradient_rows(values, live))
            yield Queries(tuple(str(position) for position in range(start, stop)), values.detach(), gradients)
            start = stop
    if not start:
        raise ObjectiveError("each_of got no batches; needed at least one that comes back every time.")


def check_each_question(objective: EachOf, model: nn.Module, theta: Params, batch: Batch) -> None:
    """Looks at the questions of one batch before they are relied on; see `check_question`.

    Args:
        objective: From `each_of`.
        model: The trained module.
        theta: The parameters to differentiate by.
        batch: One of the objective's.

    Raises:
        NondeterministicError: If the questions are random.
        ObjectiveError: If their derivatives do not belong to their values.
    """
    bound, few = bind(objective.losses, model), first_samples(batch, length_of(batch))
    small = batch if few is None or not _reads(bound, theta, *few) else few[0]
    check_question(lambda params: bound(params, small), model, theta, lambda: None)


def _reads(losses: Callable[[Params, Batch], Tensor], theta: Params, batch: Batch, count: int) -> bool:
    """True if a part of a batch is a batch of so many samples."""
    try:
        return len(evaluated(lambda: losses(theta, batch))) == count
    except Exception:  # whatever the user's code says of a batch that it cannot read
        return False


def _named(answer: Tensor | Mapping[str, Tensor]) -> tuple[tuple[str, ...], Tensor]:
    if isinstance(answer, Mapping) and answer:
        parts = {str(name): torch.as_tensor(value) for name, value in answer.items()}
        wrong = {name: tuple(value.shape) for name, value in parts.items() if value.numel() != 1}
        if len(parts) != len(answer):
            raise ObjectiveError(f"Two objectives have one name: {list(answer)}. Names are compared as strings.")
        if wrong:
            raise ObjectiveError(f"The objectives {wrong} are not scalars; needed one number for each name.")
        return tuple(parts), torch.stack([value.reshape(()) for value in parts.values()])
    if not isinstance(answer, Tensor):
        raise ObjectiveError(
            f"The objective returned {type(answer).__name__}; needed a scalar tensor, a tensor of shape (m,), "
            f"or a dict of scalar tensors."
        )
    if answer.is_complex():
        raise ObjectiveError(f"The objective is complex ({answer.dtype}); needed real numbers: take .real or .abs().")
    if answer.ndim == 0:
        return (DEFAULT_NAME,), answer.reshape(1)
    if answer.ndim == 1 and len(answer):
        return tuple(str(position) for position in range(len(answer))), answer
    raise ObjectiveError(
        f"The objective returned shape {tuple(answer.shape)}; needed a scalar, (m,) or a dict of scalars. "
        f"Reduce it: .mean(), .sum() or .flatten()."
    )
