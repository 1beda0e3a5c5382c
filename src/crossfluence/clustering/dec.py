"""Deep Embedded Clustering: pre-train an autoencoder, start centres with k-means, sharpen the assignments."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossfluence import Adam, FieldLoss, Recipe, cosine
from crossfluence.errors import import_optional
from crossfluence.extend import Params


class DEC(nn.Module):
    """An encoder and k cluster centres in its output space.

    Args:
        encoder: Maps `(b, features)` to `(b, d)`.
        centres: Shape `(k, d)`, where they start.

    Example:
        >>> dec = DEC(nn.Identity(), torch.tensor([[0.0], [4.0]]))
        >>> dec(torch.tensor([[0.0], [2.0]]))[1]
        tensor([0.5000, 0.5000], grad_fn=<SelectBackward0>)

    References:
        Xie, Girshick and Farhadi, "Unsupervised deep embedding for clustering analysis", ICML 2016.
    """

    def __init__(self, encoder: nn.Module, centres: Float[Tensor, "k d"]) -> None:
        super().__init__()
        self.encoder = encoder
        self.centres = nn.Parameter(centres.clone())

    def embed(self, x: Tensor) -> Tensor:
        """Shape `(b, d)`."""
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor:
        """Soft assignments `(b, k)`: Student's t kernel with one degree of freedom, normalised."""
        z, c = self.embed(x), self.centres
        away = z.square().sum(1, keepdim=True) - 2 * z @ c.T + c.square().sum(1)  # (b, k); never forms (b, k, d)
        closeness = 1 / (1 + away)
        return closeness / closeness.sum(1, keepdim=True)


def target(q: Float[Tensor, "b k"], weights: Float[Tensor, " b"]) -> Float[Tensor, "b k"]:
    """The sharpened assignments that training moves towards: squared, over the cluster's weighted frequency.

    Args:
        q: Soft assignments.
        weights: Sample weights; they enter the frequencies.

    Returns:
        Rows that sum to one.

    Example:
        >>> target(torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.ones(2))
        tensor([[0.9143, 0.0857],
                [0.2286, 0.7714]])
    """
    sharp = q.square() / (weights.unsqueeze(1) * q).sum(0)
    return sharp / sharp.sum(1, keepdim=True)


def divergence(p: Float[Tensor, "b k"], q: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """KL(p || q) of each row."""
    return (p * (p.log() - q.log())).sum(1)


def _to_own_target(model: nn.Module, frozen: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    return (weights * divergence(target(frozen(x), weights), model(x))).sum()


moving_target = FieldLoss(_to_own_target)
"""DEC's training loss: the target follows the model, without gradient."""


def anchored_target(start: DEC, strength: float) -> FieldLoss:
    """`moving_target`, plus `strength / 2` times the squared distance of the parameters from where they start.

    Sharpening alone pushes clusters apart without end, and leaves rotations of the embedding undetermined; the anchor
    keeps what pre-training found, and gives every training one well-determined end.

    Args:
        start: The model that sharpening begins with; its parameters are copied.
        strength: In units of mean loss per squared parameter, like l2.

    Returns:
        A loss for `Recipe` and `Risk`; the anchor is not reweighted when samples are left out.

    References:
        Li, Grandvalet and Davoine, "Explicit inductive bias for transfer learning with convolutional networks",
        ICML 2018 (the penalty L2-SP).
    """
    held = {name: tensor.detach().clone() for name, tensor in start.named_parameters()}
    return FieldLoss(_Anchored(held, strength))


@dataclass(frozen=True, eq=False)
class _Anchored:
    """The loss of `anchored_target`; a value, so that it can be sent to another process."""

    anchor: Params
    strength: float

    def __call__(self, model: nn.Module, frozen: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
        parameters = model.named_parameters()
        away = sum(((tensor - self.anchor[name]).square().sum() for name, tensor in parameters), x.new_zeros(()))
        return _to_own_target(model, frozen, x, weights) + len(weights) * self.strength / 2 * away


def fixed_target_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The per-sample loss towards a target that is part of the data: batches `(x, p)`.

    Args:
        model: A `DEC`.
        batch: Inputs and their targets.

    Returns:
        Shape `(b,)`.
    """
    x, p = batch
    return divergence(p, model(x))


def encoder(sizes: Sequence[int], *, activation: Callable[[], nn.Module] = nn.Tanh, seed: int = 0) -> nn.Sequential:
    """Linear layers with activations between them; smooth ones make influence more exact.

    Args:
        sizes: Features, hidden sizes, embedding size.
        activation: Makes the module between two layers.
        seed: Of the initial weights: normal, with variance one over the inputs.

    Returns:
        A float64 module, in which retraining differences are not lost in rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(inputs, outputs, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.normal_(0, inputs**-0.5, generator=generator)
            linear.bias.zero_()
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


def pretrain(
    network: nn.Sequential,
    x: Float[Tensor, "n f"],
    *,
    steps: int,
    lr: float = 1e-2,
    l2: float = 0.0,
    seed: int = 0,
) -> nn.Sequential:
    """Trains the encoder to keep what a mirrored decoder needs to give the input back.

    Args:
        network: From `encoder`; not changed.
        x: Training data.
        steps: Full-batch Adam steps, with a cosine schedule.
        lr: Learning rate.
        l2: As in `Risk`.
        seed: Of the decoder's initial weights.

    Returns:
        The trained encoder.
    """
    linear = [module for module in network if isinstance(module, nn.Linear)]
    sizes = [layer.out_features for layer in reversed(linear)] + [linear[0].in_features]
    both = nn.Sequential(network, encoder(sizes, seed=seed + 1))

    def reconstruction(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - batch).square().sum(1)

    trained = Recipe(both, reconstruction, x, optimizer=Adam(lr), epochs=steps, l2=l2, schedule=cosine).train()
    found = trained.get_submodule("0")
    assert isinstance(found, nn.Sequential)
    return found


def rescaled(network: nn.Sequential, x: Float[Tensor, "n f"]) -> nn.Sequential:
    """The same encoder with its last layer shifted and scaled: mean 0 and mean squared norm d over the data.

    Student's t kernel has a fixed width, so the size of the embedding decides how soft the clusters are.

    Args:
        network: Ends with a linear layer; not changed.
        x: Training data.

    Returns:
        A copy.
    """
    made = copy.deepcopy(network)
    last = made[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        z = made(x)
        factor = (z.shape[1] / (z - z.mean(0)).square().sum(1).mean()).sqrt()
        last.bias.sub_(z.mean(0)).mul_(factor)
        last.weight.mul_(factor)
    return made


def start_centres(network: nn.Module, x: Float[Tensor, "n f"], k: int, *, seed: int = 0) -> Float[Tensor, "k d"]:
    """The centres of k-means in the embedding.

    Args:
        network: The encoder.
        x: Training data.
        k: Number of clusters.
        seed: Of k-means.

    Returns:
        Shape `(k, d)`.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """
    cluster = import_optional("sklearn.cluster", "The k-means start", "clusters")
    with torch.no_grad():
        z = network(x)
    found = cluster.KMeans(k, n_init=20, random_state=seed).fit(z.numpy())
    return torch.from_numpy(found.cluster_centers_).to(z)
