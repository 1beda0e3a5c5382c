"""The split of a plain loss at its model's outputs, found by running the loss on outputs that are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .._autodiff.copies import attributes_kept
from .._autodiff.functional import bind, recorded_twice
from .._data.samples import first_samples
from .._losses import AbstractLoss, OnOutputs, PerSample, one_each
from .._types import Batch, Params, SampleLoss
from ..errors import CrossfluenceError

Forward: TypeAlias = Callable[..., Any]
PLAIN = (bool, int, float, str, type(None))  # parts of an output that a batch does not change
ROUNDINGS = 100  # rounding errors by which the loss on given outputs may differ


class NoSplitError(CrossfluenceError, TypeError):
    """A loss is not a function of one call of its model; the message is a clause that says why."""


class _Reached(BaseException):
    """Ends a run of the loss once the model has returned; no `except Exception` of the user's stops it."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


@dataclass(frozen=True, eq=False)
class Split:
    """A plain loss as outputs and criterion.

    Attributes:
        loss: `(model, batch) -> (b,)`.
        model: Runs in the criterion with its forward replaced.
        spec: How the parts of its output are put together.
        parts: The parts, `None` for tensors.
        places: Which parts the loss depends on.
        shapes: Of these, without the samples.
    """

    loss: SampleLoss
    model: nn.Module
    spec: TreeSpec
    parts: tuple[Any, ...]
    places: tuple[int, ...]
    shapes: tuple[torch.Size, ...]

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The part of the model's output that the loss depends on; several parts in one row, `(b, numbers)`."""
        forward = model.forward

        def reach(*args: Any, **kwargs: Any) -> Any:
            raise _Reached(forward(*args, **kwargs))

        try:
            with _forward(model, reach):
                self.loss(model, batch)
        except _Reached as reached:
            return self._joined(_flat(reached.value)[0])
        raise NoSplitError("the loss did not call the model this time")

    def criterion(self, z: Tensor, batch: Batch) -> Tensor:
        """The loss with these in the place of the model's output."""
        parts = list(self.parts)
        for place, part in zip(self.places, self._parted(z), strict=True):
            parts[place] = part
        given = tree_unflatten(parts, self.spec)
        with _forward(self.model, lambda *_, **__: given):
            return self.loss(self.model, batch)

    def _joined(self, parts: list[Any]) -> Tensor:
        found = [parts[place] for place in self.places]
        return found[0] if len(found) == 1 else torch.cat([part.flatten(1) for part in found], 1)

    def _parted(self, z: Tensor) -> list[Tensor]:
        if len(self.places) == 1:
            return [z]
        parts = z.split([shape.numel() for shape in self.shapes], 1)
        return [part.reshape(len(z), *shape) for part, shape in zip(parts, self.shapes, strict=True)]


def split_at_outputs(loss: SampleLoss, model: nn.Module, theta: Params, batch: Batch, precision: float) -> OnOutputs:
    """A plain loss, split at the outputs of its model.

    Where the loss calls the model once and uses the parameters otherwise not at all, the criterion is what is left when
    the model's forward is replaced by given outputs. Its values and one derivative are compared with the loss.

    Args:
        loss: `(model, batch) -> (b,)`.
        model: The trained module; left as it was.
        theta: Its trained parameters.
        batch: A few samples.
        precision: Relative rounding error of the loss.

    Returns:
        The same loss; one output is as the model returns it, several that matter are in one row for each sample.

    Raises:
        NoSplitError: If there is no such split, with the reason as a clause.

    Example:
        >>> net, x = nn.Linear(2, 1), torch.ones(3, 2)
        >>> theta = {name: part.detach() for name, part in net.named_parameters()}
        >>> split = split_at_outputs(lambda model, x: model(x).square().sum(1), net, theta, x, 1e-7)
        >>> split.outputs(net, x).shape, split.criterion(torch.full((3, 1), 2.0), x)
        (torch.Size([3, 1]), tensor([4., 4., 4.]))
    """
    try:
        with recorded_twice():
            return _found(loss, model, theta, batch, precision)
    except NoSplitError:
        raise
    except Exception as error:  # whatever the user's code says to outputs that are given
        first = str(error).strip().partition("\n")[0][:160]
        raise NoSplitError(f"run on outputs that are given, it fails ({type(error).__name__}: {first})") from error


def check_split(split: OnOutputs, loss: SampleLoss, model: nn.Module, batch: Batch, precision: float) -> None:
    """Compares the values of a loss with those of its split, on samples that the split was not found on.

    Args:
        split: From `split_at_outputs`.
        loss: `(model, batch) -> (b,)`.
        model: The trained module.
        batch: Other samples.
        precision: Relative rounding error of the loss.

    Raises:
        NoSplitError: If they differ.
    """
    try:
        with torch.no_grad():
            _require_equal(split.losses(model, batch), loss(model, batch), precision)
    except NoSplitError:
        raise
    except Exception as error:  # as above
        raise NoSplitError(f"run on the outputs of another batch, it fails ({type(error).__name__})") from error


def _found(loss: SampleLoss, model: nn.Module, theta: Params, batch: Batch, precision: float) -> OnOutputs:
    live = {name: part.detach().requires_grad_() for name, part in theta.items()}
    losses, returned = _watched(loss, model, live, batch)
    split = _split_of(loss, model, theta, batch, losses, returned)
    made = OnOutputs(split.outputs, split.criterion)
    signs = _signs(losses)
    z = bind(made.outputs, model)(live, batch)
    given = z.detach().requires_grad_()
    terms = one_each(made.criterion(given, batch))
    _require_equal(terms, losses, precision)
    _refuse_coupled(terms, given)
    wanted = torch.autograd.grad((signs * losses).sum(), list(live.values()), allow_unused=True)
    (slope,) = torch.autograd.grad((signs * terms).sum(), [given])
    found = torch.autograd.grad([z], list(live.values()), [slope], allow_unused=True)
    _require_equal(_flattened(found, live), _flattened(wanted, live), precision**0.5 / ROUNDINGS)
    return made


def _watched(loss: SampleLoss, model: nn.Module, live: Params, batch: Batch) -> tuple[Tensor, Any]:
    """The losses with their graph, and the one output of the model."""
    seen: list[Any] = []

    def run(module: nn.Module) -> Tensor:
        forward = module.forward

        def note(*args: Any, **kwargs: Any) -> Any:
            seen.append(forward(*args, **kwargs))
            return seen[-1]

        with _forward(module, note):
            return loss(module, batch)

    losses = one_each(bind(run, model)(live))
    if len(seen) != 1:
        raise NoSplitError(
            f"it calls model(...) {len(seen)} times, and the split is found where it does so once"
            if seen
            else "it never calls model(...) itself, but a method or a part of it"
        )
    return losses, seen[0]


def _split_of(loss: SampleLoss, model: nn.Module, theta: Params, batch: Batch, losses: Tensor, returned: Any) -> Split:
    """Runs the loss on copies of all parts of the output, to see which of them it depends on."""
    parts, spec = _flat(returned)
    floats = [place for place, part in enumerate(parts) if isinstance(part, Tensor) and part.is_floating_point()]
    copies = {place: parts[place].detach().requires_grad_() for place in floats}
    kept = tuple(part if isinstance(part, PLAIN) else None for part in parts)
    whole = Split(loss, model, spec, kept, (), ())
    given = tree_unflatten([copies.get(place, part) for place, part in enumerate(kept)], whole.spec)

    def run(module: nn.Module) -> Tensor:
        with _forward(module, lambda *_, **__: given):
            return loss(module, batch)

    live = {name: part.detach().requires_grad_() for name, part in theta.items()}
    total = (_signs(losses) * bind(run, model)(live)).sum()
    if not copies or not total.requires_grad:
        raise NoSplitError(f"it does not depend on the {type(returned).__name__} that the model returns")
    found = torch.autograd.grad(total, [*copies.values(), *live.values()], allow_unused=True)
    beside = [name for name, part in zip(live, found[len(copies) :], strict=True) if part is not None]
    if beside:
        raise NoSplitError(f"it uses {beside[0]!r} beside the model's outputs")
    places = tuple(place for place, part in zip(copies, found, strict=False) if part is not None)
    for place in places:
        if not copies[place].ndim or len(copies[place]) != len(losses):
            shape = tuple(copies[place].shape)
            raise NoSplitError(f"the model's outputs have shape {shape} for {len(losses)} samples: rows are no samples")
    return Split(loss, model, spec, kept, places, tuple(copies[place].shape[1:] for place in places))


def _flat(returned: Any) -> tuple[list[Any], TreeSpec]:
    """Tensors inside tuples, lists, dictionaries and the output objects that are dictionaries."""
    return tree_flatten(returned, is_leaf=lambda part: not isinstance(part, (tuple, list, Mapping)))


@contextmanager
def _forward(model: nn.Module, forward: Forward) -> Iterator[None]:
    """Replaces what a module does when it is called; the same object, so that its other methods still work."""
    with attributes_kept(model):
        vars(model)["forward"] = forward  # not through nn.Module, which may look at names
        yield


def _signs(losses: Tensor) -> Tensor:
    drawn = torch.randint(2, losses.shape, generator=torch.Generator().manual_seed(0))
    return (2 * drawn - 1).to(losses)


def _refuse_coupled(terms: Tensor, z: Tensor) -> None:
    """Every loss must depend on its own row of the outputs alone."""
    for row in {0, len(terms) - 1}:
        (slope,) = torch.autograd.grad(terms[row], [z], retain_graph=True, allow_unused=True)
        if slope is not None and slope[torch.arange(len(z), device=z.device) != row].any():
            raise NoSplitError("the loss of one sample depends on the outputs of others")


def _require_equal(found: Tensor, wanted: Tensor, precision: float) -> None:
    """By their largest number, so that what cancels is no reason to differ."""
    allowed = ROUNDINGS * precision * (wanted.abs().max() if wanted.numel() else 0)
    if found.shape != wanted.shape or not bool(((found - wanted).abs() <= allowed).all() or wanted.isnan().any()):
        raise NoSplitError("run on outputs that are given, it has another value or derivative")


def _flattened(parts: tuple[Tensor | None, ...], like: Params) -> Tensor:
    dense = (torch.zeros_like(one) if part is None else part for part, one in zip(parts, like.values(), strict=True))
    return torch.cat([(part.to_dense() if part.layout != torch.strided else part).flatten() for part in dense])


def split_of(
    kind: AbstractLoss,
    model: nn.Module,
    theta: Params,
    passes: Callable[[], Iterator[tuple[int, Batch, Tensor]]],
    precision: float,
) -> OnOutputs | str:
    """A loss split at the outputs, or the reason why it cannot be, as a clause.

    Args:
        kind: Any loss.
        model: The trained module.
        theta: Its trained parameters.
        passes: Reads the data: number, batch and weights.
        precision: Relative rounding error of the loss.

    Returns:
        One of the two.
    """
    if isinstance(kind, OnOutputs):
        return kind
    if not isinstance(kind, PerSample):
        return "it has no loss for each sample alone"
    (_, batch, weights), *others = islice(passes(), 2)
    few = first_samples(batch, len(weights))
    try:
        split = split_at_outputs(kind.losses, model, theta, few[0] if few else batch, precision)
        for _, other, _ in others or [(0, batch, weights)]:
            check_split(split, kind.losses, model, other, precision)
    except NoSplitError as error:
        return str(error)
    return split
