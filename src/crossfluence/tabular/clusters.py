"""k-means and Gaussian mixtures as modules, with their losses, and questions about clusters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ObjectiveError, UnsupportedError
from .labels import Rows


class Centres(nn.Module):
    """The centres of k-means.

    Attributes:
        centres: Shape `(k, f)`.
    """

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.centres = nn.Parameter(centres)

    def forward(self, x: Tensor) -> Tensor:
        """Minus the squared distance to each centre, `(b, k)`."""
        return -(x.unsqueeze(1) - self.centres).square().sum(2)


class Mixture(nn.Module):
    """A Gaussian mixture in the parameters that determine it: no direction leaves its density unchanged.

    Attributes:
        logits: Log ratio of each weight to the first, `(k - 1,)`.
        means: Shape `(k, f)`.
        roots: Of the precisions, as in `precisions_cholesky_`; of full and tied ones the upper triangles.
    """

    upper: Tensor

    def __init__(self, weights: Tensor, means: Tensor, roots: Tensor, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.logits = nn.Parameter(weights[1:].log() - weights[0].log())
        self.means = nn.Parameter(means)
        self.register_buffer("upper", torch.triu_indices(means.shape[1], means.shape[1]))
        held = roots[..., self.upper[0], self.upper[1]] if kind in {"full", "tied"} else roots
        self.roots = nn.Parameter(held)

    def triangles(self) -> Tensor:
        """The roots of the precisions as matrices, `(k, f, f)`."""
        k, f = self.means.shape
        if self.kind == "spherical":
            return self.roots[:, None, None] * torch.eye(f, dtype=self.means.dtype, device=self.means.device)
        if self.kind == "diag":
            return torch.diag_embed(self.roots)
        place = self.upper[0] * f + self.upper[1]
        flat = self.roots.new_zeros(*self.roots.shape[:-1], f * f)
        return flat.index_copy(-1, place, self.roots).reshape(*self.roots.shape[:-1], f, f).expand(k, f, f)

    def forward(self, x: Tensor) -> Tensor:
        """Log density of a sample and its component together, `(b, k)`."""
        f = self.means.shape[1]
        triangles = self.triangles()
        centred = torch.einsum("bkf,kfg->bkg", x.unsqueeze(1) - self.means, triangles)
        size = torch.diagonal(triangles, dim1=1, dim2=2).log().sum(1)
        constant = f * torch.log(torch.tensor(2 * torch.pi, dtype=x.dtype)) / 2
        weights = torch.cat([self.logits.new_zeros(1), self.logits]).log_softmax(0)
        return weights + size - constant - centred.square().sum(2) / 2

    def precision_traces(self) -> Tensor:
        """The trace of each component's precision, `(k,)`."""
        return self.triangles().square().sum((1, 2))


def half_inertia(model: nn.Module, batch: Rows) -> Tensor:
    """Half the squared distance to the nearest centre, `(b,)`."""
    return -batch[2] * model(batch[0]).amax(1) / 2


def negative_log_density(model: nn.Module, batch: Rows) -> Tensor:
    """Of each sample under the mixture, `(b,)`."""
    return -model(batch[0]).logsumexp(1)


def regularised_density(reg_covar: float) -> Callable[[Any, Any, Rows, Tensor], Tensor]:
    r"""The field that EM follows where it adds `reg_covar` to the covariances in every step.

    Its fixed point is no minimum of the likelihood: $\Sigma_k = S_k + \rho I$ is where the gradient of
    $-\log p(x_i) + \frac{\rho}{2}\sum_k r_{ik}\,\mathrm{tr}\,\Sigma_k^{-1}$ vanishes with $r$, the
    responsibilities, held.

    Args:
        reg_covar: $\rho$.

    Returns:
        A function for `FieldLoss`.
    """

    def field(model: Mixture, frozen: Mixture, batch: Rows, weights: Tensor) -> Tensor:
        held = frozen(batch[0]).softmax(1) @ model.precision_traces()
        return (weights * (negative_log_density(model, batch) + reg_covar / 2 * held)).sum()

    return field


def centre(cluster: int, column: int) -> Callable[[nn.Module], Tensor]:
    """One coordinate of a cluster's centre.

    Args:
        cluster: Its number.
        column: Of the features, as the clustering got them.

    Returns:
        An objective, in units of the feature.

    Raises:
        ObjectiveError: When asked, if there is no such cluster or column.

    Example:
        >>> centre(1, 0)(Centres(torch.tensor([[0.0], [4.0]]))).item()
        4.0
    """

    def question(model: nn.Module) -> Tensor:
        held = model.centres if isinstance(model, Centres) else getattr(model, "means", None)
        if not isinstance(held, Tensor):
            raise UnsupportedError(
                f"Got a {type(model).__name__}; centre needs the model of a KMeans or GaussianMixture."
            )
        _refuse_number(cluster, held.shape[0], "cluster")
        _refuse_number(column, held.shape[1], "column")
        return held[cluster, column]

    return question


def margin(x: Tensor, first: int, second: int) -> Callable[[nn.Module], Tensor]:
    """Margin of a sample between two clusters.

    Args:
        x: One sample `(f,)`, as the clustering got it; see `inputs_of`.
        first: The cluster whose side is positive.
        second: The other.

    Returns:
        An objective: for k-means a difference of squared distances, for a mixture a log ratio in nats.

    Raises:
        ObjectiveError: When asked, if there is no such cluster.

    Example:
        >>> margin(torch.tensor([1.0]), 0, 1)(Centres(torch.tensor([[0.0], [4.0]]))).item()
        8.0
    """

    def question(model: nn.Module) -> Tensor:
        found = model(x.unsqueeze(0))[0]
        for cluster in (first, second):
            _refuse_number(cluster, len(found), "cluster")
        return found[first] - found[second]

    return question


def log_responsibility(x: Tensor, cluster: int) -> Callable[[nn.Module], Tensor]:
    """The log of the probability that a sample belongs to a component of a mixture.

    Args:
        x: One sample `(f,)`, as the mixture got it; see `inputs_of`.
        cluster: The component.

    Returns:
        An objective, in nats.

    Raises:
        UnsupportedError: When asked, if the model has no responsibilities: k-means assigns each sample wholly.
        ObjectiveError: When asked, if there is no such component.

    Example:
        >>> two = Mixture(torch.ones(2) / 2, torch.tensor([[0.0], [4.0]]), torch.ones(2), "spherical")
        >>> round(log_responsibility(torch.tensor([2.0]), 0)(two).exp().item(), 3)
        0.5
    """

    def question(model: nn.Module) -> Tensor:
        if not isinstance(model, Mixture):
            raise UnsupportedError(
                f"Got a {type(model).__name__}; log_responsibility needs the model of a GaussianMixture. "
                f"Of k-means, type tabular.margin(x, first, second)."
            )
        found = model(x.unsqueeze(0))[0].log_softmax(0)
        _refuse_number(cluster, len(found), "cluster")
        return found[cluster]

    return question


def _refuse_number(number: int, count: int, name: str) -> None:
    if not 0 <= number < count:
        raise ObjectiveError(f"There is no {name} {number}; there are {count}, from 0 to {count - 1}.")
