"""Every error of the library, each also the built-in that a stranger would catch."""

from __future__ import annotations

import importlib
from typing import Any


class CrossfluenceError(Exception):
    """Base of everything the library raises on purpose."""


class LossShapeError(CrossfluenceError, ValueError):
    """A loss returned another shape than its kind promises."""


class CoupledLossError(CrossfluenceError, ValueError):
    """The loss of a sample depends on the samples beside it, where each was to have its own."""


class DataError(CrossfluenceError, ValueError):
    """The training data is empty, shuffled, changed, or of a form the library cannot read."""


class CorpusError(CrossfluenceError, ValueError):
    """Text that cannot be read or made into a corpus, and what to do about it."""


class NondeterministicError(CrossfluenceError, ValueError):
    """The loss gives two values for one input: dropout or batch statistics were left on."""


class NonFiniteError(CrossfluenceError, FloatingPointError):
    """A NaN or an infinity, with the batch that holds it."""


class ObjectiveError(CrossfluenceError, ValueError):
    """The question is not a scalar, a vector or named scalars, or does not depend on the parameters."""


class ParameterError(CrossfluenceError, ValueError):
    """No trained parameter matches, or the parameters do not fit what they are used with."""


class StaleError(CrossfluenceError, RuntimeError):
    """The model, data or settings changed after the risk, the inverse or the stored result was made."""


class UnsupportedError(CrossfluenceError, TypeError):
    """This verb or curvature is not defined for this kind of loss, or was given another kind of thing."""


class RankError(CrossfluenceError, RuntimeError):
    """The ranks of a torchrun job have different models, data or calls, or one of them has ended."""


class DampingError(CrossfluenceError, ValueError):
    """A damping that is negative, infinite or no number."""


class SolveError(CrossfluenceError, ArithmeticError):
    """A linear solve cannot give a meaningful answer."""


class NegativeCurvatureError(SolveError):
    """Conjugate gradients met a direction in which the risk curves downwards."""


class SingularCurvatureError(SolveError):
    """The curvature has an eigenvalue that is zero to working precision."""


class IdError(CrossfluenceError, KeyError):
    """An id, group or objective that is not there."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class WordError(CrossfluenceError, KeyError):
    """A word has no vector, or too few words of a list have one."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class WordSetError(CrossfluenceError, ValueError):
    """Lists of words that cannot make a test: unreadable, empty, or with a word that stands twice."""


class ResultFileError(CrossfluenceError, OSError):
    """A result cannot be written or read."""


class NewerFileError(ResultFileError):
    """A file that a newer version of this library wrote."""


class MissingExtraError(CrossfluenceError, ImportError):
    """An optional package is needed for this feature."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package {package!r}, which is not installed. "
            f"Type: pip install 'crossfluence[{extra}]'"
        )


class NotConvergedWarning(UserWarning):
    """An iterative solve stopped at its step limit; the report holds the residual."""


class RoughTrainingWarning(UserWarning):
    """Training answers small changes of the data so unevenly that first-order estimates cannot follow."""


class UnreliableWarning(UserWarning):
    """The scores cannot be believed; `scores.verdict` says why, and what to do."""


class HeldFixedWarning(UserWarning):
    """Something fitted on the data is held fixed, where training again would fit it again."""


class StoreWarning(UserWarning):
    """Stored results will not be found again."""


def import_optional(module: str, feature: str, extra: str) -> Any:
    """A module of an optional package, or a sentence that says what to install.

    Args:
        module: Its full name.
        feature: What needs it, as the user calls it.
        extra: The extra of crossfluence that brings it.

    Returns:
        The module.

    Raises:
        MissingExtraError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(feature, module.partition(".")[0], extra) from error
