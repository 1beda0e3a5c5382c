"""Refusals of the wrong kind of thing, each with the line to type instead."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from .errors import ObjectiveError, UnsupportedError

Label = TypeVar("Label")


class RecipeLike(Protocol):
    """A `Recipe`, as far as its callers on lower floors read it."""

    @property
    def n(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def at_once(self) -> int: ...
    @property
    def content(self) -> Any: ...
    def risk(self, model: nn.Module) -> Any: ...


class AbstractTraining(ABC):
    """A training that is run again with other sample weights: a `Recipe`, or a `Bank` of its models.

    Attributes:
        recipe: How to train.
    """

    recipe: RecipeLike

    @property
    def n(self) -> int:
        """Number of training samples."""
        return self.recipe.n

    def __call__(self, weights: Tensor) -> nn.Module:
        """One model, trained with sample weights `(n,)`."""
        return next(self.retrain(weights.unsqueeze(0)))

    @abstractmethod
    def retrain(self, weights: Tensor) -> Iterator[nn.Module]:
        """One new module for each row of sample weights `(r, n)`, in order."""

    @abstractmethod
    def with_seed(self, seed: int) -> AbstractTraining:
        """The same training with other mini-batches and random numbers."""


def described(value: object) -> str:
    """The kind of a value, as an error names it.

    Args:
        value: Anything.

    Returns:
        Such as `Linear`, `None`, `the class CG` or `the string 'cora'`.

    Example:
        >>> described(nn.Linear(1, 1)), described(nn.Linear), described("cora")
        ('Linear', 'the class Linear', "the string 'cora'")
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str):
        return f"the string {value!r}"
    return "None" if value is None else type(value).__name__


def require(value: object, kind: type | tuple[type, ...], verb: str, needed: str, otherwise: str, **lines: str) -> None:
    """Refuses a value of another kind.

    Args:
        value: What came.
        kind: What it must be an instance of.
        verb: Who needs it.
        needed: The kind in words.
        otherwise: The line to type.
        lines: Other lines to type, by the name of a class that the value is of.

    Raises:
        UnsupportedError: If it is of another kind.

    Example:
        >>> require(3, str, "shout", "a string", "shout('text')")
        Traceback (most recent call last):
        crossfluence.errors.UnsupportedError: Got int; shout needs a string. Type: shout('text').
    """
    if isinstance(value, kind):
        return
    names = [each.__name__ for each in type(value).__mro__]
    line = next((lines[name] for name in names if name in lines), otherwise)
    raise UnsupportedError(f"Got {described(value)}; {verb} needs {needed}. Type: {line}.")


def require_risk(value: object, kind: type, verb: str) -> None:
    """Refuses what is no risk.

    Args:
        value: What came.
        kind: The class of risks.
        verb: Who needs it.
    """
    require(
        value, kind, verb, "a Risk: the model with its loss and its data",
        f"{verb}(crossfluence.Risk(model, loss, data), ...)",
        Recipe=f"{verb}(recipe.risk(recipe.train()), ...)",
        Bank=f"{verb}(bank.recipe.risk(bank.recipe.train()), ...)",
    )  # fmt: skip


def require_recipe(value: object, kind: type, verb: str) -> None:
    """Refuses what is no recipe.

    Args:
        value: What came.
        kind: The class of recipes.
        verb: Who needs it.
    """
    require(
        value, kind, verb, "a crossfluence.Recipe, whose every step it knows",
        f"{verb}(crossfluence.Recipe(init, loss, data, optimizer=..., epochs=...), objective)",
        Bank=f"{verb}(bank.recipe, objective)",
    )  # fmt: skip


def require_training(value: object, verb: str) -> None:
    """Refuses what cannot train.

    Args:
        value: What came.
        verb: Who needs it.

    Raises:
        UnsupportedError: If it is neither a recipe, nor a bank, nor a function.
    """
    if isinstance(value, AbstractTraining) or (takes(value, 1) and not isinstance(value, (type, nn.Module))):
        return
    raise UnsupportedError(
        f"Got {described(value)}; {verb} needs a way to train again: a crossfluence.Recipe, a Bank, or a function from "
        f"sample weights (n,) to a trained model. Type: {verb}(crossfluence.Recipe(init, loss, data, optimizer=..., "
        f"epochs=...), ...)."
    )


def require_question(value: object, verb: str) -> None:
    """Refuses what is no function of a model.

    Args:
        value: An objective.
        verb: Who asks it.

    Raises:
        UnsupportedError: If it is not callable with a model, or answers something else.
    """
    known = callable(value) and not isinstance(value, (type, nn.Module, AbstractTraining))
    if not known or not takes(value, 1):
        raise UnsupportedError(
            f"Got {described(value)} for the objective of {verb}; needed a function of the model alone. Type, for "
            f"instance, lambda model: model(x).sum(); over a test set, crossfluence.mean_over(batches, loss) or "
            f"crossfluence.each_of(batches, loss)."
        )


def takes(function: Any, count: int) -> bool:
    """True if something can be called with so many arguments, as far as its signature says.

    Args:
        function: Anything.
        count: Of arguments by place.

    Returns:
        False also where it cannot be called.

    Example:
        >>> takes(lambda model, batch: 0, 2), takes(lambda model: 0, 2), takes("text", 2)
        (True, False, False)
    """
    if not callable(function):
        return False
    try:
        inspect.signature(function.forward if isinstance(function, nn.Module) else function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a compiled function does not say
        return True
    return True


def require_answered(answered: tuple[str, ...], asked: tuple[str, ...]) -> None:
    """Refuses scores of other questions than those that are asked.

    Args:
        answered: Questions of the scores.
        asked: Questions of the objective.

    Raises:
        ObjectiveError: If they differ.
    """
    if answered != asked:
        raise ObjectiveError(f"The scores answer {answered}, the objective {asked}; needed the same.")


def labelled(ids: Iterable[Label]) -> list[Label]:
    """Labels as a list.

    Args:
        ids: One for each sample.

    Returns:
        In order.
    """
    require(ids, Iterable, "ids=", "one label for each sample", "ids=range(n)")
    return list(ids)


def listed(ids: Iterable[Label], verb: str) -> list[Label]:
    """Ids as a list.

    Args:
        ids: Labels of samples.
        verb: Who needs them.

    Returns:
        In order.

    Raises:
        UnsupportedError: If it is one id, and no list of them.
    """
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) == 0:
        came = described(ids) if not isinstance(ids, int) else str(ids)
        raise UnsupportedError(f"Got {came} for {verb}; needed a list. Type: [{ids!r}].")
    return list(ids)
