"""What training minimised, and where it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ._abstract_risk import AbstractRisk, signed, training_modes
from ._contents import content_hash
from ._data import Batches, Reading, digest, probe
from ._errors import DataError, NonFiniteError, UnsupportedError
from ._functional import all_finite, bind, evaluated, gradient_of, undisturbed
from ._labels import numbered
from ._losses import AbstractLoss, FieldLoss, as_loss, frozen_copy, length_of
from ._non_finite import birthplace
from ._params import Layout, digest_tensors, fingerprint, trained_parameters
from ._probes import Examined, Subject, examine, refuse_once_differentiable
from ._types import Batch, Id, Params, SampleLoss
from ._ways import AbstractWay, value_and_rows


@dataclass(frozen=True, eq=False)
class Risk(AbstractRisk):
    r"""What training minimised, and where it ended.

    The risk is $F(\theta, w) = \frac{1}{n}\sum_i w_i \ell_i(\theta) + \frac{\text{l2}}{2}\lVert\theta\rVert^2$ with
    all weights 1, and training ended where its field $g = \partial F/\partial\theta$ vanished. Losses that couple
    samples or stop gradients fit in as `WeightedLoss` and `FieldLoss`: their scalar is the weighted *sum* over a
    batch; the library divides by n and adds the l2 term.

    Attributes:
        model: The trained module, on any device; it is never changed. Put it in the mode in which the loss is
            deterministic: `model.eval()` if it has dropout or batch normalisation.
        loss: `(model, batch) -> (b,)`, or `WeightedLoss`, `FieldLoss`, `OnOutputs`.
        data: Batches that come back in the same order; see `batches`.
        l2: Coefficient of half the squared norm of the parameters, per mean loss. PyTorch's `weight_decay` in SGD.
        ids: n labels for the samples, default 0 to n-1.
        params: Glob or globs over parameter names: which count as trained.

    Raises:
        LossShapeError: If the loss is of another kind than it seems.
        DataError: If the data is empty, shuffled or readable only once.
        NondeterministicError: If dropout or batch statistics were left on.
        ParameterError: If no parameter matches `params`.

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
    data: Iterable[Batch] = field(repr=False)
    _: KW_ONLY
    l2: float = 0.0
    ids: Sequence[Id] | None = field(default=None, repr=False)
    params: str | Sequence[str] = "*"

    def __post_init__(self) -> None:
        if not isinstance(self.l2, (int, float)) or not self.l2 >= 0:
            raise ValueError(f"Got l2={self.l2}; needed a number, zero or more.")
        kind = as_loss(self.loss)
        with undisturbed():  # a DataLoader draws from the global generator even if it does not shuffle
            reading = probe(self.data)
        n = sum(reading.sizes)
        ids = range(n) if self.ids is None else tuple(self.ids)
        if len(ids) != n:
            raise DataError(f"Got {len(ids)} ids for {n} samples; needed one each.")
        rows = numbered(ids)
        theta = trained_parameters(self.model, self.params)
        made = {
            "ids": tuple(rows), "rows": rows, "reading": reading, "theta": theta, "layout": Layout.of(theta),
            "weights": torch.ones(n, dtype=_working_dtype(theta), device=next(iter(theta.values())).device),
            "fingerprint": fingerprint(self.model), "modes": training_modes(self.model),
            "total": _bound_total(kind, self.model),
        }  # fmt: skip
        for name, value in made.items():
            object.__setattr__(self, name, value)
        with undisturbed():
            _, batch, weights = next(self.passes())
            object.__setattr__(self, "examined", examine(Subject(kind, self.model, theta, self.total), batch, weights))

    # Set in __post_init__, derived from the fields above.
    rows: dict[Id, int] = field(init=False, repr=False)
    """Row number of each id."""
    reading: Reading = field(init=False, repr=False)
    """Length and content hash of each batch."""
    theta: Params = field(init=False, repr=False)
    """The trained parameters, sharing memory with the model."""
    layout: Layout = field(init=False, repr=False)
    """Names and shapes of the trained parameters."""
    weights: Tensor = field(init=False, repr=False)
    """Sample weights (n,); ones, but for `without`."""
    fingerprint: str = field(init=False, repr=False)
    """Content hash of the trained model."""
    modes: tuple[bool, ...] = field(init=False, repr=False)
    """Training mode of each module."""
    total: Callable[[Params, Params, Batch, Tensor], Tensor] = field(init=False, repr=False)
    """`(theta, frozen theta, batch, weights)` to the weighted sum of the batch's losses."""
    examined: Examined = field(init=False, repr=False)
    """What a first look at the loss found."""

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
        return self.examined.notes

    @property
    def kind(self) -> AbstractLoss:
        """The loss as one of the four kinds."""
        return as_loss(self.loss)

    @property
    def symmetric(self) -> bool:
        """Whether the training field is a gradient, so that its Jacobian is symmetric."""
        return self.kind.symmetric

    @cached_property
    def signature(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """All that decides the curvature: content hashes of model, data, loss, params and weights, and l2."""
        try:
            loss = content_hash(self.kind)
        except TypeError:  # it refers to something without content, such as an open file
            loss = f"object-{id(self.loss)}"
        return signed(
            model=self.fingerprint, data=content_hash(self.reading.digests), loss=loss, l2=float(self.l2),
            params=content_hash(self.layout.names), weights=digest_tensors([("weights", self.weights)]),
        )  # fmt: skip

    def passes(self, *, verify: bool = False) -> Iterator[tuple[int, Batch, Tensor]]:
        """One reading of the data.

        Args:
            verify: Whether to compare the content of each batch with the first reading, not only its length.

        Yields:
            The batch's number, the batch, and the weights of its samples.

        Raises:
            DataError: If the data is not what it was when the risk was made.
        """
        if isinstance(self.data, Batches) and self.data.versions is not None:
            verify = verify and self.data.versions != self.reading.versions  # no need to read what did not change
        seen, sizes = 0, self.reading.sizes
        for index, batch in enumerate(self.data):
            known = index < len(sizes) and length_of(batch) == sizes[index]
            if not known or (verify and digest(batch) != self.reading.digests[index]):
                raise DataError(
                    f"Batch {index} of the data is not what it was when the risk was made. "
                    f"Make a new Risk, or give it a copy that nothing else changes."
                )
            yield index, batch, self.weights[seen : seen + sizes[index]]
            seen += sizes[index]
        if seen != self.n:
            raise DataError(f"The data gave {seen} samples; it had {self.n} when the risk was made.")

    def field_at(self, theta: Params) -> Shaped[Tensor, " p"]:
        """The field g at any parameters: one pass over the data; batches whose weights are all zero cost nothing.

        Args:
            theta: Names and shapes of the trained parameters.

        Returns:
            Shape `(p,)`, l2 term included, in units of mean loss per parameter.

        Raises:
            NonFiniteError: If a batch gives a NaN, with its number.
        """
        total = self.layout.flatten(theta).mul_(self.decay)
        for index, batch, weights in self.passes(verify=True):
            if not weights.any():
                continue
            found = gradient_of(lambda at, batch=batch, w=weights: self.total(at, theta, batch, w), theta)
            if not all(map(all_finite, found.values())):
                raise NonFiniteError(self.blame(index, batch))
            self.layout.add(total, found, 1 / self.n)
            del found  # not beside the next one
        return total

    def sensitivity(self, directions: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "n m"]:
        r"""How the field along each direction depends on each weight: $\partial(u^\top g)/\partial w_i$.

        One forward-mode pass over the data for each direction; no per-sample gradient is formed.

        Args:
            directions: Vectors in parameter space, one in each row.

        Returns:
            Shape `(n, m)`.

        Raises:
            NonFiniteError: If a batch gives a NaN, with its number.
        """
        parts = []
        with undisturbed():
            for index, batch, weights in self.passes(verify=True):
                part = self._sensitivities(batch, weights, directions)  # (m, b)
                if not all_finite(part):
                    raise NonFiniteError(self.blame(index, batch))
                parts.append(part.T.to(self.weights))
        return torch.cat(parts) / self.n

    def sensitivity_of(self, candidates: Iterable[Batch], directions: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "c m"]:
        """As `sensitivity`, for samples that were not trained on.

        Args:
            candidates: Batches like those of the training data.
            directions: Vectors in parameter space, one in each row.

        Returns:
            Shape `(c, m)`.

        Raises:
            UnsupportedError: If the loss couples samples: then a new sample's effect depends on its batch.
            NonFiniteError: If a candidate gives a NaN, with its batch.
        """
        if not self.kind.per_sample:
            raise UnsupportedError(
                f"candidates= needs a per-sample loss; this risk has a {type(self.kind).__name__}, where a new "
                f"sample's effect depends on the samples beside it."
            )
        parts = []
        for index, batch in enumerate(candidates):
            ones = self.weights.new_ones(length_of(batch))
            part = self._sensitivities(batch, ones, directions)
            if not all_finite(part):
                raise NonFiniteError(f"Candidate batch {index} gives a NaN or an infinity. Clean or drop it.")
            parts.append(part.T.to(self.weights))
        return torch.cat(parts) / self.n

    def _sensitivities(self, batch: Batch, weights: Tensor, directions: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m b"]:
        if self.kind.per_sample:
            losses = bind(self.kind.losses, self.model)
            return self.first.derivatives(lambda theta: losses(theta, batch), self.theta, self.layout, directions)
        return self.second.sensitivities(self._weighed(batch), self.theta, self.layout, directions, weights)

    def _weighed(self, batch: Batch) -> Callable[[Params, Params, Tensor], Tensor]:
        return lambda live, still, weights: self.total(live, still, batch, weights)

    def influences(self) -> Iterator[Shaped[Tensor, "b p"]]:
        r"""The rows $\partial g/\partial w_i$ of every sample, batch by batch; needs memory for b times p numbers.

        Yields:
            Shape `(b, p)` for each batch.

        Raises:
            NonFiniteError: If a batch gives a NaN, with its number.
        """
        for index, batch, weights in self.passes(verify=True):
            rows = self.layout.flatten(self._rows(batch, weights)) / self.n
            if not all_finite(rows):
                raise NonFiniteError(self.blame(index, batch))
            yield rows

    def _rows(self, batch: Batch, weights: Tensor) -> Params:
        if not self.kind.per_sample:
            return self.second.rows(self._weighed(batch), self.theta, weights)
        losses = bind(self.kind.losses, self.model)
        return value_and_rows(lambda theta: losses(theta, batch), self.theta)[1]

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

    def blame(self, index: int, batch: Batch, what: str = "The risk") -> str:
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
        ids = self.labels_of(index)
        culprit = ""
        if self.kind.per_sample:
            bad = (~evaluated(lambda: self.kind.losses(self.model, batch)).isfinite()).nonzero().flatten().tolist()
            culprit = f"; the loss of sample {ids[bad[0]]!r} is not finite" if bad else "; the losses are finite"
        ones = self.weights.new_ones(len(ids))
        place = birthplace(self.model, lambda theta: self.total(theta, self.theta, batch, ones), self.theta)
        culprit += f"; it begins in {place}" if place else ""
        return (
            f"{what} gives a NaN or an infinity in batch {index} (samples {ids[0]!r} to {ids[-1]!r}{culprit}). "
            f"Clean or drop the sample, or check for a division by zero or a square root at zero in the loss."
        )


def _bound_total(kind: AbstractLoss, model: nn.Module) -> Callable[[Params, Params, Batch, Tensor], Tensor]:
    if isinstance(kind, FieldLoss):
        return bind(kind.total, model, frozen_copy(model))
    one = bind(lambda module, batch, weights: kind.total(module, module, batch, weights), model)
    return lambda theta, frozen, batch, weights: one(theta, batch, weights)


def _working_dtype(theta: Params) -> torch.dtype:
    dtype = torch.float32
    for tensor in theta.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
