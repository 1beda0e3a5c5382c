"""Gradients of parameters that no layer explains: the model is run on every sample of a batch alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.func import grad, vmap

from .._autodiff.functional import bind, recorded, recorded_twice
from .._curvature.output_gradients import projected
from .._data.samples import cut
from .._types import Batch, Params, SampleLoss
from .reverse import each_sample, gradient_by_name, tracked


@dataclass(frozen=True, eq=False)
class Separately:
    """Each sample's gradients by some parameters, at a cost that grows with the number of samples alone.

    Samples are taken out of the batch, and run together where the model can be vectorised, and otherwise one by one.
    Where a batch cannot be taken apart, the whole of it goes back once for each sample.

    Attributes:
        model: The module.
        params: By which.
        ways: Those that still may do, in the order of their cost.
    """

    model: nn.Module
    params: Params
    ways: list[str] = field(default_factory=lambda: ["vectorised", "one by one", "together"])

    def rows(self, outputs: SampleLoss, batch: Batch, z: Tensor, direction: Tensor, *, hooked: bool) -> Params:
        """Gradients of each sample's outputs along a direction.

        Args:
            outputs: `(model, batch) -> (b, ...)`.
            batch: One of the data.
            z: The outputs.
            direction: Of their shape.
            hooked: Whether the user's own hooks run in backward passes: they are to get plain tensors.

        Returns:
            Named tensors with b in front; without parameters that no output depends on.
        """
        run: dict[str, Callable[..., Params | None]] = {"vectorised": self._vectorised, "one by one": self._one_by_one}
        while self.ways[0] != "together":
            found = None if hooked and self.ways[0] == "vectorised" else run[self.ways[0]](outputs, batch, z, direction)
            if found is not None:
                return {name: part for name, part in found.items() if part.any()}
            self.ways.pop(0)
        with recorded():
            values, copies = tracked(outputs, self.model, self.params, batch)
            return each_sample(projected(values, direction.to(values)), copies, vectorised=not hooked)

    @property
    def cost(self) -> str:
        """A clause for the report."""
        how = {
            "vectorised": "one more vectorised run of the whole model in each pass over the data",
            "one by one": "one more run of the whole model for each sample alone in each pass over the data",
            "together": "a backward pass of the whole batch for each of its samples: smaller batches make it cheaper",
        }
        return how[self.ways[0]]

    def _vectorised(self, outputs: SampleLoss, batch: Batch, z: Tensor, direction: Tensor) -> Params | None:
        parts: list[Tensor] = []
        if cut(batch, len(z), lambda part: parts.append(part) or part) is None or not all(
            isinstance(part, Tensor) for part in parts
        ):
            return None
        bound = bind(outputs, self.model)

        def along(params: Params, towards: Tensor, *one: Tensor) -> tuple[Tensor, Tensor]:
            left = iter(one)
            values = bound(params, cut(batch, len(z), lambda _: next(left).unsqueeze(0)))
            return projected(values, towards.to(values).unsqueeze(0)).sum(), values[0]

        try:
            with recorded_twice():
                each = vmap(grad(along, has_aux=True), in_dims=(None, 0, *[0] * len(parts)), randomness="error")
                found, values = each(self.params, direction, *parts)
        except Exception:  # data-dependent branches, operations in place
            return None
        return _believed({name: part.detach() for name, part in found.items()}, values, z)

    def _one_by_one(self, outputs: SampleLoss, batch: Batch, z: Tensor, direction: Tensor) -> Params | None:
        rows: dict[str, list[Tensor]] = {name: [] for name in self.params}
        values: list[Tensor] = []
        for number in range(len(z)):
            one = cut(batch, len(z), lambda part, at=number: part[at : at + 1])
            if one is None:
                return None
            try:
                with recorded():
                    value, copies = tracked(outputs, self.model, self.params, one)
                    found = gradient_by_name(value, direction[number : number + 1], copies)
            except Exception:  # whatever the user's code says of a batch of one
                return None
            values.append(value.detach())
            for name, part in found.items():
                rows[name].append(part)
        return _believed({name: torch.stack(parts) for name, parts in rows.items()}, torch.cat(values), z)


def _believed(rows: Params, values: Shaped[Tensor, "b *out"], z: Shaped[Tensor, "b *out"]) -> Params | None:
    """The rows, if the samples alone gave what the batch gave."""
    if values.shape != z.shape:
        return None
    gap, size = (values - z).norm(), z.norm()
    return rows if bool(gap <= torch.finfo(z.dtype).eps ** 0.5 * size) or not bool(gap.isfinite()) else None
