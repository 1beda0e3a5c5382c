"""Rows, labels and weights as tensors, with a sentence for everything that can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

CLUSTERINGS = {"KMeans", "GaussianMixture"}


def features(before: list[Any], last: Any, X: Any) -> Tensor:
    """Rows after the steps of a pipeline, as a tensor in double precision.

    Args:
        before: Transformers.
        last: The estimator that gets the rows.
        X: Rows as the first step takes them.

    Returns:
        Shape `(n, f)`.

    Raises:
        DataError: If they cannot be transformed, are no finite numbers, or have another number of columns.
    """
    name = type(last).__name__
    for step in before:
        X = _transformed(step, X)
    try:
        dense = X.toarray() if hasattr(X, "toarray") else X
        values = np.array(dense, dtype=np.float64)  # a copy: the risk must not change with the user's array
    except (ValueError, TypeError) as error:
        raise DataError(f"X holds what is no number ({_first_line(error)}); needed what {name}.fit got.") from error
    if values.ndim != 2 or values.shape[1] != last.n_features_in_:
        needed = f"(n, {last.n_features_in_})"
        raise DataError(f"Got X of shape {values.shape}; this {name} was fitted on rows of shape {needed}.")
    if not len(values):
        raise DataError("Got no rows; needed those that the estimator was fitted on.")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise DataError(f"Row {row}, column {column} of X is NaN or infinite; needed the finite numbers of the fit.")
    return torch.from_numpy(values)


def _transformed(step: Any, X: Any) -> Any:
    try:
        return step.transform(X)
    except (ValueError, TypeError) as error:
        raise DataError(f"{type(step).__name__} of the pipeline cannot transform X: {_first_line(error)}") from error


def weights_of(last: Any, sample_weight: Any, n: int) -> Tensor:
    """Sample weights as a tensor: ones where there are none.

    Args:
        last: The estimator.
        sample_weight: As given to its `fit`; one number or one for each row.
        n: Rows.

    Returns:
        Shape `(n,)`.

    Raises:
        DataError: If there are not n, one is negative or not finite, or the estimator takes none.
    """
    if sample_weight is None:
        return torch.ones(n, dtype=torch.float64)
    if type(last).__name__ == "GaussianMixture":
        raise DataError("A GaussianMixture is fitted without sample weights; got some. Leave out sample_weight=.")
    values = np.array(sample_weight, dtype=np.float64)
    values = np.full(n, values) if values.ndim == 0 else values
    if values.shape != (n,):
        raise DataError(f"Got sample weights of shape {values.shape} for {n} rows; needed one for each.")
    if not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise DataError("Sample weights must be finite, not negative, and not all zero.")
    return torch.from_numpy(values)


@dataclass(frozen=True, eq=False)
class Codes:
    """Labels as numbers: of a classifier, places in `classes_`; of a regression, the targets.

    Attributes:
        name: Of the estimator.
        classes: Sorted labels; nothing for regressions and clusterings.
        targets: Columns of a regression's targets, or of a classifier's with several labels.
    """

    name: str
    classes: np.ndarray | None
    targets: int

    @classmethod
    def of(cls, last: Any) -> Codes:
        """Those of a fitted estimator."""
        name = type(last).__name__
        if name in CLUSTERINGS:
            return cls(name, None, 0)
        held = getattr(last, "classes_", None)
        binarizer = getattr(last, "_label_binarizer", None)
        if str(getattr(binarizer, "y_type_", "")).startswith("multilabel"):
            return cls(name, None, len(held) if held is not None else 0)
        coef = np.asarray(getattr(last, "coef_", ()))
        outputs = getattr(last, "n_outputs_", None) or (coef.shape[0] if coef.ndim == 2 else 1)
        return cls(name, None if held is None else np.asarray(held), int(outputs))

    def numbers(self, y: Any, x: Tensor) -> Tensor:
        """Labels as a tensor, `(n,)` of whole numbers for classes, else `(n,)` or `(n, k)` in double precision.

        Args:
            y: Labels as `fit` got them.
            x: The rows, for their number.

        Returns:
            Zeros for clusterings.

        Raises:
            DataError: If there are not n, or one is unknown or no finite number.
        """
        if self.targets == 0:
            return torch.zeros(len(x), dtype=torch.long)
        if y is None:
            raise DataError(f"Got no labels; a {self.name} was fitted with y. Type: risk_of(estimator, X, y).")
        values = np.asarray(y)
        values = values.reshape(-1) if values.ndim == 2 and values.shape[1] == 1 else values
        wanted = (len(x),) if self.classes is not None or self.targets == 1 else (len(x), self.targets)
        if values.shape != wanted:
            raise DataError(f"Got labels of shape {values.shape} for {len(x)} rows; needed {wanted}.")
        return self._targets(values) if self.classes is None else self._places(values)

    def _targets(self, values: np.ndarray) -> Tensor:
        try:
            held = np.array(values, dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise DataError(f"y holds what is no number: {_first_line(error)}") from error
        if not np.isfinite(held).all():
            raise DataError(f"Target {int(np.argwhere(~np.isfinite(held))[0][0])} is NaN or infinite.")
        return torch.from_numpy(held)

    def _places(self, values: np.ndarray) -> Tensor:
        assert self.classes is not None
        known = {label: place for place, label in enumerate(self.classes.tolist())}
        listed = values.tolist()
        unknown = [label for label in dict.fromkeys(listed) if label not in known]
        if unknown:
            raise DataError(f"The label {unknown[0]!r} is none of the classes {list(known)[:5]} of this {self.name}.")
        return torch.tensor([known[label] for label in listed])

    def labels(self, numbers: Tensor) -> np.ndarray:
        """Labels as `fit` takes them, from their numbers."""
        values = numbers.numpy()
        return values if self.classes is None else self.classes[values]


def _first_line(error: BaseException) -> str:
    return f"{(str(error).splitlines() or [''])[0].rstrip('.')[:200]}."
