"""The training losses of scikit-learn's estimators, one value per sample, with its own conventions for weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .labels import Rows

Elements = Callable[[Tensor, Tensor], Tensor]
"""Outputs `(b, k)` and labels to losses `(b, k)`, summed over k afterwards."""


def signs(y: Tensor, outputs: int) -> Tensor:
    """Labels as 1 and -1, shape `(b, k)`: of two classes in one column, of more against the rest."""
    held = y.unsqueeze(1) if outputs == 1 else nn.functional.one_hot(y, outputs)
    return (2 * held - 1).double()


def logistic(z: Tensor, y: Tensor) -> Tensor:
    """log(1 + exp z) - y z, for labels 0 and 1 in each column."""
    return nn.functional.softplus(z) - y.reshape(z.shape) * z


def softmax(z: Tensor, y: Tensor) -> Tensor:
    """The negative log probability of the class, in one column."""
    return nn.functional.cross_entropy(z, y, reduction="none").unsqueeze(1)


def half_square(z: Tensor, y: Tensor) -> Tensor:
    """Half the squared error of each target."""
    return (z - y.reshape(z.shape)).square() / 2


def half_square_of_signs(z: Tensor, y: Tensor) -> Tensor:
    """Half the squared error against 1 and -1, as `RidgeClassifier` fits classes."""
    return (z - signs(y, z.shape[1])).square() / 2


def squared_hinge(z: Tensor, y: Tensor) -> Tensor:
    """The squared distance to the right side of the margin, for each class against the rest."""
    return (1 - signs(y, z.shape[1]) * z).relu().square()


@dataclass(frozen=True, eq=False)
class HalfDeviance:
    """Half the Tweedie deviance of a power, less what does not depend on the parameters.

    Attributes:
        power: 0 normal, 1 Poisson, 2 gamma, 3 inverse Gaussian, between 1 and 2 a compound of Poisson and gamma.
        log: Whether outputs are logarithms of the mean.
    """

    power: float
    log: bool = True

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """Shape `(b, k)`."""
        y = y.reshape(z.shape)
        return self._integral(z, 2 - self.power) - y * self._integral(z, 1 - self.power)

    def _integral(self, z: Tensor, order: float) -> Tensor:
        """Mu ** order / order; of order 0 log mu."""
        if order == 0:
            return z if self.log else z.log()
        return ((order * z).exp() if self.log else z**order) / order


@dataclass(frozen=True, eq=False)
class Criterion:
    """The weighted loss of each sample, on the outputs of a model.

    Attributes:
        elements: The loss of each output.
        class_weight: Shape `(classes,)`, or nothing.
        against_rest: Whether a class weight multiplies the samples of its class in its own column alone, as liblinear
            does for more than two classes.
    """

    elements: Elements
    class_weight: Tensor | None = None
    against_rest: bool = False

    def __call__(self, z: Tensor, batch: Rows) -> Tensor:
        """Shape `(b,)`."""
        return self.weighed(z, batch, self.class_weight)

    def weighed(self, z: Tensor, batch: Rows, class_weight: Tensor | None) -> Tensor:
        """As a call, with other class weights."""
        _, y, weights = batch
        losses = self.elements(z, y)
        if class_weight is not None and self.against_rest:
            losses = losses * torch.where(nn.functional.one_hot(y, z.shape[1]).bool(), class_weight, 1.0)
        elif class_weight is not None:
            weights = weights * class_weight[y]
        return weights * losses.sum(1)


@dataclass(frozen=True, eq=False)
class Penalised:
    """A criterion with its l2 term in each sample's loss: of estimators that divide by the sum of sample weights.

    Leaving out a sample then leaves the ratio of losses to penalty as it is, as fitting again does.

    Attributes:
        criterion: On the outputs.
        alpha: Of half the squared norm of the weights.
    """

    criterion: Criterion
    alpha: float

    def __call__(self, model: nn.Linear, batch: Rows) -> Tensor:
        """Shape `(b,)`."""
        return self.criterion(model(batch[0]), batch) + batch[2] * self.alpha / 2 * model.weight.square().sum()


@dataclass(frozen=True, eq=False)
class Balanced:
    """A criterion whose classes all have the same total weight, whatever samples are there: it couples them.

    Attributes:
        criterion: With the classes' own weights left open.
        classes: How many.
        counted: Whether classes are balanced by their number of samples, not by their sample weights.
    """

    criterion: Criterion
    classes: int
    counted: bool

    def __call__(self, model: nn.Module, batch: Rows, weights: Tensor) -> Tensor:
        """The weighted sum over all samples, which must be in one batch."""
        x, y, own = batch
        present = weights if self.counted else weights * own
        totals = present.new_zeros(self.classes).index_add(0, y, present)
        return (weights * self.criterion.weighed(model(x), batch, present.sum() / (self.classes * totals))).sum()


def outputs(model: nn.Module, batch: Rows) -> Tensor:
    """Outputs of the model on a batch, shape `(b, k)`."""
    return model(batch[0])
