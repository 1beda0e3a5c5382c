"""The two nouns of this folder: a solver is a setting, an inverse is what it makes of a risk."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import isolated
from .._curvature.base import AbstractCurvature
from .._require import described, require, require_risk
from .._risk.base import AbstractRisk, differing, of_another_version
from .._storage.archive import read_archive, write_archive
from .._storage.partial import FORMAT, READABLE, Checkpoint, PartialFit
from .._types import Batch, Objective
from ..errors import ResultFileError, StaleError, UnsupportedError
from .cost import Cost


@dataclass(frozen=True, eq=False)
class Solution:
    """The result of a solve.

    Attributes:
        vectors: Shape `(m, p)`, the solutions.
        steps: Iterations for each right-hand side; empty for direct solvers.
        residuals: `‖J'u - a‖ / ‖a‖` for each right-hand side, in units of the parameters in which the diagonal of the
            curvature is about one.
        errors: For each right-hand side, how far the scores may be off because the solve ended where it did, as a
            share of their size: the estimated error of the solution in the norm of the curvature.
        notes: Sentences for the report.
        solver: `repr` of what did the work, where that is not the solver asked for.
        agreements: Of two halves of what the curvature was sampled with, for some of the right-hand sides: correlation
            and slope.
    """

    vectors: Shaped[Tensor, "m p"]
    steps: tuple[int, ...] = ()
    residuals: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    solver: str = ""
    agreements: tuple[tuple[float, float], ...] = ()


Points: TypeAlias = tuple[tuple[AbstractRisk, Tensor], ...]
"""Risks with directions, one in each row: the parameters where samples are differentiated."""


@dataclass(frozen=True, eq=False)
class QueryScores:
    r"""Scores of one chunk of queries.

    Attributes:
        names: m labels.
        values: The objectives at the trained parameters, shape `(m,)`.
        derivatives: Of the field along each solution by each sample's weight; the scores are their negative.
        drift: How far one more Newton step would move each objective, shape `(m,)`.
        solution: Of the linear solves, if there were any.
        notes: Sentences for the report.
        energy: Every solution times its query's gradient, $u^\top (J + \lambda) u$, shape `(m,)`; where it is known.
        gradient_norm: Of the risk, where it came with the scores and the risk does not keep the gradient itself.
    """

    names: tuple[str, ...]
    values: Tensor
    derivatives: Shaped[Tensor, "n m"]
    drift: Shaped[Tensor, " m"]
    solution: Solution | None = None
    notes: tuple[str, ...] = ()
    energy: Shaped[Tensor, " m"] | None = None
    gradient_norm: float | None = None


class AbstractPairwise(ABC):
    """All pairs of queries and samples, scored without a solution for each query."""

    @abstractmethod
    def scores(self, candidates: Iterable[Batch] | None) -> Iterator[QueryScores]:
        """One chunk of queries after another, against the training data or samples that were not trained on."""


class AbstractInverse(ABC):
    """The damped inverse of a curvature at one trained model, reusable for any number of questions.

    Attributes:
        solver: `repr` of what made it.
        signature: Of the risk it belongs to.
        damping: The absolute damping that was added.
        smallest_eigenvalue: Of the curvature before damping, where known.
        notes: Sentences for the report.
        approximation: What is left out whatever the damping, as a clause that says why sizes may be off; empty where
            solves are with the curvature itself.
    """

    approximation: ClassVar[str] = ""
    solver: str
    signature: str
    damping: float
    smallest_eigenvalue: float | None
    notes: tuple[str, ...]
    at_minimum: ClassVar[bool] = True
    """Whether its answers are about a minimum, so that one more Newton step tells how far training was from it."""
    in_double: ClassVar[bool] = False
    """Whether it works on the risk in double precision, where the problem is small."""

    def solve(self, vectors: Shaped[Tensor, "m p"], *, transposed: bool = True) -> Solution:
        """Solves with the damped transpose of J, or with J itself.

        Args:
            vectors: Right-hand sides, one in each row.
            transposed: Whether to solve with the transpose, as influence does.

        Returns:
            One solution in each row.
        """
        with isolated():
            solution = self._solve(vectors, transposed)
        return replace(solution, vectors=solution.vectors.to(vectors.dtype))

    def solve_along(self, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"]) -> tuple[Solution, Points]:
        """Solutions for questions' gradients; and risks with directions, along which samples' derivatives add up."""
        fine = risk_of(self, risk)
        solution = self.solve(vectors.to(fine.weights))
        return solution, ((fine, solution.vectors),)

    def pairwise(self, risk: AbstractRisk, objective: Objective) -> AbstractPairwise | None:
        """A cheaper way to the scores of many queries at once, where the inverse has one for this objective."""
        return None

    def self_influence(self, risk: AbstractRisk) -> Iterator[Shaped[Tensor, " b"]] | None:
        """Every sample's score for its own loss, batch by batch, where the inverse has a way without solves."""
        return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the inverse to one safetensors file, atomically; `load_inverse` reads it.

        The file holds the factors and a signature of model, data, loss and settings: used with another risk, the
        inverse is refused, with what differs.

        Args:
            path: Where to.

        Raises:
            UnsupportedError: If the inverse makes products with the data for each question, and so has no factors.
            ResultFileError: If the folder cannot be written.
        """
        try:
            write_archive(path, self, FORMAT)
        except TypeError as error:
            raise UnsupportedError(
                f"A {type(self).__name__} has no factors that a file could hold ({error} is in it): it goes back "
                f"to the model and the data each time. Keep the solver and make it again: {self.solver}.invert(risk)."
            ) from error

    @abstractmethod
    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution: ...


def risk_of(inverse: AbstractInverse, risk: AbstractRisk) -> AbstractRisk:
    """The risk in the precision that an inverse works in."""
    return risk.fine if inverse.in_double else risk


def within(
    inverse: AbstractInverse, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"], *, transposed: bool
) -> Shaped[Tensor, "m p"]:
    """Solves in the precision that an inverse works in, as a preconditioner of one that may have another.

    Args:
        inverse: The preconditioner.
        risk: The trained model that it belongs to.
        vectors: Right-hand sides, one in each row.
        transposed: Whether to solve with the transpose.

    Returns:
        One solution in each row, in the precision of the right-hand sides.
    """
    precision = risk_of(inverse, risk).weights.dtype
    return inverse.solve(vectors.to(precision), transposed=transposed).vectors.to(vectors)


class AbstractSolver(ABC):
    """A setting from which an inverse is made.

    Attributes:
        saveable: Whether the inverse has factors that a file can hold.
    """

    saveable: ClassVar[bool] = False

    def invert(self, risk: AbstractRisk, *, checkpoint: str | os.PathLike[str] | None = None) -> AbstractInverse:
        """Does the work that all questions share.

        Args:
            risk: The trained model.
            checkpoint: A file that keeps what is finished, and in the end the inverse, as `save` writes it. Stopped
                and called again, `EKFAC`, `LowRank` and `Nystrom` go on where they were, and an inverse that is
                whole comes back at once.

        Returns:
            An inverse, for any number of questions about this risk.

        Raises:
            StaleError: If the file holds a fit of another risk or solver.
            UnsupportedError: If this solver has nothing to keep.
        """
        require_risk(risk, AbstractRisk, f"{type(self).__name__}().invert")
        self._refuse_wrong_settings()
        with isolated():
            risk.check()
            if checkpoint is None:
                return self._invert(risk)
            found = self._found(risk, checkpoint)
            if isinstance(found, AbstractInverse):
                return found
            made = self._resumed(risk, Checkpoint(checkpoint, found))
        made.save(checkpoint)
        return made

    def _refuse_wrong_settings(self) -> None:
        for name, kind, line in (
            ("curvature", AbstractCurvature, "crossfluence.Hessian()"),
            ("preconditioner", AbstractSolver, "crossfluence.Jacobi()"),
        ):
            if (value := getattr(self, name, None)) is not None:
                require(value, kind, f"{name}=", f"a {name}", f"{name}={line}")

    def _found(self, risk: AbstractRisk, file: str | os.PathLike[str]) -> AbstractInverse | PartialFit:
        """The content of a checkpoint; an empty fit, if there is none."""
        if not self.saveable:
            raise UnsupportedError(f"{type(self).__name__} fits nothing that a file could keep. Leave out checkpoint=.")
        if not os.path.exists(file):
            return PartialFit(repr(self), risk.signature)
        found = read_archive(file, READABLE, risk.weights.device)
        if not isinstance(found, (AbstractInverse, PartialFit)):
            raise ResultFileError(f"{os.fspath(file)} holds a {type(found).__name__}; needed a fit or an inverse.")
        changed = [f"solver ({found.solver}, now {self})"] if found.solver not in self._names() else []
        changed += differing(found.signature, risk.signature)
        if changed:
            raise StaleError(
                f"{os.fspath(file)} was made by another fit. What differs, by content hash or value: "
                f"{', '.join(changed)}. Delete it, or name another file.{of_another_version(changed)}"
            )
        return found

    def _names(self) -> tuple[str, ...]:
        """Names of this solver in files: its `repr`, and those of earlier versions."""
        return (repr(self),)

    def _resumed(self, risk: AbstractRisk, kept: Checkpoint) -> AbstractInverse:
        """As `_invert`, from where a checkpoint is; from the beginning in solvers that are quick, or cannot stop."""
        return self._invert(risk)

    def cost(self, risk: AbstractRisk) -> Cost:
        """The cost of inverting and solving, known without doing any of it.

        Args:
            risk: The trained model.

        Raises:
            UnsupportedError: If this solver does not say.
        """
        raise UnsupportedError(f"{type(self).__name__} does not say beforehand what it costs. Try it on less data.")

    @abstractmethod
    def _invert(self, risk: AbstractRisk) -> AbstractInverse: ...


def load_inverse(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> AbstractInverse:
    """Reads an inverse that `save` wrote.

    Args:
        path: The file.
        device: Where its tensors go: that of the model.

    Returns:
        An inverse to ask with: `influence(risk, question, inverse)`. It is refused there if the risk is another one.

    Raises:
        ResultFileError: If the file is missing, damaged or not an inverse.

    Example:
        >>> import tempfile
        >>> from crossfluence import LowRank, Risk, batches
        >>> net, x = torch.nn.Linear(2, 1), torch.eye(2)
        >>> risk = Risk(net, lambda model, batch: model(batch).square().sum(1), batches(x), l2=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     LowRank(2).invert(risk).save(f"{folder}/net.low_rank")
        ...     load_inverse(f"{folder}/net.low_rank").solver
        'LowRank(rank=2, damping=0.0, seed=0, curvature=None)'
    """
    inverse = read_archive(path, READABLE, device)
    if not isinstance(inverse, AbstractInverse):
        raise ResultFileError(f"{os.fspath(path)} holds a {type(inverse).__name__}; needed an inverse.")
    return inverse


def inverse_of(solver: AbstractSolver | AbstractInverse, risk: AbstractRisk) -> AbstractInverse:
    """An inverse that belongs to the risk: made now, or the given one if it fits.

    Args:
        solver: A solver, or what its `invert` returned earlier.
        risk: The trained model that is asked about.

    Returns:
        An inverse at the risk's parameters.

    Raises:
        StaleError: If the given inverse belongs to another risk.
        UnsupportedError: If it is neither.
    """
    if isinstance(solver, AbstractSolver):
        return solver.invert(risk)
    if not isinstance(solver, AbstractInverse):
        raise UnsupportedError(f"Got {described(solver)} for the solver; needed one such as crossfluence.Auto().")
    if solver.signature != risk.signature:
        changed = differing(solver.signature, risk.signature)
        raise StaleError(
            f"This inverse was made for another risk. What differs, by content hash or value: "
            f"{', '.join(changed)}. Make it again: solver.invert(risk).{of_another_version(changed)}"
        )
    return solver


def require_symmetric(risk: AbstractRisk, solver: AbstractSolver, instead: str) -> None:
    """Refuses a training field that is no gradient.

    Args:
        risk: The trained model.
        solver: Of symmetric systems.
        instead: Another solver.

    Raises:
        UnsupportedError: If the Jacobian of the field is not symmetric.
    """
    if not risk.symmetric:
        raise UnsupportedError(
            f"{type(solver).__name__} needs a symmetric curvature; a FieldLoss has a Jacobian that is not. "
            f"Use {instead}."
        )
