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
        first, second = adam.betas
        least = max(adam.eps_root, torch.finfo(flat.dtype).tiny)
        for count in tqdm(range(1, steps + 1), desc="training", unit="step", disable=None, leave=False):
            field(theta, self.x, weights, gradient)
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


def field(theta: Params, x: Float[Tensor, "n f"], weights: Float[Tensor, " n"], out: Params) -> None:
    r"""The gradient of $\frac1n\sum_i w_i\,\mathrm{KL}(p_i\|q_i)$ with the target p held, without the anchor.

    With $s = 1/(1+\|z-c\|^2)$ and $q = s/\sum s$, the derivative by each squared distance is $w\,s\,(p-q)$. Some rows
    at a time, so that most of what is computed of them stays in the processor's cache.

    Args:
        theta: Parameters of a `DEC` with one hidden layer.
        x: All samples.
        weights: Of the samples.
        out: Takes the gradient; same names and shapes.
    """
    w2, c = theta["encoder.2.weight"], theta["centres"]
    parts = list(zip(x.split(ROWS), weights.split(ROWS), strict=True))
    known = [_assigned(theta, rows) for rows, _ in parts]
    frequency = torch.stack([own @ q for (_, own), (*_, q) in zip(parts, known, strict=True)]).sum(0)
    for name in NAMES:
        out[name].zero_()
    for (rows, own), (hidden, z, s, q) in zip(parts, known, strict=True):
        sharp = q.square().div_(frequency)
        p = sharp.div_(sharp.sum(1, keepdim=True))
        g = p.sub_(q).mul_(s).mul_(own.unsqueeze(1)).mul_(2 / len(x))  # (b, k), twice d/d away
        dz = torch.addmm(z * g.sum(1, keepdim=True), g, c, alpha=-1)
        dh = (dz @ w2).mul_(hidden.square().neg_().add_(1))
        out["centres"].add_(c * g.sum(0).unsqueeze(1)).addmm_(g.T, z, alpha=-1)
        out["encoder.2.weight"].addmm_(dz.T, hidden)
        out["encoder.2.bias"].add_(dz.sum(0))
        out["encoder.0.weight"].addmm_(dh.T, rows)
        out["encoder.0.bias"].add_(dh.sum(0))


def _assigned(theta: Params, rows: Float[Tensor, "b f"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden units, embedding, similarities to the centres, and soft assignments of some rows."""
    w1, b1, w2, b2, c = (theta[name] for name in NAMES)
    hidden = torch.addmm(b1, rows, w1.T).tanh_()  # (b, h)
    z = torch.addmm(b2, hidden, w2.T)  # (b, d)
    away = torch.addmm(c.square().sum(1), z, c.T, alpha=-2).add_(z.square().sum(1, keepdim=True))
    s = away.add_(1).reciprocal_()
    return hidden, z, s, s / s.sum(1, keepdim=True)


ROWS = 2_048  # that are computed together
NAMES = ("encoder.0.weight", "encoder.0.bias", "encoder.2.weight", "encoder.2.bias", "centres")


def _views(flat: Tensor, like: Params) -> Params:
    """Parts of one vector, each with the shape of a parameter."""
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(like.items(), parts, strict=True)}
