"""First looks at a loss: is it deterministic, each sample's own, and which of its derivatives can be believed?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._autodiff.functional import all_finite, bind, drawing, evaluated
from .._autodiff.params import Layout, fingerprint, moving, state_of
from .._autodiff.precision import coarsest_precision
from .._autodiff.ways import AbstractWay, Difference, Forward, Reverse
from .._data.batch import digest, tensors_in
from .._data.samples import SAMPLES, chosen_samples, first_samples
from .._losses import AbstractLoss, PerSample, matching
from .._types import Batch, Params
from ..errors import CoupledLossError, DataError, LossShapeError, NondeterministicError, UnsupportedError
from .looks import (
    COARSE,
    DRAWS,
    FIRST_DISAGREEMENT,
    ROUNDINGS,
    Around,
    Look,
    Point,
    Remembered,
    agrees,
    choose,
    disagree,
)
from .state import moved_statistics, refuse_others

Value = TypeVar("Value", bound=Any)
TOGETHER = 1e-3  # share of a sample's loss by which the samples beside it may change it


@dataclass(frozen=True, eq=False)
class Examined:
    """Findings of the first evaluations of a loss.

    Attributes:
        precision: Relative rounding error of the loss as it is really computed.
        first: The way to differentiate it once along a direction.
        second: The way to differentiate it twice.
        moved: Running statistics that moved in training and are constants here.
        notes: Sentences for the report.
        losses: Of the whole batch; one, where its samples are coupled; nothing, where one is not finite.
    """

    precision: float
    first: AbstractWay
    second: AbstractWay
    moved: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    losses: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """A loss that is looked at.

    Attributes:
        kind: One of the four kinds.
        model: The trained module; left as it was.
        theta: Its trained parameters.
        total: The batch's weighted loss as a function of parameters, frozen parameters, batch and weights.
    """

    kind: AbstractLoss
    model: nn.Module
    theta: Params
    total: Callable[[Params, Params, Batch, Tensor], Tensor]

    def look(self, batch: Batch, weights: Tensor, precision: float) -> Look:
        """The losses of a batch, or the one loss of a batch whose samples are coupled."""
        losses = bind(self.kind.losses, self.model)

        def each(live: Params, still: Params) -> Tensor:
            return losses(live, batch)

        def together(live: Params, still: Params) -> Tensor:
            return self.total(live, still, batch, weights).reshape(1)

        layout, terms, signs = Layout.of(self.theta), together, weights.new_ones(1)
        if self.kind.per_sample:
            drawn = torch.randint(2, weights.shape, generator=torch.Generator().manual_seed(0))
            terms, signs = each, (2 * drawn - 1).to(weights)
        moves = layout.flatten(moving(self.model, self.theta))
        return Look(terms, self.theta, layout, signs, moves, precision)


def examine(subject: Subject, batch: Batch, weights: Tensor) -> Examined:
    """Evaluates one batch, and a few of its samples several times; refuses what would make every score wrong.

    Args:
        subject: The loss.
        batch: The first of the data.
        weights: One for each of its samples.

    Returns:
        How to differentiate the loss, and how precise it is.

    Raises:
        NondeterministicError: If the loss is random, or changes the model while it is computed.
        DataError: If it changes its batch.
        ParameterError: If it depends on parameters that the model does not list.
        CoupledLossError: If the loss of a sample depends on the samples beside it.
        LossShapeError: If the weights do not matter.
        UnsupportedError: If gradients are stopped inside a loss that is not a `FieldLoss`, or the loss does not
            depend on the model.
    """
    _refuse_batch_statistics(subject.model)
    theta = subject.theta
    known = max(torch.finfo(part.dtype).eps for part in theta.values())
    whole = subject.look(batch, weights, known)

    def values() -> Tensor:
        return evaluated(lambda: whole.terms(theta, theta))

    content = digest(batch)
    (before, seen), drew = drawing(lambda: _untouched(subject.model, lambda: coarsest_precision(values)))
    _refuse_written(batch, content)
    if subject.kind.per_sample:
        matching(before, weights)
    if not before.isfinite().all():
        return Examined(known, Forward(), Forward())  # the first pass over the data names batch and sample
    precision = max(known, seen)
    few = _few(subject, batch, weights, precision, before)
    if few is None:
        look = subject.look(batch, weights, precision)
        here = look.at(theta)
        _refuse_random(look, here.terms, before, drew=drew)
    else:
        look, here, places = few
        if subject.kind.per_sample and not (isinstance(subject.kind, PerSample) and subject.kind.draws):
            _refuse_coupled(look, here.terms, before, places, drew=drew)
            _refuse_ranked(subject, batch, weights, before, precision)
        if drew or len(before) != len(weights) or _differs(here.terms, _rows(before, places), precision):
            _refuse_random(look, here.terms, None, drew=drew)
    if not all_finite(here.slope):
        return Examined(precision, Forward(), Forward())  # as above
    _refuse_independent(here, theta)
    if not subject.kind.per_sample:
        _refuse_deaf(subject, batch, weights)
    others = refuse_others(subject.model, here.others, theta)
    examined = _compared(subject, look, here)
    beside = _lasting(others, look.at(theta).others, batch) if others else ()
    return replace(examined, notes=(*examined.notes, *beside), losses=before.clone())


def refuse_once_differentiable(subject: Subject, batch: Batch, weights: Tensor) -> None:
    """Makes sure that reverse mode differentiates the loss of a few samples twice, as going back through a step does.

    Args:
        subject: The loss.
        batch: Some of the data.
        weights: One for each of its samples.

    Raises:
        UnsupportedError: If its products are not those that differences of gradients give.
    """
    precision = max(torch.finfo(part.dtype).eps for part in subject.theta.values())
    few = _few(subject, batch, weights, precision, weights[:0])
    look = subject.look(batch, weights, precision) if few is None else few[0]
    here, around, reason = look.at(subject.theta), Remembered(look.around()), "it disagrees with differences"
    try:
        found = agrees(look, here, around, Reverse()) or look.precision >= COARSE
    except Exception as error:
        found, reason = False, str(error).strip().partition("\n")[0]
    if not found:
        raise UnsupportedError(
            f"Going back through a training needs second derivatives, and that of "
            f"{', '.join(here.functions) or 'something in this model'} is missing or wrong ({reason}). Replace it by "
            f"PyTorch's own operations, or ask leave_out, influence or tracin, which need first derivatives alone."
        )


def _few(
    subject: Subject, batch: Batch, weights: Tensor, precision: float, whole: Tensor
) -> tuple[Look, Point, list[int]] | None:
    """Some samples alone, in another order if the loss takes it, and their places; or nothing."""
    first, places = first_samples(batch, len(weights)), _largest_first(whole, len(weights))[1::2][:SAMPLES]
    ordered = (None, []) if first is None else (first[0], list(range(first[1])))
    for small, rows in ((chosen_samples(batch, len(weights), places), places), ordered):
        if small is None:
            continue
        look = subject.look(small, _rows(weights, rows), precision)
        with contextlib.suppress(Exception):  # whatever the user's code says of a batch that it cannot read
            here = look.at(subject.theta)
            if here.terms.isfinite().all() and (not subject.kind.per_sample or len(here.terms) == len(rows)):
                return look, here, rows
    return None


def _rows(values: Tensor, places: list[int]) -> Tensor:
    return values[torch.tensor(places).to(values.device)]


def _largest_first(losses: Tensor, b: int) -> list[int]:
    """The samples of a batch by their losses, those of equal ones from the last to the first."""
    backwards, sizes = list(range(b))[::-1], losses.tolist()
    return sorted(backwards, key=lambda place: -sizes[place]) if len(sizes) == b else backwards


def _compared(subject: Subject, look: Look, here: Point) -> Examined:
    """The ways that agree with the loss, and a check that its derivative belongs to its value."""
    moved = moved_statistics(subject.model, look)
    if look.precision >= COARSE:
        chosen = choose(look, here, ())
    else:
        around = Remembered(look.around())
        if subject.kind.symmetric:
            _refuse_stopped_gradients(look, here, around)
        chosen = choose(look, here, around)
    notes = [_held(moved[0], len(moved))] if moved else []
    if isinstance(chosen.second, Difference):
        names = ", ".join(here.functions)
        notes.append(
            f"Second derivatives are differences of gradients, since PyTorch has none or wrong ones for "
            f"{names or 'something in this model'} ({chosen.refused[-1]})."
        )
    return Examined(look.precision, chosen.first, chosen.second, moved, tuple(notes))


def _held(name: str, count: int) -> str:
    more = f" and {count - 1} more" if count > 1 else ""
    return (
        f"Running statistics ({name}{more}) moved in training and are constants here: what samples did through "
        f"them is left out, so sizes may be off."
    )


def _refuse_stopped_gradients(look: Look, here: Point, around: Iterable[Around]) -> None:
    """Compares the derivative with differences of the value; a detached part of the loss makes them disagree."""
    if disagree((place.value_gap(look, here) for place in around), FIRST_DISAGREEMENT) and disagree(
        (place.value_gap(look, here, *look.elsewhere) for place in around), FIRST_DISAGREEMENT
    ):
        names = f" (perhaps in {', '.join(here.functions)})" if here.functions else ""
        raise UnsupportedError(
            f"The derivative of the loss does not belong to its value{names}: something inside is detached, rounded or "
            f"has a gradient of its own. Write it as FieldLoss(fn), fn(model, frozen, batch, weights), with the "
            f"detached part computed from frozen; or, if the detached part never moved in training, put it into the "
            f"batches as data."
        )


def _refuse_independent(here: Point, theta: Params) -> None:
    if not here.reached:
        raise UnsupportedError(
            f"The loss does not depend on the trained parameters {list(theta)[:3]}, so every score would be zero. "
            f"Compute it from the model that is passed in as its first argument, not from another one, and without "
            f"torch.no_grad(), .detach() or .item()."
        )


def _refuse_random(look: Look, found: Tensor, before: Tensor | None, *, drew: bool) -> None:
    """Compares losses with those of another call, or of several if it draws numbers, which may seldom matter."""

    def losses() -> Tensor:
        return evaluated(lambda: look.terms(look.theta, look.theta))

    again = [losses() if before is None else before, *(losses() for _ in range(DRAWS if drew else 0))]
    if any(_differs(found, other, look.precision) for other in again):
        one, *others = (losses() for _ in range(DRAWS + 2 if drew else 2))
        two = next((other for other in others if _differs(one, other, look.precision)), None)
        if two is not None:
            first, second = float(one.sum()), float(two.sum())
            raise NondeterministicError(
                f"The loss of one batch came out as {first:.6g} and then {second:.6g}: something in it is random. "
                f"Call model.eval() to switch dropout off, and draw augmentations once, beforehand. A training that "
                f"draws from PyTorch's global generators is repeated by Recipe(..., random=True)."
            )


def _differs(first: Tensor, second: Tensor, precision: float) -> bool:
    if torch.equal(first, second):
        return False
    return float((first - second).abs().max()) > ROUNDINGS * precision * float(second.abs().max())


def _refuse_ranked(subject: Subject, batch: Batch, weights: Tensor, whole: Tensor, precision: float) -> None:
    """The largest losses once more without the others: a threshold that depends on all of them is another then."""
    places = _largest_first(whole, len(weights))[: min(SAMPLES, len(weights) // 2)]
    if (small := chosen_samples(batch, len(weights), places)) is None:
        return
    look = subject.look(small, _rows(weights, places), precision)
    alone = whole[:0]
    with contextlib.suppress(Exception):  # as in `_few`
        alone = evaluated(lambda: look.terms(subject.theta, subject.theta))
    if len(alone) == len(places) and alone.isfinite().all():
        _refuse_coupled(look, alone, whole, places, drew=False)


def _refuse_coupled(look: Look, alone: Tensor, whole: Tensor, places: list[int], *, drew: bool) -> None:
    """Compares the losses of some samples with those that they have in the whole batch."""
    among = _rows(whole, places)
    gap = (alone - among).abs() - TOGETHER * among.abs()

    def beyond(size: float) -> bool:
        return bool((gap > ROUNDINGS * look.precision * size).any())

    if not beyond(float(whole.abs().max())):
        return
    _refuse_random(look, alone, None, drew=drew)
    if beyond(max(float(point.terms.abs().nan_to_num(posinf=0).max()) for point in look.elsewhere)):
        row = int(gap.argmax())
        raise CoupledLossError(
            f"The loss of sample {places[row]} is {float(among[row]):.6g} in a batch of {len(whole)} and "
            f"{float(alone[row]):.6g} in a batch of {len(alone)}: it depends on the samples beside it. If samples are "
            f"compared with each other (contrastive, ranking, normalised by batch statistics), write "
            f"WeightedLoss(fn), fn(model, batch, weights) -> scalar, where weight 0 means that a sample is absent. If "
            f"the loss divides by the size of the batch or by its number of tokens, give each sample its own sum or "
            f"mean: (losses * mask).sum(1), or (losses * mask).sum(1) / mask.sum(1). If it depends on the place in the "
            f"batch (noise drawn with a fixed seed, a weight for each place), put that into the batches as data."
        )


def _refuse_deaf(subject: Subject, batch: Batch, weights: Tensor) -> None:
    """The field near the trained point must depend on the weights."""
    generator = torch.Generator().manual_seed(0)
    near = {
        name: part + 1e-2 * torch.randn(part.shape, generator=generator).to(part) * part.abs().mean()
        for name, part in subject.theta.items()
    }
    other = weights * (0.5 + torch.rand(weights.shape, generator=generator).to(weights))
    slopes = [subject.look(batch, each, 0.0).at(near) for each in (weights, other)]
    if torch.equal(slopes[0].slope, slopes[1].slope):
        raise LossShapeError(
            f"The {type(subject.kind).__name__} does not depend on its weights, so every score would be zero. "
            f"Multiply each sample's terms by its weight: (weights * losses).sum()."
        )


def _refuse_written(batch: Batch, content: str) -> None:
    if digest(batch) != content:
        raise DataError(
            "Computing the loss changes its batch, so that every pass would see other data. Let it work on a copy: "
            "x.clone() before operations in place such as sub_ and masked_fill_, dict(batch) before pop. The batch is "
            "now as the loss left it: load the data again."
        )


def _lasting(others: Sequence[Tensor], again: Sequence[Tensor], batch: Batch) -> tuple[str, ...]:
    """A note on tensors that ask for gradients, neither made by the loss in each call nor part of its batch."""
    known = {id(tensor) for tensor in again} - {id(tensor) for tensor in tensors_in(batch)}
    shapes = [str(tuple(tensor.shape)) for tensor in others if id(tensor) in known]
    if not shapes:
        return ()
    return (
        f"The loss depends on a tensor of shape {shapes[0]} that asks for gradients and is no parameter of the model. "
        f"If training moved it, sizes may be off: make it an nn.Parameter of the model. If not, call "
        f"requires_grad_(False) on it.",
    )


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            state = "is in training mode" if module.training else "keeps no running statistics"
            advice = "Call model.eval() first" if module.training else "Train it with track_running_stats=True"
            raise NondeterministicError(
                f"{type(module).__name__} {name or type(model).__name__!r} {state}: the samples of a batch would "
                f"be normalised by each other. {advice}, or replace it by GroupNorm or LayerNorm."
            )


def _untouched(model: nn.Module, values: Callable[[], Value]) -> Value:
    """The value of a function, after a check that it leaves the model as it was."""
    before, kept = fingerprint(model), {name: tensor.clone() for name, tensor in state_of(model).items()}
    found = values()
    if fingerprint(model) != before:
        changed = [name for name, now in state_of(model).items() if digest(now) != digest(kept[name])]
        with torch.no_grad():
            for name, tensor in state_of(model).items():
                tensor.copy_(kept[name])
        raise NondeterministicError(
            f"Computing the loss changes the model itself ({', '.join(changed[:3]) or 'something in it'}). Call "
            f"model.eval(), let modules of your own write buffers only `if self.training:`, and drop max_norm from "
            f"embeddings. The model was put back as it was."
        )
    return found
