"""The last stage of clustering by a gradient in closed form: the same training as its recipe, several times faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from crossfluence import Adam, Recipe
from crossfluence.extend import AbstractTraining, Params

from .dec import DEC


@dataclass(frozen=True, eq=False)
class Sharpening(AbstractTraining):
    """Full-batch Adam on the anchored loss of a `DEC` whose encoder has one hidden layer of tanh.

    Only rounding tells its models from those of the recipe: no graph is recorded, and parameters are moved in place.

    Attributes:
        recipe: The same training, step by step; from `sharpening`.
        x: Its data.
        strength: Of the anchor.
    """

    recipe: Recipe  # pyright: ignore[reportIncompatibleVariableOverride]
    x: Float[Tensor, "n f"]
    strength: float

    def retrain(self, weights: Float[Tensor, "r n"]) -> Iterator[nn.Module]:
        """One new module for each row of sample weights, in order."""
        with torch.no_grad():
            for row in weights.to(self.x):
                yield self.fit(row)

    def with_seed(self, seed: int) -> Sharpening:
        """Itself: nothing depends on a seed."""
        return self

    def fit(self, weights: Float[Tensor, " n"], tell: Callable[[int, int], object] | None = None) -> nn.Module:
        """Trains one model.

        Args:
            weights: Of the samples.
            tell: Is called after every step with the steps taken and their number.

        Returns:
            A new module.
        """
        with torch.no_grad():
            return self.recipe.holding(self._fit(weights.to(self.x), tell))

    def _fit(self, weights: Float[Tensor, " n"], tell: Callable[[int, int], object] | None) -> Params:
        start, steps, adam = self.recipe.init, self.recipe.epochs, self.recipe.optimizer
        assert isinstance(start, DEC)
        assert isinstance(adam, Adam)
        names = {name: tensor.detach() for name, tensor in start.named_parameters()}
        anchor = torch.cat([tensor.reshape(-1) for tensor in names.values()])
        flat, slope = anchor.clone(), torch.zeros_like(anchor)
        theta, gradient = _views(flat, names), _views(slope, names)
        mean, square = torch.zeros_like(flat), torch.zeros_like(flat)
        field, (first, second) = Field(self.x, theta), adam.betas
        least = max(adam.eps_root, torch.finfo(flat.dtype).tiny)
        for count in tqdm(range(1, steps + 1), desc="training", unit="step", disable=None, leave=False):
            field(theta, weights, gradient)
            slope.add_(flat, alpha=self.strength).sub_(anchor, alpha=self.strength)
            mean.mul_(first).add_(slope, alpha=1 - first)
            square.mul_(second).addcmul_(slope, slope, value=1 - second)
            rate = adam.lr * self.recipe.schedule((count - 1) / steps) / (1 - first**count)
            root = (square / (1 - second**count)).add_(least).sqrt_().add_(adam.eps)
            flat.addcdiv_(mean, root, value=-rate)
            if tell is not None:
                tell(count, steps)
        return {name: tensor.clone() for name, tensor in theta.items()}


def closed_form(recipe: Recipe, x: Float[Tensor, "n f"], strength: float) -> AbstractTraining:
    """The fast training, where there is one, or the recipe itself.

    Args:
        recipe: From `sharpening`.
        x: Its data.
        strength: Of its anchor.

    Returns:
        What trains the same models.
    """
    start = recipe.init
    fits = isinstance(start, DEC) and isinstance(start.encoder, nn.Sequential) and recipe.hold == 1
    kinds = [type(layer) for layer in start.encoder] if fits else []  # pyright: ignore[reportGeneralTypeIssues]
    return Sharpening(recipe, x, strength) if kinds == [nn.Linear, nn.Tanh, nn.Linear] else recipe


def one_by_one(training: AbstractTraining) -> AbstractTraining:
    """The same training with each model as a piece of its own, so that all that were finished are kept."""
    recipe = training.recipe
    assert isinstance(recipe, Recipe)
    alone = replace(recipe, at_once=1)
    return replace(training, recipe=alone) if isinstance(training, Sharpening) else alone


class Field:
    r"""The gradient of $\frac1n\sum_i w_i\,\mathrm{KL}(p_i\|q_i)$ with the target p held, without the anchor.

    With $s = 1/(1+\|z-c\|^2)$ and $q = s/\sum s$, the derivative by each squared distance is $w\,s\,(p-q)$. Some rows
    at a time, so that most of what is computed of them stays in the processor's cache, and always in the same memory:
    to ask the system for it anew at every step was seen to take a third of the time.

    Args:
        x: All samples.
        like: Parameters of a `DEC` with one hidden layer, for their shapes and dtype.
    """

    def __init__(self, x: Float[Tensor, "n f"], like: Params) -> None:
        (h, d), k = (like["encoder.0.bias"].numel(), like["encoder.2.bias"].numel()), len(like["centres"])
        most = min(len(x), ROWS)
        self._dh, self._dz, self._g, self._column = (x.new_empty(most, width) for width in (h, d, k, 1))
        self._parts = [_Part(rows, *(rows.new_empty(len(rows), width) for width in (h, d, k, k)))
                       for rows in x.split(ROWS)]  # fmt: skip
        self._n = len(x)

    def __call__(self, theta: Params, weights: Float[Tensor, " n"], out: Params) -> None:
        """Computes it.

        Args:
            theta: Parameters.
            weights: Of the samples.
            out: Takes the gradient; same names and shapes.
        """
        w2, c = theta["encoder.2.weight"], theta["centres"]
        owns = weights.split(ROWS)
        for part in self._parts:
            self._assign(theta, part)
        frequency = torch.stack([own @ part.q for own, part in zip(owns, self._parts, strict=True)]).sum(0)
        for name in NAMES:
            out[name].zero_()
        for own, part in zip(owns, self._parts, strict=True):
            dh, dz, g, column = (held[: len(own)] for held in (self._dh, self._dz, self._g, self._column))
            torch.mul(part.q, part.q, out=g).div_(frequency)
            g.div_(torch.sum(g, 1, keepdim=True, out=column))  # the target p
            g.sub_(part.q).mul_(part.s).mul_(own.unsqueeze(1)).mul_(2 / self._n)  # (b, k), twice d/d away
            torch.mul(part.z, torch.sum(g, 1, keepdim=True, out=column), out=dz).addmm_(g, c, alpha=-1)
            out["centres"].add_(c * g.sum(0).unsqueeze(1)).addmm_(g.T, part.z, alpha=-1)
            out["encoder.2.weight"].addmm_(dz.T, part.hidden)
            out["encoder.2.bias"].add_(dz.sum(0))
            torch.mm(dz, w2, out=dh).mul_(part.hidden.square_().neg_().add_(1))
            out["encoder.0.weight"].addmm_(dh.T, part.rows)
            out["encoder.0.bias"].add_(dh.sum(0))

    def _assign(self, theta: Params, part: _Part) -> None:
        """Hidden units, embedding, similarities to the centres, and soft assignments of some rows."""
        w1, b1, w2, b2, c = (theta[name] for name in NAMES)
        square, column = self._dz[: len(part.rows)], self._column[: len(part.rows)]
        torch.addmm(b1, part.rows, w1.T, out=part.hidden).tanh_()
        torch.addmm(b2, part.hidden, w2.T, out=part.z)
        torch.sum(torch.mul(part.z, part.z, out=square), 1, keepdim=True, out=column)
        torch.addmm(c.square().sum(1), part.z, c.T, alpha=-2, out=part.s).add_(column).add_(1).reciprocal_()
        torch.div(part.s, torch.sum(part.s, 1, keepdim=True, out=column), out=part.q)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some rows, and what is computed of them."""

    rows: Float[Tensor, "b f"]
    hidden: Float[Tensor, "b h"]
    z: Float[Tensor, "b d"]
    s: Float[Tensor, "b k"]
    q: Float[Tensor, "b k"]


ROWS = 2_048  # that are computed together
NAMES = ("encoder.0.weight", "encoder.0.bias", "encoder.2.weight", "encoder.2.bias", "centres")


def _views(flat: Tensor, like: Params) -> Params:
    """Parts of one vector, each with the shape of a parameter."""
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(like.items(), parts, strict=True)}
