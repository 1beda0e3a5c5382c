"""A training run as a value: the same weights give the same model, and many run at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .._autodiff.copies import copied
from .._autodiff.functional import isolated
from .._autodiff.params import put, trained_parameters
from .._autodiff.trained import Decay, held, hooks_of, with_hooks
from .._data.batches import SIZE, Batches, batches, beside
from .._losses import AbstractLoss, as_loss, repeatable
from .._require import AbstractTraining, described, labelled, require, takes
from .._risk.risk import Risk
from .._storage.hashing import content_hash
from .._types import Id, Params, SampleLoss
from ..errors import DataError, UnsupportedError
from .optimizers import AbstractOptimizer
from .record import TrainingRecord
from .recorded import recorded_training
from .schedules import Schedule, constant
from .state import TrainingState, state_before, walked
from .trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Recipe(AbstractTraining):
    """A training run that can be repeated with other sample weights.

    Call it with weights `(n,)` to get a trained model: a recipe is itself a training function for `leave_out`.

    Attributes:
        init: The untrained module; it is copied, never changed. Hooks on its parameters' gradients, such as masks, are
            followed in every step, l2 included, as after `backward`.
        loss: Any of the four kinds, as in `Risk`.
        data: A tensor, a tuple or a mapping of tensors, a map-style dataset, or a `batches(dataset, collate=...)`; the
            recipe makes the batches itself.
        optimizer: `SGD`, `Adam` or `AdamW`.
        epochs: Passes over the data.
        batch_size: Samples in a step; `None` for all of them, in order. Smaller batches are shuffled by `seed`.
        order: The samples of each step, in place of shuffled batches; an epoch is one pass over these steps. Another
            seed (`with_seed`) exchanges the samples, not the sizes of the steps.
        shuffle: Whether batches are drawn anew in every epoch; otherwise they are those of the data's own order, as in
            an ordered stream.
        seed: Of the shuffling, and of the random numbers of a `random` loss.
        l2: As in `Risk`: one number, or `{glob: coefficient}`.
        schedule: From the share of training done, in [0, 1), to a multiplier of the learning rate.
        clipping: The largest norm of a step's whole gradient, l2 included; longer ones are shortened to it, as by
            `torch.nn.utils.clip_grad_norm_`. Default: none.
        hold: Steps between two refreshes of the frozen copy that a `FieldLoss` sees (a target held for T steps).
        random: Whether the loss draws random numbers: dropout of an `init` in training mode, noise added to the batch.
            PyTorch's global generators then begin each step with a seed of that step, whatever the weights, and are
            put back afterwards. Trained models come in evaluation mode, so that questions about them have one answer.
        at_once: Models that `retrain` trains together.

    Example:
        >>> from crossfluence import SGD
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.0]])
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)
        >>> recipe = Recipe(nn.Linear(1, 1, bias=False), loss, (x, y), optimizer=SGD(0.1), epochs=50)
        >>> round(recipe.train().weight.item(), 4)
        1.0
    """

    init: nn.Module
    loss: SampleLoss | AbstractLoss
    data: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor] | Dataset[Any] | Batches
    _: KW_ONLY
    optimizer: AbstractOptimizer
    epochs: int
    batch_size: int | None = None
    order: Sequence[Sequence[int]] | None = field(default=None, repr=False)
    shuffle: bool = True
    seed: int = 0
    l2: Decay = 0.0
    schedule: Schedule = constant
    clipping: float | None = None
    hold: int = 1
    random: bool = False
    at_once: int = 32

    def __post_init__(self) -> None:
        for name in ("epochs", "hold", "at_once", "batch_size"):
            value = getattr(self, name)
            if not (value is None and name == "batch_size") and not (isinstance(value, Integral) and int(value) >= 1):
                raise ValueError(f"Got {name}={value!r}; needed at least 1, in whole numbers.")
        if self.clipping is not None and not (isinstance(self.clipping, Real) and self.clipping > 0):
            raise ValueError(f"Got clipping={self.clipping!r}; needed the largest norm of a gradient, such as 1.0.")
        if not isinstance(self.optimizer, AbstractOptimizer):
            came = described(self.optimizer)
            raise UnsupportedError(f"Got {came} for the optimizer; needed one such as crossfluence.SGD(lr).")
        if not isinstance(self.seed, Integral) or not takes(self.schedule, 1):
            raise UnsupportedError(
                f"Got {described(self.seed)} for the seed, {described(self.schedule)} for the schedule; needed a whole "
                f"number, and a function from the share of training done to a multiplier, such as crossfluence.cosine."
            )
        _ = trained_parameters(self.init, hooked=True)  # a copy would have memory of its own
        own = copied(self.init)  # what happens to the user's later does not matter
        object.__setattr__(self, "init", with_hooks(own, hooks_of(self.init)))
        object.__setattr__(self, "l2", held(self.l2))
        if self.order is not None:
            object.__setattr__(self, "order", _steps(self.order, self.n))
        _ = self._start  # a wrong loss or a random model is refused here, not after an hour

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what is derived from them is made again in another process."""
        if hooks := hooks_of(self.init):
            raise UnsupportedError(
                f"The parameters {list(hooks)} of init have hooks on their gradients, which another process does not "
                f"get. Train in this one: leave out executor=, or take threads."
            )
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @property
    def n(self) -> int:
        """Number of training samples."""
        return self._batches.samples

    @property
    def recipe(self) -> Recipe:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Itself."""
        return self

    @cached_property
    def content(self) -> str:
        """A content hash of all that decides a trained model, but for the sample weights."""
        silent = {"at_once"} | ({"shuffle"} if self.shuffle else set())  # hashes of older versions hold
        parts = [getattr(self, item.name) for item in fields(self) if item.name not in silent]
        return content_hash([*parts, hooks_of(self.init)])

    @property
    def whole_steps(self) -> bool:
        """True if each step takes all samples, in order."""
        return self.order is None and (self.batch_size is None or self.batch_size >= self.n)

    @property
    def coverage(self) -> float:
        """Share of the model's parameters that are trained."""
        return self._start.coverage

    def labels(self, ids: Sequence[Id] | None) -> tuple[Id, ...]:
        """The ids if there are n of them, or 0 to n-1.

        Args:
            ids: Labels, or nothing.

        Returns:
            n labels.

        Raises:
            DataError: If there are not n.
        """
        labels = tuple(range(self.n) if ids is None else labelled(ids))
        if len(labels) != self.n:
            raise DataError(f"Got {len(labels)} ids for {self.n} samples; needed one each.")
        return labels

    @property
    def ones(self) -> Shaped[Tensor, " n"]:
        """The sample weights of an ordinary training."""
        return self._start.weights

    @cached_property
    def _batches(self) -> Batches:
        """The data in order; losses that couple samples see batches of the size that training had."""
        source = self.data if isinstance(self.data, Batches) else batches(*_columns(self.data))
        source = beside(source, self.init)
        assert isinstance(source, Batches)
        size = self.batch_size or source.samples
        return (
            replace(source, size=min(SIZE, size), free=True)
            if as_loss(self.loss).per_sample
            else replace(source, size=size, free=False)
        )

    @cached_property
    def _start(self) -> Risk:
        loss = repeatable(as_loss(self.loss)) if self.random else self.loss
        return Risk(copied(self.init), loss, self._batches, l2=self.l2)  # without hooks: the course has them

    def train(self, weights: Tensor | None = None) -> nn.Module:
        """One model.

        Args:
            weights: Shape `(n,)`; default: ones.

        Returns:
            A new module, in the mode of `init`; in evaluation mode if the recipe is `random`.
        """
        if weights is None:
            return next(self.retrain(torch.ones(1, self.n)))
        require(weights, Tensor, "train", "sample weights (n,)", f"recipe.train(torch.ones({self.n}))")
        return next(self.retrain(weights.unsqueeze(0)))

    def retrain(self, weights: Shaped[Tensor, "r n"]) -> Iterator[nn.Module]:
        """Many models, `at_once` together.

        Args:
            weights: Sample weights, one training in each row.

        Returns:
            An iterator over one new module for each row, in order; a chunk is trained when its first is asked for.

        Raises:
            DataError: If the rows are not n long, or hold a NaN or an infinity.
        """
        require(weights, Tensor, "retrain", "sample weights (r, n)", f"recipe.retrain(torch.ones(1, {self.n}))")
        if weights.ndim != 2 or weights.shape[1] != self.n:
            raise DataError(f"Got weights of shape {tuple(weights.shape)} for {self.n} samples; needed (r, {self.n}).")
        if not weights.isfinite().all():
            raise DataError("Got sample weights that are NaN or infinite; needed finite numbers.")
        return self._models(weights)

    def _models(self, weights: Shaped[Tensor, "r n"]) -> Iterator[nn.Module]:
        for chunk in weights.split(self.at_once) if len(weights) else ():
            with isolated():  # closed before the yield: it changes global settings
                theta = self._fit(chunk.to(self.ones))
                rows = [{name: tensor[row] for name, tensor in theta.items()} for row in range(len(chunk))]
                models = [self.holding(row) for row in rows]
            yield from models

    def holding(self, theta: Params) -> nn.Module:
        """A new module with these parameters, in the mode of trained ones; call it where nothing else trains."""
        model = with_hooks(copied(self.init), hooks_of(self.init))
        put(theta, model)
        return model.eval() if self.random else model

    def with_seed(self, seed: int) -> Recipe:
        """The same training with other mini-batches and random numbers; itself, where nothing depends on a seed."""
        if self.order is None or seed == self.seed:
            fixed = self.whole_steps or (not self.shuffle and self.order is None)
            return self if fixed and not self.random else replace(self, seed=seed)
        exchanged = torch.randperm(self.n, generator=torch.Generator().manual_seed(seed)).tolist()
        return replace(self, seed=seed, order=[[exchanged[row] for row in step] for step in self.order])

    def risk(self, model: nn.Module, *, ids: Sequence[Id] | None = None, record: TrainingRecord | None = None) -> Risk:
        """The risk that this recipe minimises, at a model.

        Args:
            model: Usually what `train` returned.
            ids: n labels, default 0 to n-1.
            record: What the training did: `recipe.record()`, if the model is its own.

        Returns:
            A risk with the recipe's loss, data and l2. Losses that couple samples see the batches in order.

        Raises:
            NondeterministicError: If the loss is random at this model, as it is in training.
        """
        return Risk(model, self.loss, self._batches, l2=self.l2, ids=ids, record=record)

    def state(self, step: int) -> TrainingState:
        """The state of the training before a step, all sample weights 1.

        Args:
            step: Counted from 0; the number of steps for the end.

        Returns:
            A value that `resume` goes on from, to the bit; it can be saved.

        Raises:
            DataError: If the training has fewer steps.
        """
        with isolated():
            return state_before(self.course(), self.ones, step, self.content)

    def resume(self, state: TrainingState) -> nn.Module:
        """The model at the end of a training that goes on from a state.

        Args:
            state: From `state`, of this recipe.

        Returns:
            The same as `train()`, to the bit.

        Raises:
            StaleError: If the state is of another recipe.
        """
        require(state, TrainingState, "resume", "a state of the training", "recipe.resume(recipe.state(10))")
        state.check(self.content)
        with isolated():
            return self.holding(walked(self.course(), self.ones, state.point, range(state.step, self.steps)).theta)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return sum(1 for _ in self._schedule())

    def record(self, *, segments: int = 0) -> TrainingRecord:
        """The record of the training, for `Risk(..., record=)`: it is run once more.

        Args:
            segments: Equal parts whose ends are kept, too; each holds three numbers for each parameter.

        Returns:
            A record of the model that `train()` returns.
        """
        with isolated():
            return recorded_training(self.course(), self.ones, segments)

    def refuse_once_differentiable(self) -> None:
        """Makes sure that every step can be differentiated.

        Raises:
            UnsupportedError: If the second derivative of the loss is missing or wrong.
        """
        with isolated():
            self._start.refuse_once_differentiable()

    def course(self) -> Trajectory:
        """All steps of the training, for whoever walks through them."""
        rows = tuple(self._schedule())
        return Trajectory(
            self._start.theta,
            self._start.total,
            self._batches,
            rows,
            tuple(self.schedule(step / len(rows)) for step in range(len(rows))),
            self.optimizer,
            self._start.decays,
            hooks_of(self.init),
            self.hold,
            self._batches.take(slice(None)) if rows[0] is None else None,  # once, not in every step
            tuple(self._seeds(len(rows))) if self.random else None,
            self.clipping,
        )

    def _fit(self, weights: Shaped[Tensor, "r n"]) -> Params:
        """Trained parameters, with one leading dimension for the rows of `weights`."""
        course = self.course()
        point = course.start({
            name: tensor.expand(len(weights), *tensor.shape) for name, tensor in course.theta.items()
        })
        label = f"training {len(weights)}" if len(weights) > 1 else "training"
        for step in tqdm(range(len(course)), desc=label, unit="step", disable=None, leave=False):
            point = course.advance(point, step, *course.part(step, weights))
        return point.theta

    def _seeds(self, count: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(2**62, (count,), generator=generator).tolist()

    def _schedule(self) -> Iterator[Tensor | None]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            if self.order is not None:
                yield from map(torch.tensor, self.order)
            elif self.whole_steps:
                yield None  # all samples, in order
            elif not self.shuffle:
                yield from torch.arange(self.n).split(self.batch_size)
            else:
                yield from torch.randperm(self.n, generator=generator).split(self.batch_size)


def _steps(order: Sequence[Sequence[int]], n: int) -> tuple[tuple[int, ...], ...]:
    """The samples of each step, if there are such samples."""
    steps = tuple(tuple(int(row) for row in step) for step in order)
    wrong = [row for step in steps for row in step if not 0 <= row < n]
    if wrong or not steps or not all(steps):
        came = f"sample {wrong[0]}" if wrong else "a step without samples" if steps else "no steps"
        raise DataError(f"Got order= with {came}; needed steps such as [[0, 1], [2]], of samples from 0 to {n - 1}.")
    return steps


def _columns(data: Any) -> tuple[Any, ...]:
    """The data of a recipe in the form that `batches` takes."""
    if isinstance(data, (str, bytes)) or not (isinstance(data, (Tensor, Mapping)) or hasattr(data, "__getitem__")):
        raise DataError(
            f"Got data of type {type(data).__name__}; needed a tensor, a tuple or a mapping of tensors, or a map-style "
            f"dataset. A recipe makes its batches itself: of a DataLoader, pass loader.dataset."
        )
    return data if isinstance(data, tuple) else (data,)
