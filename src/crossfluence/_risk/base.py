"""The interface of a trained model that every verb and solver works on."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from .._autodiff.functional import isolated
from .._autodiff.params import Layout, fingerprint, largest_eps
from .._autodiff.trained import Decay
from .._results.ids import row_of
from .._types import Batch, Id, Params
from ..errors import StaleError, UnsupportedError

Self = TypeVar("Self", bound="AbstractRisk")
RENAMED = {
    "determined": "project",
    "field_at": "field",
    "influences": "sample_gradients",
    "sensitivity": "derivatives_along",
    "sensitivity_of": "derivatives_along_of",
    "value_at": "value",
}  # until 0.3


class AbstractRisk(ABC):
    """The risk that training minimised, and where it ended: `Risk` for any loss, others for losses with a structure.

    Attributes:
        model: The trained module; it is never changed.
        l2: Coefficient of half the squared norm of the parameters, or one for each glob over their names.
        theta: The trained parameters, sharing memory with the model.
        layout: Names and shapes of the trained parameters.
        weights: Sample weights (n,); ones, but for `without` and `only`.
        rows: Row number of each id.
        fingerprint: Content hash of the trained model.
        modes: Training mode of each module.
        symmetry: The directions that `project` takes out, as a noun phrase.
    """

    symmetry: ClassVar[str] = ""
    model: nn.Module
    l2: Decay
    theta: Params
    layout: Layout
    weights: Tensor
    rows: dict[Id, int]
    fingerprint: str
    modes: tuple[bool, ...]

    @property
    def n(self) -> int:
        """Number of training samples."""
        return len(self.weights)

    @property
    def p(self) -> int:
        """Number of trained parameters."""
        return self.layout.size

    @property
    def decay(self) -> Tensor | float:
        """The coefficient of half the squared norm: one number, or one for each parameter, shape `(p,)`."""
        assert not isinstance(self.l2, Mapping)
        return self.l2

    @property
    def precision(self) -> float:
        """The relative rounding error of the loss as it is really computed."""
        return largest_eps(self.theta)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for every report."""
        return ()

    @property
    def coverage(self) -> float:
        """Share of the model's parameters that count as trained."""
        return self.p / sum(tensor.numel() for tensor in self.model.parameters())

    @property
    def labels(self) -> tuple[Id, ...]:
        """The n ids."""
        return tuple(self.rows)

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """True if the training field is a gradient, so that its Jacobian is symmetric."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """All that decides the curvature, as `signed` writes it: a content hash, or the value itself, for each part."""

    @abstractmethod
    def jacobian_product(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        r"""Products of $J = \partial g/\partial\theta$ with each row, l2 term included."""

    def jacobian_transpose_product(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Products of the transpose of J with each row; those of J itself, if g is a gradient."""
        assert self.symmetric, f"{type(self).__name__} has to say what the transpose of its Jacobian is"
        return self.jacobian_product(vectors)

    def gauss_newton_product(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Products of the generalised Gauss-Newton matrix with each row, l2 term included.

        Args:
            vectors: One in each row.

        Raises:
            UnsupportedError: If the structure of the risk gives none.
        """
        raise UnsupportedError(f"{type(self).__name__} has no product with GaussNewton(); use curvature=Hessian().")

    def project(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Directions without the part along which the loss never changes, whatever the data; by default all is left."""
        return vectors

    @property
    def fine(self: Self) -> Self:
        """The same risk in double precision, where that is cheap and the loss allows it; else itself."""
        return self

    @cached_property
    def remembered(self) -> dict[Hashable, Any]:
        """Results that several solvers ask for, by what was asked; forgotten by `without` and `only`."""
        return {}

    @cached_property
    def gradient(self) -> Shaped[Tensor, " p"]:
        """The field g at the trained parameters, in units of mean loss per parameter; near zero after training."""
        with isolated():
            return self.field(self.theta)

    @abstractmethod
    def field(self, theta: Params) -> Shaped[Tensor, " p"]:
        """The field g at any parameters, l2 term included."""

    def value(self, theta: Params) -> float | None:
        """The risk F at any parameters, where its structure gives it cheaply."""
        return None

    @abstractmethod
    def derivatives_along(self, directions: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "n m"]:
        """Derivatives of the field along each direction by each sample's weight."""

    @abstractmethod
    def derivatives_along_of(
        self, candidates: Iterable[Batch], directions: Shaped[Tensor, "m p"]
    ) -> Shaped[Tensor, "c m"]:
        """As `derivatives_along`, for samples that were not trained on."""

    @abstractmethod
    def sample_gradients(self) -> Iterator[Shaped[Tensor, "b p"]]:
        """The rows dg/dw of every sample, some at a time."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The new name of a method that was renamed."""
            if name not in RENAMED:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warnings.warn(f"{name} is {RENAMED[name]} now.", DeprecationWarning, stacklevel=2)
            return getattr(self, RENAMED[name])

    def check(self) -> None:
        """Makes sure that the model is the one the risk was made for.

        Raises:
            StaleError: If a parameter or a buffer changed.
        """
        now = fingerprint(self.model)
        if now != self.fingerprint:
            raise StaleError(
                f"The model changed after the risk was made (content hash {self.fingerprint[:8]}, now {now[:8]}). "
                f"Make a new Risk from the model as it is, or train a copy: copy.deepcopy(model)."
            )
        if training_modes(self.model) != self.modes:
            raise StaleError(
                "A module was switched between training and evaluation mode after the risk was made. "
                "Call model.eval(), or put it back as it was; then go on."
            )

    def without(self: Self, ids: Iterable[Id]) -> Self:
        """The same point and the same n, with the weights of some samples set to zero.

        Args:
            ids: Samples to leave out.

        Returns:
            A risk whose field no longer vanishes at the trained parameters.

        Raises:
            IdError: If an id is unknown.
        """
        return self._reweighted(self.weights.index_fill(0, self._places(ids), 0.0))

    def only(self: Self, ids: Iterable[Id]) -> Self:
        """The same point and the same n, with the weights of all other samples set to zero.

        Args:
            ids: Samples to keep.

        Returns:
            A risk made of these samples' losses.

        Raises:
            IdError: If an id is unknown.
        """
        return self._reweighted(self.weights.new_zeros(self.n).index_fill(0, self._places(ids), 1.0))

    def _places(self, ids: Iterable[Id]) -> Tensor:
        """Row numbers, on the device of the weights."""
        rows = [row_of(label, self.rows) for label in ids]
        return torch.tensor(rows, dtype=torch.long).to(self.weights.device)

    def _reweighted(self: Self, weights: Tensor) -> Self:
        return self._changed(weights=weights)

    def _changed(self: Self, **fields: Any) -> Self:
        """A copy with some fields changed and nothing remembered."""
        other = copy.copy(self)
        derived = {name for kind in type(self).__mro__ for name, made in vars(kind).items() if _is_cached(made)}
        for name in derived:
            vars(other).pop(name, None)
        for name, value in fields.items():
            object.__setattr__(other, name, value)
        return other


def _is_cached(made: Any) -> bool:
    return isinstance(made, cached_property)


def signed(**parts: str | float) -> str:
    """A signature that can be taken apart again.

    Args:
        parts: Content hashes and plain numbers by name.

    Returns:
        `name=value` for each, with spaces between.
    """
    return " ".join(f"{name}={value}" for name, value in parts.items())


def differing(before: str, now: str) -> list[str]:
    """Differences between two signatures, as words for an error.

    Args:
        before: From `signed`.
        now: From `signed`.

    Returns:
        Such as `model (1a2b3c4d, now 5e6f7a8b)`; empty if they are equal.
    """
    old, new = (dict(part.split("=") for part in signature.split()) for signature in (before, now))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name} ({old.get(name, 'none')[:8]}, now {new.get(name, 'none')[:8]})" for name in names]


def training_modes(model: nn.Module) -> tuple[bool, ...]:
    """Training mode of each module."""
    return tuple(module.training for module in model.modules())


def of_another_version(changed: Sequence[str]) -> str:
    """A sentence for signatures of which no hash agrees: versions of this library may hash equal content otherwise.

    Args:
        changed: The parts that differ, as `differing` returns them.

    Returns:
        The sentence, after a space; empty if some hash agrees.
    """
    agree = {"model", "data", "loss", "weights"} - {part.partition(" ")[0] for part in changed}
    return "" if agree else " No hash agrees: it may be of an earlier version, with other hashes."
