"""A clustering trained until its end is well determined, kept in a folder, and trained again without some samples."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from crossfluence import GMRES, Adam, Auto, Recipe, Risk, cosine, load_inverse
from crossfluence.extend import (
    AbstractInverse,
    AbstractRisk,
    AbstractSolver,
    AbstractTraining,
    Cost,
    Id,
    fitting,
    read_tensors,
    write_tensors,
)

from .dec import DEC, anchored_target, encoder, pretrain, rescaled, start_centres
from .kept import kept_model, model_of
from .processes import one_thread
from .settings import ClusterSettings
from .sharpen import Sharpening, closed_form

KEPT = 0.35  # share of the anchor that the smallest eigenvalue must keep; chosen on digits and two small tables
STRONGEST_ANCHOR = 2.0  # by then nothing sharpens any more
FORMAT, CLUSTERING, INVERSE = "crossfluence.settled/1", "clustering.safetensors", "inverse.safetensors"


def pretrained(x: Float[Tensor, "n f"], settings: ClusterSettings) -> DEC:
    """Deep Embedded Clustering before its last stage: a pre-trained encoder and k-means centres.

    Args:
        x: Features of comparable size.
        settings: Sizes and lengths.

    Returns:
        Where sharpening starts.
    """
    fresh = encoder([x.shape[1], settings.hidden, settings.embedding], seed=settings.seed)
    trained = pretrain(fresh, x, steps=settings.pretraining, l2=settings.pretraining_l2, seed=settings.seed)
    network = rescaled(trained, x)
    return DEC(network, start_centres(network, x, settings.k, seed=settings.seed))


def sharpening(start: DEC, x: Float[Tensor, "n f"], settings: ClusterSettings) -> Recipe:
    """The last stage, which is trained and retrained.

    Args:
        start: From `pretrained`.
        x: The same features.
        settings: Anchor and lengths.

    Returns:
        A recipe.
    """
    loss = anchored_target(start, settings.anchor)
    rate = Adam(settings.lr)
    return Recipe(start, loss, x, optimizer=rate, epochs=settings.steps, schedule=cosine, hold=settings.hold)


@dataclass(frozen=True)
class Known(AbstractSolver):
    """An inverse that is known already, as a preconditioner: leaving out a few samples changes the curvature little.

    Attributes:
        inverse: Of the curvature with all samples.
    """

    inverse: AbstractInverse = field(repr=False)

    def cost(self, risk: AbstractRisk) -> Cost:
        """Nothing."""
        return Cost()

    def _invert(self, risk: AbstractRisk) -> AbstractInverse:
        return self.inverse


@dataclass(frozen=True, eq=False)
class Settled:
    """A clustering whose end is well determined.

    Attributes:
        settings: With the anchor that it took.
        recipe: How it was trained.
        model: What came out.
        risk: What was minimised.
        inverse: Of the curvature there.
        seconds: That it took.
    """

    settings: ClusterSettings
    recipe: AbstractTraining
    model: DEC
    risk: Risk
    inverse: AbstractInverse
    seconds: float

    @property
    def exact(self) -> bool:
        """True if the curvature was small enough to be written out."""
        return self.inverse.smallest_eigenvalue is not None

    @property
    def solver(self) -> AbstractSolver:
        """A solver for the curvature without a few samples: steps that begin with that of all, where it is known."""
        return GMRES(rtol=1e-9, preconditioner=Known(self.inverse)) if self.exact else Auto()

    @property
    def x(self) -> Float[Tensor, "n f"]:
        """The features that it was trained on."""
        assert isinstance(self.recipe.recipe, Recipe)
        data = self.recipe.recipe.data
        assert isinstance(data, Tensor)
        return data

    def save(self, folder: Path) -> None:
        """Keeps the clustering, so that `Settled.load` brings it back without training.

        Args:
            folder: Made if it is not there; its parent must be.

        Raises:
            ResultFileError: If the folder cannot be written.
        """
        assert isinstance(self.recipe.recipe, Recipe)
        start = self.recipe.recipe.init
        tensors = {f"start.{name}": tensor for name, tensor in start.named_parameters()}
        tensors |= {f"model.{name}": tensor for name, tensor in self.model.named_parameters()}
        texts = {"settings": json.dumps(asdict(self.settings)), "ids": json.dumps(self.risk.labels)}
        folder.mkdir(exist_ok=True)
        if self.exact:
            self.inverse.save(folder / INVERSE)
        write_tensors(folder / CLUSTERING, FORMAT, tensors | {"x": self.x}, seconds=repr(self.seconds), **texts)

    @classmethod
    def load(cls, folder: Path) -> Settled:
        """Reads a clustering that `save` kept.

        Args:
            folder: Where it is.

        Returns:
            The same clustering, to the last bit; an inverse that no file can hold is made again.

        Raises:
            ResultFileError: If the folder holds none, or a damaged one.
        """
        file = read_tensors(folder / CLUSTERING, FORMAT)
        with fitting(folder / CLUSTERING):
            kept = json.loads(file.texts["settings"])
            settings = ClusterSettings(**(kept | {"sizes": tuple(kept["sizes"])}))
            x, ids = file.tensors["x"], tuple(json.loads(file.texts["ids"]))
            start, model = (model_of(_beginning_with(part, file.tensors)) for part in ("start.", "model."))
            seconds = float(file.texts["seconds"])
        recipe = sharpening(start, x, settings)
        risk = recipe.risk(model, ids=ids)
        known = (folder / INVERSE).exists()
        inverse = load_inverse(folder / INVERSE) if known else Auto().invert(risk)
        return cls(settings, closed_form(recipe, x, settings.anchor), model, risk, inverse, seconds)

    def trained_again(self, gone: Collection[int], tell: Callable[[int, int], object] | None = None) -> DEC:
        """Trains again without some samples, as `leave_out` does.

        Args:
            gone: Their row numbers.
            tell: Is called after every step with the steps taken and their number; what it raises ends the training.

        Returns:
            A new model.
        """
        weights = torch.ones(self.risk.n, dtype=torch.float64)
        weights[list(gone)] = 0
        if isinstance(self.recipe, Sharpening):
            model = self.recipe.fit(weights, tell)
        else:
            model = next(self.recipe.retrain(weights[None]))
        assert isinstance(model, DEC)
        return model


@one_thread()
def settled(
    x: Float[Tensor, "n f"], ids: Sequence[Id], settings: ClusterSettings, *, store: Path | None = None
) -> Settled:
    """Trains, and doubles the anchor until the end is well determined.

    Sharpening feeds on itself: its curvature is negative along some directions, and only the anchor holds it. Where
    that takes nearly all of the anchor, a small change of the data tips the clustering over, and neither influence nor
    one retraining says much about the next. So the smallest eigenvalue of the curvature must keep 35 % of the anchor.
    This needs no retraining. Models too large for a dense curvature are taken as they are.

    Args:
        x: Features of comparable size.
        ids: n labels.
        settings: With the anchor to begin with.
        store: Keeps what is trained, so that a stopped run goes on.

    Returns:
        The trained clustering.
    """
    began = time.perf_counter()
    beginning = replace(settings, anchor=0.0, check=0, group=0, draws=0, sizes=())  # the rest does not matter to it
    start = kept_model(store, (x, beginning), lambda: pretrained(x, settings))
    while True:
        recipe = sharpening(start, x, settings)
        training = closed_form(recipe, x, settings.anchor)
        model = kept_model(store, recipe.content, partial(_trained, training))
        risk = recipe.risk(model, ids=ids)
        inverse = Auto().invert(risk)
        smallest = inverse.smallest_eigenvalue
        if smallest is None or smallest >= KEPT * settings.anchor or settings.anchor >= STRONGEST_ANCHOR:
            return Settled(settings, training, model, risk, inverse, time.perf_counter() - began)
        settings = replace(settings, anchor=2 * settings.anchor)


def _trained(training: AbstractTraining) -> DEC:
    model = next(training.retrain(torch.ones(1, training.n)))
    assert isinstance(model, DEC)
    return model


def _beginning_with(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
