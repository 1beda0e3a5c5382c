"""Inner products of samples' gradients with directions, layer by layer while the backward pass runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._autodiff.functional import recorded, with_constants
from .._data.samples import SAMPLES, cut
from .._types import Batch, Params, SampleLoss
from .gradients import AbstractGradients, ByBlock, OuterProducts, ParameterBlock
from .layer_calls import LayerBlock, ModuleCall, repeated
from .layers import Layers, exact_if_one_row, in_a_row, recorded_calls
from .reverse import weighted_gradient

NUMBERS_AT_ONCE = 2**24  # of per-sample gradients of a layer in memory that is used again: 64 MB


class Scoring(Protocol):
    """Some directions in one block."""

    def scores_with(self, samples: AbstractGradients) -> Shaped[Tensor, "b m"]: ...

    def flat(self, rounded: torch.dtype | None) -> Shaped[Tensor, "m d"]: ...


@dataclass(eq=False)
class StreamedPass:
    """Scores of one batch: a layer's gradients are taken when they come, and nothing of them is kept.

    Parameters are constants, so that no gradient by a weight is taken, and the backward pass ends at the first layer
    that is asked about.

    Attributes:
        layers: Of the model, as the losses use them.
        asked: Directions by block, in chunks of m.
        weights: Of the samples in the sum of the gradients; `None` for no sum.
        sums: Weighted sums of the gradients, by block.
        rounded: A type of numbers that inputs, output gradients, gradients and directions are rounded to before they
            are multiplied; `None` for their own.
    """

    layers: Layers
    asked: Sequence[Mapping[ParameterBlock, Scoring]]
    weights: Tensor | None = None
    sums: dict[ParameterBlock, Tensor] = field(default_factory=dict)
    rounded: torch.dtype | None = None

    def scores(self, losses: SampleLoss, batch: Batch, b: int) -> list[list[Tensor]]:
        """Parts of the scores of b samples, to be added up, for each chunk of directions."""
        parts: list[list[Tensor]] = [[] for _ in self.asked]

        def take(found: ByBlock) -> None:
            for slot, gradients in found.items():
                self._take(slot, gradients, parts)

        idle = {name: part for each in self.layers.idle.values() for name, part in each.items()}
        live = {name: part.detach().requires_grad_() for name, part in idle.items()}
        waiting, starts, z = self._forward(losses, batch, b, live, take)
        back: tuple[Tensor | None, ...] = ()
        if z.requires_grad:
            with recorded():
                back = torch.autograd.grad(z.sum(), [*starts, *live.values()], allow_unused=True)
        for call, arrived in waiting:
            take(self._of_call(replace(call, gradients=tuple(map(arrived.get, range(len(call.outputs))))), b))
        if self.layers.outside or any(part is not None and part.any() for part in back[len(starts) :]):
            take(self.layers.written(losses, batch, z.detach(), torch.ones_like(z)))
        return parts

    def _forward(
        self, losses: SampleLoss, batch: Batch, b: int, live: Params, take: Any
    ) -> tuple[list[tuple[ModuleCall, dict[int, Tensor]]], list[Tensor], Tensor]:
        layers, starts = self.layers, []
        waiting: list[tuple[ModuleCall, dict[int, Tensor]]] = []
        shared = {each.layer for each in layers.layer_blocks if each.samples is None}

        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> Any:
            leaves, form = tree_flatten(returned)
            places = [at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            if layer in shared:
                leaves[places[0]] = repeated(leaves[places[0]], b, 2)
            for at in places:
                if not leaves[at].requires_grad:
                    leaves[at] = leaves[at].detach().requires_grad_()
                    starts.append(leaves[at])
            outputs = tuple(leaves[at] for at in places)
            call = ModuleCall(layer, args, kwargs, outputs, tuple(places), spread=b if layer in shared else 0)
            self._listen(call, b, take, waiting)
            for at in places:
                if leaves[at].is_leaf:  # what follows may change it in place
                    leaves[at] = leaves[at].clone()
            return tree_unflatten(leaves, form)

        hooks = [
            layer.register_forward_hook(note, with_kwargs=True)
            for layer in {each.layer: None for each in layers.layer_blocks}
        ]
        try:
            with recorded():
                z = with_constants(losses, layers.model, live)(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return waiting, starts, z

    def _listen(self, call: ModuleCall, b: int, take: Any, waiting: list[tuple[ModuleCall, dict[int, Tensor]]]) -> None:
        """Takes the gradients when they come; those of a call with several outputs, after the pass."""
        if len(call.outputs) == 1:
            bare = replace(call, outputs=(call.outputs[0].detach(),))  # the hook does not hold what holds it

            def arrived(gradient: Tensor) -> None:
                with torch.no_grad():
                    take(self._of_call(replace(bare, gradients=(gradient.detach(),)), b))

            call.outputs[0].register_hook(arrived)
            return
        back: dict[int, Tensor] = {}
        for at, output in enumerate(call.outputs):
            output.register_hook(lambda gradient, at=at: back.__setitem__(at, gradient.detach()))
        waiting.append((call, back))

    def _of_call(self, call: ModuleCall, b: int) -> ByBlock:
        """Gradients by block from one call; another call of a shared layer adds its own."""
        if all(part is None for part in call.gradients):
            return {}
        found: ByBlock = {}
        own = {each.kind for each in self.layers.layer_blocks if each.layer is call.module}
        for seen in recorded_calls(call, own):
            for each in self._blocks_of(seen.layer):
                if each.kind == seen.kind:
                    found[each.slot] = exact_if_one_row(each.slot, each.kind.gradients(each, seen.seen, b))
        return dict(in_a_row(*each) if each[0].size <= self.layers.rows else each for each in found.items())

    def _blocks_of(self, layer: nn.Module) -> Iterable[LayerBlock]:
        return [each for each in self.layers.layer_blocks if each.layer is layer]

    def _take(self, slot: ParameterBlock, gradients: AbstractGradients, parts: list[list[Tensor]]) -> None:
        if self.in_pieces(gradients):
            assert isinstance(gradients, OuterProducts)
            self._take_in_pieces(slot, gradients, parts)
            return
        for chunk, found in zip(self.asked, parts, strict=True):
            if slot in chunk:
                found.append(chunk[slot].scores_with(gradients))
        if self.weights is not None:
            self._add(slot, gradients.weighted(self.weights))

    @staticmethod
    def in_pieces(gradients: AbstractGradients) -> bool:
        """True if the gradients are written out in memory that is used again."""
        return isinstance(gradients, OuterProducts) and not gradients.single and len(gradients.left) == 1

    def _take_in_pieces(self, slot: ParameterBlock, gradients: OuterProducts, parts: list[list[Tensor]]) -> None:
        dtype = self.rounded or gradients.left.dtype
        left, right = gradients.left[0].to(dtype), gradients.right[0].to(dtype)  # (b, t, r), (b, t, c)
        b, size = len(left), left.shape[-1] * right.shape[-1]
        step = max(1, min(b, NUMBERS_AT_ONCE // size))
        asked = [chunk[slot].flat(self.rounded) if slot in chunk else None for chunk in self.asked]
        found = [None if each is None else left.new_empty(b, len(each)) for each in asked]
        memory = self._memory(step * size, left)
        for start in range(0, b, step):
            few = slice(start, min(start + step, b))
            count = few.stop - start
            piece = memory[: count * size].view(count, *left.shape[2:], right.shape[-1])
            torch.bmm(left[few].mT, right[few], out=piece)
            flat = piece.view(count, size)
            for directions, rows in zip(asked, found, strict=True):
                if directions is not None and rows is not None:
                    torch.mm(flat, directions.T, out=rows[few])
            if self.weights is not None:
                self._add(slot, (self.weights[few].to(flat) @ flat).view(1, *piece.shape[1:]))
        for rows, part in zip(found, parts, strict=True):
            if rows is not None:
                part.append(rows.to(gradients.left.dtype))

    def _memory(self, size: int, like: Tensor) -> Tensor:
        held = getattr(self, "_held", None)
        if held is None or held.numel() < size or held.dtype != like.dtype or held.device != like.device:
            held = self._held = like.new_empty(size)
        return held

    def _add(self, slot: ParameterBlock, part: Tensor) -> None:
        if slot not in self.sums:
            self.sums[slot] = torch.zeros_like(part, dtype=torch.promote_types(part.dtype, torch.float32))
        self.sums[slot] += part


def streams(layers: Layers, theta: Params, losses: SampleLoss, batch: Batch, b: int, precision: float) -> bool:
    """True if a streamed pass gives the gradient that a plain one does, on a few samples.

    Args:
        layers: Of the model, as the losses use them.
        theta: Its trained parameters.
        losses: `(model, batch) -> (b,)`.
        batch: One of the data.
        b: Its number of samples.
        precision: Relative rounding error of the losses.

    Returns:
        False also where the model says anything to it.
    """
    few = cut(batch, b, lambda part: part[:SAMPLES]) if b > SAMPLES else None
    count, batch = (b, batch) if few is None else (SAMPLES, few)
    if any(isinstance(module, torch.jit.ScriptModule) for module in layers.model.modules()):
        return False
    try:
        ones = next(iter(theta.values())).new_ones(count)
        found = StreamedPass(layers, [], ones)
        found.scores(losses, batch, count)
        wanted = weighted_gradient(losses, layers.model, theta, batch, ones)
    except Exception:  # whatever the model says to constants for its parameters
        return False
    gap, whole = 0.0, 0.0
    for slot in layers.slots:
        want = slot.gather(wanted)
        gap += float((found.sums.get(slot, torch.zeros_like(want)) - want).square().sum())
        whole += float(want.square().sum())
    return gap**0.5 <= min(100 * precision**0.5, 0.1) * whole**0.5 + 1e-30


def gradient_of_sums(layers: Layers, sums: Mapping[ParameterBlock, Tensor], theta: Params) -> Params:
    """Named tensors from sums by block.

    Args:
        layers: Whose blocks.
        sums: By block; blocks that no batch reached are missing.
        theta: Shapes of all.

    Returns:
        Named tensors.
    """
    found = {name: torch.zeros_like(part) for name, part in theta.items()}
    for slot, part in sums.items():
        found |= slot.scatter(part)
    return found
