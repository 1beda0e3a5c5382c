"""The risk that training minimised, and where it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property, partial, reduce
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._autodiff.functional import evaluated, isolated
from .._autodiff.params import Layout, digest_tensors, fingerprint, trained_parameters
from .._autodiff.trained import Decay, decays, held, names_of
from .._autodiff.ways import AbstractWay
from .._checks.changed import refuse_other_losses
from .._checks.loss import Examined, Subject, examine, refuse_once_differentiable
from .._checks.non_finite import advice_of, first_non_finite_module, non_finite_message
from .._data.batch import digest
from .._data.batch_size import roomy
from .._data.batches import Batches, Count, DataManifest, beside, numbered_batches, probe
from .._data.ranks import Ranks, ranks_for, works_alone
from .._losses import AbstractLoss, MiscountedError, as_loss, counted
from .._require import labelled
from .._results.ids import numbered
from .._storage.hashing import content_hash
from .._types import Batch, Id, Params, SampleLoss
from ..errors import DataError
from .base import signed, training_modes
from .double import bound_total, in_double
from .products import AbstractBatchedRisk
from .record import AbstractRecord, check_record

Self = TypeVar("Self", bound="Risk")
ONE_OF_MANY = (
    "This rank has worked alone, since the script has a process group of its own. Type Risk(..., shared=True) to share "
    "the work with the other ranks, where all of them make the same calls."
)


@dataclass(frozen=True, eq=False)
class Risk(AbstractBatchedRisk):
    r"""The risk that training minimised, and where it ended.

    The risk is $F(\theta, w) = \frac{1}{n}\sum_i w_i \ell_i(\theta) + \frac{\text{l2}}{2}\lVert\theta\rVert^2$ with
    all weights 1, and training ended where its field $g = \partial F/\partial\theta$ vanished. Losses that couple
    samples or stop gradients fit in as `WeightedLoss` and `FieldLoss`: their scalar is the weighted *sum* over a
    batch; the library divides by n and adds the l2 term.

    Attributes:
        model: The trained module, on any device; it is never changed. Put it in the mode in which the loss is
            deterministic: `model.eval()` if it has dropout or batch normalisation.
        loss: `(model, batch) -> (b,)`, or `WeightedLoss`, `FieldLoss`, `OnOutputs`. What it refers to must stay as it
            is: verbs refuse a loss that has other values on the first batch; other changes need a new risk.
        data: Batches that come back in the same order; see `batches`.
        l2: Coefficient of half the squared norm of the parameters, per mean loss. PyTorch's `weight_decay` in SGD.
            Or `{glob: coefficient}` over parameter names, such as `{"*weight": 1e-2}` where biases were trained
            without it; parameters that no glob names have 0.
        ids: n labels for the samples, default 0 to n-1.
        params: Glob or globs over parameter names: which count as trained. The others are constants, also where
            training a second time would move them.
        n: How many samples there are, in all, in each batch (a list) or in a given one (a callable), where neither the
            loss nor the batch says so: coupled losses of graphs or sequences. Afterwards: the number of samples.
        record: What the training did, a `TrainingRecord` of this model: `Horizon` takes sizes from it.
        shared: Whether the ranks of a torchrun job share the work, each with a part of the data, and all with the whole
            answer. Default: if the script has made no process group of its own; true: in such a script, too; false:
            this process works alone.

    Raises:
        LossShapeError: If the loss is of another kind than it seems.
        DataError: If the data is empty, shuffled or readable only once.
        NondeterministicError: If dropout or batch statistics were left on.
        ParameterError: If no parameter matches `params` or a glob of `l2`, or training can have moved one otherwise
            than the loss says: complex numbers, gradient hooks, shared memory.
        RankError: If the ranks of a torchrun job have different models or data.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> x, y = torch.randn(10, 2), torch.randn(10, 1)
        >>> from crossfluence import batches
        >>> risk = Risk(net, lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1), batches(x, y), l2=0.1)
        >>> risk.n, risk.p
        (10, 3)
    """

    model: nn.Module
    loss: SampleLoss | AbstractLoss
    data: Iterable[Batch] = dataclasses.field(repr=False)
    _: KW_ONLY
    l2: Decay = 0.0
    ids: Sequence[Id] | None = dataclasses.field(default=None, repr=False)
    params: str | Sequence[str] = "*"
    n: Any = dataclasses.field(default=None, repr=False)  # pyright: ignore[reportIncompatibleMethodOverride]  # then an integer
    record: AbstractRecord | None = dataclasses.field(default=None, repr=False)
    shared: bool | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        n: Count | None = self.n
        _ = self.kind  # a loss that is none is refused first
        theta, names = trained_parameters(self.model, self.params), names_of(self.model)
        with isolated():  # a DataLoader draws from the global generator even if it does not shuffle
            self._set(ranks=ranks_for(self.shared))
            reading = probe(self.data, n=n, ranks=self.ranks)
            if (data := beside(self.data, self.model)) is not self.data:
                self._set(data=data)
                reading = probe(data, n=n, ranks=self.ranks)
        self._set(
            l2=held(self.l2), decays=decays(self.l2, {name: names[name] for name in theta}), theta=theta,
            layout=Layout.of(theta), fingerprint=fingerprint(self.model), total=bound_total(self.kind, self.model),
            modes=training_modes(self.model),
        )  # fmt: skip
        self._read(reading)
        check_record(self.record, self.theta)
        self.ranks.refuse_differing({
            "model": self.fingerprint,
            "l2": str(self.decays),
            "choice of parameters": str(self.layout.names),
        })
        with isolated():
            try:
                self.look()
            except MiscountedError:  # the loss says how many samples a batch has
                if isinstance(self.data, Batches) or not (n is None or isinstance(n, int)):
                    raise
                self._read(replace(reading, sizes=counted(self.data, partial(self.kind.losses, self.model))))
                self.look()
            if isinstance(self.data, Batches) and self.kind.per_sample and self.data.growing:
                self._set(data=replace(self.data, size=roomy(self.data, self.model, self.kind.losses, self.p)))
                self._read(probe(self.data, ranks=self.ranks))
        self._number(n)

    def _set(self, **made: Any) -> None:
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def _read(self, reading: DataManifest) -> None:
        """Takes the data as it was read: so many samples, each of weight 1."""
        like = next(iter(self.theta.values()))
        weights = torch.ones(sum(reading.sizes), dtype=_working_dtype(self.theta), device=like.device)
        self._set(reading=reading, weights=weights, n=len(weights))

    def look(self) -> None:
        """Finds the ways to differentiate, from the first batch."""
        _, batch, weights = next(self.passes())
        self._set(examined=examine(Subject(self.kind, self.model, self.theta, self.total), batch, weights))

    def rebuilt(self, model: nn.Module, loss: AbstractLoss, theta: Params, weights: Tensor) -> Risk:
        """The same data with another model and loss, in the precision of the weights; nothing is looked at anew."""
        made = self._changed(model=model, loss=loss, theta=theta, layout=Layout.of(theta), weights=weights)
        made._set(total=bound_total(made.kind, model))
        return made

    def _changed(self: Self, **fields: Any) -> Self:
        if fields.keys() & {"data", "loss", "theta"}:  # then the losses of its first batch are others
            fields["examined"] = replace(self.examined, losses=None)
        return super()._changed(**fields)

    def _number(self, n: Count | None) -> None:
        """Labels the samples."""
        if isinstance(n, int) and n != self.n:
            raise DataError(
                f"Got n={n}, but the batches have {self.n} samples {self.reading.sizes[:5]}. "
                f"Say of each batch how many: n=[...], or n=lambda batch: ..."
            )
        ids = range(self.n) if self.ids is None else labelled(self.ids)
        if len(ids) != self.n:
            raise DataError(f"Got {len(ids)} ids for {self.n} samples; needed one each.")
        rows = numbered(ids)
        self._set(ids=tuple(rows), rows=rows)

    # Set in __post_init__, derived from the fields above.
    rows: dict[Id, int] = dataclasses.field(init=False, repr=False)
    """Row number of each id."""
    reading: DataManifest = dataclasses.field(init=False, repr=False)
    """Length and content hash of each batch."""
    theta: Params = dataclasses.field(init=False, repr=False)
    """The trained parameters, sharing memory with the model."""
    layout: Layout = dataclasses.field(init=False, repr=False)
    """Names and shapes of the trained parameters."""
    decays: dict[str, float] = dataclasses.field(init=False, repr=False)
    """The l2 coefficient of each trained parameter."""
    weights: Tensor = dataclasses.field(init=False, repr=False)
    """Sample weights (n,); ones, but for `without`."""
    fingerprint: str = dataclasses.field(init=False, repr=False)
    """Content hash of the trained model."""
    modes: tuple[bool, ...] = dataclasses.field(init=False, repr=False)
    """Training mode of each module."""
    total: Callable[[Params, Params, Batch, Tensor], Tensor] = dataclasses.field(init=False, repr=False)
    """`(theta, frozen theta, batch, weights)` to the weighted sum of the batch's losses."""
    examined: Examined = dataclasses.field(init=False, repr=False)
    """What a first look at the loss found."""
    ranks: Ranks = dataclasses.field(init=False, repr=False)
    """The processes that share the work."""

    @property
    def first(self) -> AbstractWay:
        """The way to differentiate the loss once along a direction."""
        return self.examined.first

    @property
    def second(self) -> AbstractWay:
        """The way to differentiate the loss twice."""
        return self.examined.second

    @property
    def precision(self) -> float:
        """The relative rounding error of the loss as it is really computed."""
        return self.examined.precision

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for every report."""
        alone = self.shared is None and works_alone()
        return (*self.examined.notes, *((ONE_OF_MANY,) if alone else ()))

    @property
    def kind(self) -> AbstractLoss:
        """The loss as one of the four kinds."""
        return as_loss(self.loss)

    @cached_property
    def decay(self) -> Tensor | float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The l2 coefficient: one number, or one for each parameter, shape `(p,)`."""
        if not isinstance(self.l2, Mapping):
            return self.l2
        return self.layout.flatten({k: self.weights.new_full(v.shape, self.decays[k]) for k, v in self.theta.items()})

    @property
    def symmetric(self) -> bool:
        """True if the training field is a gradient, so that its Jacobian is symmetric."""
        return self.kind.symmetric

    @cached_property
    def fine(self) -> Risk:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The same risk in double precision, for small problems whose loss can be computed so; else itself."""
        return in_double(self)

    @cached_property
    def signature(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """All that decides the curvature: content hashes of model, data, loss, params and weights, and l2."""
        try:
            loss = content_hash(self.kind, versions=False)
        except TypeError:  # it refers to something without content, such as an open file
            loss = f"object-{id(self.loss)}"
        decay = content_hash(self.decays, versions=False) if isinstance(self.l2, Mapping) else float(self.l2)
        return signed(
            model=self.fingerprint, data=content_hash(self.reading.digests, versions=False), loss=loss, l2=decay,
            params=content_hash(self.layout.names, versions=False),
            weights=digest_tensors([("weights", self.weights)]),
        )  # fmt: skip

    def with_record(self, record: AbstractRecord | None) -> Risk:
        """The same risk with another record of its training.

        Args:
            record: Of this model.

        Returns:
            A risk that reads the same data.

        Raises:
            StaleError: If the record is of another model.
        """
        check_record(record, self.theta)
        return self._changed(record=record)

    def passes(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, Batch, Tensor]]:
        """One reading of the data, compared with the first by content.

        Args:
            wanted: Numbers of batches; default: all. Sums over `part` are added up by `ranks`.

        Yields:
            The batch's number, the batch, and the weights of its samples.

        Raises:
            DataError: If the data is not what it was when the risk was made.
        """
        index, digests = -1, self.reading.digests
        wanted = None if wanted is not None and len(wanted) == len(digests) else wanted  # all: none may be left over
        starts = [0, *accumulate(self.reading.sizes)]
        for index, batch in numbered_batches(self.data, wanted):
            if index >= len(digests) or digest(batch) != digests[index]:
                raise DataError(
                    f"Batch {index} of the data is not what it was when the risk was made. "
                    f"Make a new Risk, or give it a copy that nothing else changes."
                )
            yield index, batch, self.weights[starts[index] : starts[index + 1]]
        end = len(digests) if wanted is None else max(wanted, default=-1) + 1
        if index + 1 != end:
            raise DataError(f"The data gave {starts[index + 1]} samples; it had {self.n} when the risk was made.")

    def check(self) -> None:
        """Makes sure that model and loss are those the risk was made for, the loss by its values on the first batch.

        Raises:
            StaleError: If the model changed, or something that the loss refers to.
        """
        super().check()
        with isolated():
            _, batch, weights = next(self.passes({0}))
            if self.kind.per_sample or bool((weights == 1).all()):  # else it is another loss on purpose
                subject = Subject(self.kind, self.model, self.theta, self.total)
                refuse_other_losses(subject, self.examined, batch, weights, self.labels_of(0))

    def refuse_once_differentiable(self) -> None:
        """Makes sure that plain autograd differentiates the loss twice.

        Raises:
            UnsupportedError: If a second derivative is missing or wrong.
        """
        _, batch, weights = next(self.passes())
        refuse_once_differentiable(Subject(self.kind, self.model, self.theta, self.total), batch, weights)

    def labels_of(self, index: int) -> tuple[Id, ...]:
        """The ids of one batch.

        Args:
            index: The batch's number.

        Returns:
            In order.
        """
        start = sum(self.reading.sizes[:index])
        return self.labels[start : start + self.reading.sizes[index]]

    def nan_message(self, index: int, batch: Batch, what: str = "The risk") -> str:
        """A sentence about what is not finite, and where.

        Args:
            index: The batch's number.
            batch: The batch.
            what: What came out as a NaN or an infinity.

        Returns:
            Names the batch, the sample if the loss is per sample, and the module where it begins.
        """
        if not all(tensor.isfinite().all() for tensor in self.theta.values()):
            return "The model's own parameters hold a NaN or an infinity: training diverged. Train it again."
        per_sample = self.kind.per_sample
        losses = evaluated(lambda: self.kind.losses(self.model, batch)) if per_sample else None
        ones = self.weights.new_ones(self.reading.sizes[index])
        place = first_non_finite_module(
            self.model, lambda theta: self.total(theta, self.theta, batch, ones), self.theta
        )
        advice = advice_of(lambda: self.total(self.theta, self.theta, batch, ones), batch)
        return non_finite_message(what, index, self.labels_of(index), losses, place, advice)


def _working_dtype(theta: Params) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in theta.values()), torch.float32)
