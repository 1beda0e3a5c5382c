"""Per-sample gradients of layer weights from forward hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._autodiff.functional import evaluated, recorded
from .._autodiff.params import largest_eps, wide
from .._curvature.output_gradients import OutputGradients
from .._losses import length_of
from .._types import Batch, Params, SampleLoss
from ..errors import UnsupportedError
from .gradients import AbstractGradients, ByBlock, DenseGradients, ParameterBlock, joined
from .layer_blocks import form_of, layer_blocks_of
from .layer_calls import AbstractKind, LayerBlock, ModuleCall, SeenCall, repeated
from .recognised import Alone
from .reverse import tracked, weighted_gradient
from .separately import Separately


@dataclass(frozen=True, eq=False)
class Layers:
    """A model's trained parameters in blocks: those that layers explain, and the others.

    Attributes:
        model: The module that is called.
        layer_blocks: Layers whose inputs and output gradients give the gradients of their blocks.
        outside: Parameters that no layer explains; differentiated sample by sample.
        idle: Parameters of layers that nothing depended on in the batch that was looked at, and their blocks: should
            another batch reach them, they are differentiated sample by sample.
        rows: Blocks of up to this many numbers are seen as one row, so that their second moment is all of them.
    """

    model: nn.Module
    layer_blocks: tuple[LayerBlock, ...]
    outside: Params
    idle: Mapping[ParameterBlock, Params] = field(default_factory=dict)
    rows: int = 0

    @property
    def slots(self) -> tuple[ParameterBlock, ...]:
        """All blocks."""
        seen = (*dict.fromkeys(layer_block.slot for layer_block in self.layer_blocks), *self._written)
        return tuple(map(self._slot, seen))

    def only(self, slots: Container[ParameterBlock]) -> Layers:
        """Some of the blocks."""
        wanted = tuple(each for each in self.layer_blocks if self._slot(each.slot) in slots)
        outside = {
            name: part for name, part in self.outside.items() if self._slot(_own_slot(self.outside, name)) in slots
        }
        idle = {slot: part for slot, part in self.idle.items() if self._slot(slot) in slots}
        return replace(self, layer_blocks=wanted, outside=outside, idle=idle)

    def _slot(self, slot: ParameterBlock) -> ParameterBlock:
        return slot.row if slot.size <= self.rows else slot

    @cached_property
    def separately(self) -> Separately:
        """The way to the gradients of what no layer explains."""
        return Separately(self.model, {name: part for each in self._written.values() for name, part in each.items()})

    @property
    def _written(self) -> dict[ParameterBlock, Params]:
        own = {_own_slot(self.outside, name): {name: tensor} for name, tensor in self.outside.items()}
        return {**own, **self.idle}

    def gradients(self, scalars: SampleLoss, batch: Batch) -> ByBlock:
        """Every sample's gradient with respect to every block that the batch reaches.

        Args:
            scalars: `(model, batch) -> (b,)`.
            batch: One of the data.

        Returns:
            Gradients by block.
        """
        return next(self.along(OutputGradients.of(scalars), batch))

    def along(self, output_gradients: OutputGradients, batch: Batch) -> Iterator[ByBlock]:
        """As `gradients`, for each root of a batch: one forward pass serves them all.

        Args:
            output_gradients: What to differentiate.
            batch: One of the data.

        Yields:
            Gradients by block.
        """
        outputs = output_gradients.outputs
        idle = {name: tensor for part in self.idle.values() for name, tensor in part.items()}
        seen = ForwardPass.of(self.model, self.layer_blocks, outputs, batch, idle)
        for direction, last in _marked(output_gradients.directions(seen.z.detach())):
            calls, reached = seen.calls(direction, last)
            found = gradients_of(calls, self.layer_blocks, len(direction))
            if self.outside or reached:
                found |= self.written(outputs, batch, seen.z.detach(), direction, hooked=seen.hooked)
            yield dict(in_a_row(*each) if each[0].size <= self.rows else each for each in found.items())

    def written(
        self, outputs: SampleLoss, batch: Batch, z: Tensor, direction: Tensor, *, hooked: bool = False
    ) -> ByBlock:
        """Every sample's gradient by what no layer explains, in full.

        Args:
            outputs: `(model, batch) -> (b, ...)`.
            batch: One of the data.
            z: The outputs.
            direction: Of their shape.
            hooked: Whether the user's own hooks run in backward passes.

        Returns:
            Gradients by block.
        """
        rows = self.separately.rows(outputs, batch, z, direction, hooked=hooked)
        written = {slot: part for slot, part in self._written.items() if part.keys() & rows}
        return {slot: DenseGradients(_gathered(slot, part, rows)) for slot, part in written.items()}


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One forward pass, and what the layers saw of it.

    Attributes:
        z: The outputs, with a graph.
        noted: Calls of layers.
        kinds: Ways from a layer's calls to its gradients.
        idle: Parameters that the outputs may depend on.
        hooked: Whether the user's own hooks run in backward passes: they are to get plain tensors.
    """

    z: Tensor
    noted: list[ModuleCall]
    kinds: Mapping[nn.Module, set[AbstractKind[Any]]]
    idle: Params
    hooked: bool = False

    @classmethod
    def of(
        cls, model: nn.Module, layer_blocks: Iterable[LayerBlock], outputs: SampleLoss, batch: Batch, idle: Params
    ) -> ForwardPass:
        """Runs a model, with hooks on its layers that are taken off again."""
        noted: list[ModuleCall] = []
        shared = {layer_block.layer for layer_block in layer_blocks if layer_block.samples is None}
        kinds: dict[nn.Module, set[AbstractKind[Any]]] = {}
        for layer_block in layer_blocks:
            kinds.setdefault(layer_block.layer, set()).add(layer_block.kind)
        b = length_of(batch) if shared else 0

        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> Any:
            leaves, form = tree_flatten(returned)
            places = [at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
            if not places:
                return returned
            if layer in shared:  # the same for every sample, so far: each is given its own copy
                leaves[places[0]] = repeated(leaves[places[0]], b, 2)
            outputs = tuple(leaves[at] for at in places)
            noted.append(ModuleCall(layer, args, kwargs, outputs, tuple(places), spread=b if layer in shared else 0))
            for at in places:
                leaves[at] = leaves[at].clone()  # what follows may change it in place
            return tree_unflatten(leaves, form)

        hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in kinds]
        try:
            with recorded():
                z, copies = tracked(outputs, model, idle, batch)
        finally:
            for hook in hooks:
                hook.remove()
        return cls(z, noted, kinds, copies, any(module._backward_hooks for module in model.modules()))

    def calls(self, direction: Tensor, last: bool = True) -> tuple[list[SeenCall], bool]:
        """A backward pass along a direction of the outputs, which frees what it has read if it is the last.

        Args:
            direction: Of the outputs' shape.
            last: Whether no other follows.

        Returns:
            Calls of layers, and whether parameters that seemed idle were reached.
        """
        wanted = [*(output for call in self.noted for output in call.outputs), *self.idle.values()]
        if not wanted or not self.z.requires_grad:
            return [], False
        with recorded():
            found = torch.autograd.grad(self.z, wanted, direction.to(self.z), allow_unused=True, retain_graph=not last)
        back, seen = iter(found), []
        for call in self.noted:
            gradients = tuple(next(back) for _ in call.outputs)
            if any(part is not None for part in gradients):
                seen += recorded_calls(replace(call, gradients=gradients), self.kinds[call.module])
        return seen, any(part is not None and bool(part.any()) for part in back)


def recorded_calls(call: ModuleCall, kinds: Iterable[AbstractKind[Any]]) -> Iterator[SeenCall]:
    """A call as each of some kinds takes it; none where it cannot.

    Args:
        call: With its gradients.
        kinds: Of its module.

    Yields:
        What was recorded, and of which layer.
    """
    for kind in kinds:
        with contextlib.suppress(UnsupportedError):
            yield from (SeenCall(getattr(seen, "layer", call.module), kind, seen) for seen in kind.record(call))


def _marked(directions: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each, and whether it is the last."""
    drawn = iter(directions)
    direction = next(drawn, None)
    while direction is not None:
        following = next(drawn, None)
        yield direction, following is None
        direction = following


def _gathered(slot: ParameterBlock, params: Params, rows: Params) -> Tensor:
    """A block's gradients from those of its parameters; zeros for one that is not among them."""
    b = len(next(iter(rows.values())))
    each = {name: rows[name] if name in rows else tensor.new_zeros(b, *tensor.shape) for name, tensor in params.items()}
    return wide(slot.gather(each)).movedim(0, 1)


def in_a_row(slot: ParameterBlock, gradients: AbstractGradients) -> tuple[ParameterBlock, DenseGradients]:
    each = slot.row.gather(slot.scatter(gradients.dense().movedim(0, 1)))
    return slot.row, DenseGradients(each.movedim(1, 0))


def layers_of(
    model: nn.Module,
    theta: Params,
    scalars: SampleLoss,
    batch: Batch,
    *,
    precision: float | None = None,
    decay: Mapping[str, float] | None = None,
) -> Layers:
    """Sorts a model's trained parameters into blocks.

    Whatever a layer's hooks seem to say is compared with a gradient that needs no hooks. So a weight that is also used
    outside of its layer, a layer with a forward of its own, or a layer that sees no samples one by one is not
    taken for what it is not: its parameters fall outside. A layer that nothing depends on proves nothing.

    Args:
        model: The trained module.
        theta: Its trained parameters.
        scalars: `(model, batch) -> (b,)`, the quantity to differentiate.
        batch: One of the data, with several samples.
        precision: Relative rounding error of the scalars; default: that of the parameters.
        decay: The l2 term's coefficient of each parameter, where it is not the same for all: a bias with one of its
            own is a block of its own.

    Returns:
        Layers, and the parameters outside of them.
    """
    precision = largest_eps(theta) if precision is None else precision
    layer_blocks, kept = (
        layer_blocks_of(model, theta, decay or {}, lambda: evaluated(lambda: scalars(model, batch))),
        [],
    )
    count = len(evaluated(lambda: scalars(model, batch))) if layer_blocks else 0
    weights = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(next(iter(theta.values())))
    whole = weighted_gradient(scalars, model, theta, batch, weights) if layer_blocks else {}
    idle = {slot for slot in {layer_block.slot for layer_block in layer_blocks} if not slot.gather(whole).any()}
    for way in _ways(model):
        known = {layer_block.slot for layer_block in kept}
        left = way([layer_block for layer_block in layer_blocks if layer_block.slot not in known])
        shared = any(layer_block.samples is None for layer_block in left)
        found = (_shared if shared else _by_hooks)(model, left, scalars, batch)
        explained = {slot for slot in found if _explained(found[slot], slot.gather(whole), weights, precision)}
        kept += [layer_block for layer_block in left if layer_block.slot in explained]
    idle -= {layer_block.slot for layer_block in kept}
    inside = {name for slot in (*idle, *(layer_block.slot for layer_block in kept)) for name in slot.names}
    outside = {name: tensor for name, tensor in theta.items() if name not in inside}
    blocks = dict.fromkeys(layer_block.slot for layer_block in layer_blocks if layer_block.slot in idle)
    unreached = {slot: {name: theta[name] for name in slot.names} for slot in blocks}
    return Layers(model, tuple(kept), outside, unreached)


def _ways(model: nn.Module) -> list[Callable[[Sequence[LayerBlock]], list[LayerBlock]]]:
    """Ways to explain blocks, in the order in which they are tried: fast ones first."""
    above = {part: (module, name) for module in model.modules() for name, part in module.named_children()}

    def along(samples: int) -> Callable[[Sequence[LayerBlock]], list[LayerBlock]]:
        return lambda left: [replace(each, samples=samples) for each in left if not isinstance(each.kind, Alone)]

    def shared(left: Sequence[LayerBlock]) -> list[LayerBlock]:
        return [replace(each, samples=None) for each in left if isinstance(each.layer, nn.Embedding)]

    def alone(left: Sequence[LayerBlock]) -> list[LayerBlock]:
        return _alone([each for each in left if each.layer is not model])

    def within(left: Sequence[LayerBlock]) -> list[LayerBlock]:
        """As a part of the module around it, which may use the parameters itself."""
        raised = []
        for each in left:
            around, name = above.get(each.layer, (model, ""))
            if around is not model and not isinstance(around, nn.ModuleList):
                raised.append(replace(each, layer=around, own=tuple(f"{name}.{own}" for own in each.own)))
        return _alone(raised)

    return [along(0), along(1), shared, alone, within]


def _alone(left: Sequence[LayerBlock]) -> list[LayerBlock]:
    """Blocks of modules that are differentiated by themselves, all parameters of a module together."""
    names: dict[nn.Module, tuple[str, ...]] = {}
    for each in left:
        names[each.layer] = tuple(dict.fromkeys((*names.get(each.layer, ()), *each.own)))
    return [replace(each, kind=Alone(names[each.layer]), samples=0) for each in left]


def gradients_of(calls: Sequence[SeenCall], layer_blocks: Iterable[LayerBlock], b: int) -> ByBlock:
    """Per-sample gradients from what layers saw.

    Args:
        calls: From `ForwardPass.calls`.
        layer_blocks: Which blocks.
        b: The number of samples.

    Returns:
        Gradients by block, without blocks whose layers were not called.

    Raises:
        UnsupportedError: If a layer was called on something that does not divide into samples.
    """
    return {slot: exact_if_one_row(slot, found) for slot, found in _terms_of(calls, layer_blocks, b).items()}


def _terms_of(calls: Sequence[SeenCall], layer_blocks: Iterable[LayerBlock], b: int) -> ByBlock:
    """Gradients by block, position by position."""
    parts: dict[ParameterBlock, list[AbstractGradients]] = {}
    for layer_block in layer_blocks:
        own = [call for call in calls if call.layer is layer_block.layer and call.kind == layer_block.kind]
        found = [layer_block.kind.gradients(layer_block, call.seen, b) for call in own]
        if found:
            parts.setdefault(layer_block.slot, []).extend(found)
    return {slot: joined(found) for slot, found in parts.items()}


def exact_if_one_row(slot: ParameterBlock, gradients: AbstractGradients) -> AbstractGradients:
    """With one row the gradients in full are no larger than their factors, and their second moment is the block."""
    return DenseGradients(gradients.dense()) if slot.form[1] == 1 else gradients


def _by_hooks(model: nn.Module, layer_blocks: Sequence[LayerBlock], scalars: SampleLoss, batch: Batch) -> ByBlock:
    """Gradients by block, without blocks that do not divide into samples."""
    if not layer_blocks:
        return {}
    seen, found = ForwardPass.of(model, layer_blocks, scalars, batch, {}), {}
    calls, _ = seen.calls(torch.ones_like(seen.z))
    for slot in dict.fromkeys(layer_block.slot for layer_block in layer_blocks):
        with contextlib.suppress(UnsupportedError):
            found |= _terms_of(calls, [each for each in layer_blocks if each.slot == slot], len(seen.z))
    return found


def _shared(model: nn.Module, layer_blocks: Sequence[LayerBlock], scalars: SampleLoss, batch: Batch) -> ByBlock:
    """The same, one block after another: some models refuse a table that comes out with one more dimension."""
    found: ByBlock = {}
    for slot in dict.fromkeys(layer_block.slot for layer_block in layer_blocks):
        with contextlib.suppress(Exception):  # whatever the model says to that
            found |= _by_hooks(model, [each for each in layer_blocks if each.slot == slot], scalars, batch)
    return found


def _explained(found: AbstractGradients, wanted: Tensor, weights: Tensor, precision: float) -> bool:
    """True if gradients, added up with random weights for the samples, are those of a backward pass."""
    # rounding is judged by the terms that are added up, for their sum may be zero; zeros explain nothing
    terms = found.squared().weighted(weights.square()).sum().sqrt()
    summed = found.weighted(weights)
    if summed.shape != wanted.shape:
        return False
    gap = (summed - wanted).norm()
    tolerance = min(10 * precision**0.5, 0.1) * wanted.norm() + min(10 * precision, 0.1) * terms
    return bool(terms > 0) and bool(gap <= tolerance)


def _own_slot(params: Params, name: str) -> ParameterBlock:
    return ParameterBlock.of(params, (name,), *form_of(params[name]))
