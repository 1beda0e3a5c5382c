"""Derivatives along a few directions, layer by layer, where a fit has looked at the layers already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import isolated
from .._risk.base import AbstractRisk
from .._risk.risk import Risk
from ..errors import NonFiniteError
from .factors import layers_of_risk
from .gradients import AbstractGradients, OuterProducts
from .layers import Layers
from .streamed import StreamedPass, gradient_of_sums, streams

KEY = "streams"


@dataclass(frozen=True, eq=False)
class Directions:
    """A few directions in one block.

    Attributes:
        directions: Shape `(m, g, r, c)`.
    """

    directions: Shaped[Tensor, "m g r c"]

    def flat(self, rounded: object = None) -> Shaped[Tensor, "m d"]:
        """In rows, in their own precision."""
        return self.directions.flatten(1)

    def scores_with(self, samples: AbstractGradients) -> Shaped[Tensor, "b m"]:
        """Inner products with samples' gradients; single outer products are not written out."""
        if not isinstance(samples, OuterProducts) or not samples.single:
            return samples.along(self.directions)
        left, right = samples.left[:, :, 0], samples.right[:, :, 0]  # (g, b, r), (g, b, c)
        return ((left @ self.directions) * right).sum((1, 3)).T  # (m, g, b, c)


def known_layers(risk: AbstractRisk) -> Layers | None:
    """Layers that explain all of a risk's gradient, where a fit has looked at them.

    Args:
        risk: The trained model.

    Returns:
        Nothing where some parameters are outside of layers, or a pass with constants for parameters is refused.
    """
    if not isinstance(risk, Risk) or not risk.kind.per_sample or "layers" not in risk.remembered:
        return None
    if KEY not in risk.remembered:
        layers, batch = layers_of_risk(risk), next(iter(risk.data))
        whole = not layers.outside and sum(slot.size for slot in layers.slots) == risk.p
        b = risk.reading.sizes[0]
        risk.remembered[KEY] = whole and streams(layers, risk.theta, risk.kind.losses, batch, b, risk.precision)
    return layers_of_risk(risk) if risk.remembered[KEY] else None


def derivatives_by_hooks(risk: AbstractRisk, directions: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "n m"] | None:
    r"""As `risk.derivatives_along`, in one forward and one backward pass of the samples for all directions.

    Forward mode takes one and a half for one direction, and one for each further one; besides, the risk's gradient
    takes a pass of its own, and comes with this one.

    Args:
        risk: The trained model.
        directions: Vectors in parameter space, one in each row.

    Returns:
        Shape `(n, m)`; nothing where hooks are not known to explain the gradient.

    Raises:
        NonFiniteError: If a batch gives a NaN, with its number.
    """
    layers = known_layers(risk)
    if layers is None:
        return None
    assert isinstance(risk, Risk)
    named = risk.layout.split(directions)
    asked = {slot: Directions(slot.gather(named)) for slot in layers.slots}
    whole, summed = StreamedPass(layers, [asked]), "gradient" not in vars(risk)

    def rows() -> Iterator[tuple[int, Tensor]]:
        for index, batch, weights in risk.passes(risk.part):
            whole.weights = weights if summed else None
            (parts,) = whole.scores(risk.kind.losses, batch, len(weights))
            row = sum(parts, weights.new_zeros(len(weights), len(directions))) / risk.n
            if not row.isfinite().all():
                raise NonFiniteError(risk.nan_message(index, batch))
            yield index, row

    with isolated():
        found = risk.in_rows("scoring samples", rows, len(directions))
        if summed:
            sums = risk.ranks.added("taking the gradient", lambda: whole.sums, risk.weights.device)
            gradient = risk.layout.flatten(gradient_of_sums(layers, sums, risk.theta)).to(risk.weights) / risk.n
            vars(risk)["gradient"] = gradient + risk.decay * risk.layout.flatten(risk.theta)
    return found
