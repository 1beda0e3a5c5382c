"""The risk that each scikit-learn estimator minimised, and its parameters as a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import FieldLoss, OnOutputs, WeightedLoss
from ..errors import UnsupportedError
from .clusters import Centres, Mixture, half_inertia, negative_log_density, regularised_density
from .losses import (
    Balanced,
    Criterion,
    Elements,
    HalfDeviance,
    Penalised,
    half_square,
    half_square_of_signs,
    logistic,
    outputs,
    softmax,
    squared_hinge,
)
from .rows import Codes

ACTIVATIONS = {"identity": nn.Identity, "logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


@dataclass(frozen=True, eq=False)
class Carried:
    """An estimator as model, loss and penalty.

    Attributes:
        model: In double precision.
        loss: Any kind that `Risk` takes.
        penalty: n times the l2 coefficient, by glob over parameter names.
        whole: Whether the loss needs all samples in one batch.
        step: Samples in a mini-batch, where each is penalised as much as all together.
    """

    model: nn.Module
    loss: Any
    penalty: Mapping[str, float]
    whole: bool = False
    step: int | None = None

    def l2(self, n: int) -> float | dict[str, float]:
        """The coefficients per mean loss of n samples."""
        return {glob: value / min(n, self.step or n) for glob, value in self.penalty.items()} or 0.0


Builder = Callable[[Any, Codes], Carried]


def builder_of(last: Any) -> Builder:
    """The function that carries an estimator over.

    Args:
        last: Fitted, no pipeline.

    Returns:
        A function of the estimator and its labels.

    Raises:
        UnsupportedError: If there is none.
    """
    name = type(last).__name__
    ours = type(last).__module__.startswith("sklearn.")
    if not ours or name not in BUILDERS:
        raise UnsupportedError(
            f"A {name} cannot be carried over; {WHY.get(_family(last), 'its loss is not known here')}. Known are "
            f"{', '.join(BUILDERS)}. Of your own model, write crossfluence.Risk(module, loss, data)."
        )
    return BUILDERS[name]


WHY = {
    "trees": "trees have no parameters that a small change of the data moves a little",
    "l1": "an l1 penalty has no second derivative where coefficients are zero",
    "kernel": "it is fitted in the dual, and has no parameters of fixed number",
    "cv": "it is several fits in one: take the estimators in it",
    "neighbours": "it has no trained parameters",
}


def _family(last: Any) -> str:
    """The reason why an estimator is refused."""
    name, module = type(last).__name__, type(last).__module__
    if ".tree" in module or ".ensemble" in module:
        return "trees"
    if "Lasso" in name or "ElasticNet" in name or "Lars" in name:
        return "l1"
    if name.endswith("CV"):
        return "cv"
    if name in {"SVC", "SVR", "NuSVC", "NuSVR", "OneClassSVM", "KernelRidge"} or ".gaussian_process" in module:
        return "kernel"
    return "neighbours" if ".neighbors" in module else ""


def _linear(last: Any) -> nn.Linear:
    """Coefficients and intercept as one layer."""
    weight = torch.from_numpy(np.atleast_2d(np.array(last.coef_, dtype=np.float64)))
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(last.fit_intercept), dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(weight)
        if last.fit_intercept:
            model.bias.copy_(torch.from_numpy(np.atleast_1d(np.array(last.intercept_, dtype=np.float64))))
    return model


def _classified(
    last: Any, model: nn.Module, elements: Elements, penalty: Mapping[str, float], classes: int, *,
    against_rest: bool = False, counted: bool = False,
) -> Carried:  # fmt: skip
    """A classifier with its class weights: none, given ones, or balanced ones, which depend on the samples."""
    given = last.class_weight
    if isinstance(given, str):
        balanced = Balanced(Criterion(elements, against_rest=against_rest), classes, counted)
        return Carried(model, WeightedLoss(balanced), penalty, whole=True)
    weights = None if not given else _class_weights(given, last.classes_)
    return Carried(model, OnOutputs(outputs, Criterion(elements, weights, against_rest)), penalty)


def _class_weights(given: Mapping[Any, float], classes: np.ndarray) -> Tensor:
    return torch.tensor([float(given.get(label, 1.0)) for label in classes.tolist()], dtype=torch.float64)


def _logistic(last: Any, codes: Codes) -> Carried:
    classes = len(last.classes_)
    kind = _penalty(last)
    if kind in {"l1", "elasticnet"}:
        raise UnsupportedError(
            f"This LogisticRegression has the penalty {kind!r}, which has no second derivative where coefficients are "
            f"zero. Fit it with l2 alone: LogisticRegression(C=...)."
        )
    scheme = getattr(last, "multi_class", "auto")
    if (scheme == "ovr" and classes > 2) or (scheme == "multinomial" and classes == 2):
        raise UnsupportedError(
            f"This LogisticRegression was fitted with multi_class={scheme!r} for {classes} classes, which scikit-learn "
            f"has given up. Fit it without multi_class."
        )
    strength = 0.0 if kind is None else 1 / last.C
    penalty = {"weight": strength} if strength else {}
    if last.solver == "liblinear" and last.fit_intercept:
        penalty["bias"] = strength / last.intercept_scaling**2
    return _classified(last, _linear(last), logistic if classes == 2 else softmax, penalty, classes)


def _penalty(last: Any) -> str | None:
    """The penalty as it was named before and after scikit-learn 1.8."""
    if last.penalty not in {"deprecated", "l2"}:
        return last.penalty if last.penalty != "elasticnet" or last.l1_ratio else "l2"
    if last.penalty == "deprecated" and last.l1_ratio:
        return "l1" if last.l1_ratio == 1 else "elasticnet"
    return None if math.isinf(last.C) else "l2"


def _ridge(last: Any, codes: Codes) -> Carried:
    _refuse_signs(last)
    return Carried(_linear(last), OnOutputs(outputs, Criterion(half_square)), {"weight": _one_alpha(last)})


def _ridge_classes(last: Any, codes: Codes) -> Carried:
    _refuse_signs(last)
    if codes.classes is None:
        raise UnsupportedError("This RidgeClassifier has several labels for each row; needed one. Fit one for each.")
    penalty, classes = {"weight": _one_alpha(last)}, len(codes.classes)
    return _classified(last, _linear(last), half_square_of_signs, penalty, classes, counted=True)


def _refuse_signs(last: Any) -> None:
    if getattr(last, "positive", False):
        raise UnsupportedError(
            f"This {type(last).__name__} was fitted with positive=True: coefficients at zero do not move with the data "
            f"as those of a smooth loss do. Fit it without."
        )


def _one_alpha(last: Any) -> float:
    alphas = np.unique(np.asarray(last.alpha, dtype=float))
    if len(alphas) > 1:
        raise UnsupportedError(
            f"This {type(last).__name__} has {np.size(last.alpha)} penalties, one for each target; needed one number. "
            f"Fit one for each target."
        )
    return float(alphas[0])


def _support_vectors(last: Any, codes: Codes) -> Carried:
    if last.penalty != "l2" or last.loss != "squared_hinge" or last.multi_class != "ovr":
        raise UnsupportedError(
            f"This LinearSVC has penalty={last.penalty!r}, loss={last.loss!r}, multi_class={last.multi_class!r}; "
            f"needed a smooth one. Type: LinearSVC(penalty='l2', loss='squared_hinge')."
        )
    penalty = {"weight": 1 / last.C}
    if last.fit_intercept:  # liblinear penalises it as one more coefficient
        penalty["bias"] = 1 / last.C / last.intercept_scaling**2
    classes = len(last.classes_)
    return _classified(last, _linear(last), squared_hinge, penalty, classes, against_rest=classes > 2)


def _least_squares(last: Any, codes: Codes) -> Carried:
    _refuse_signs(last)
    return Carried(_linear(last), OnOutputs(outputs, Criterion(half_square)), {})


def _generalised(last: Any, codes: Codes) -> Carried:
    power = {"PoissonRegressor": 1.0, "GammaRegressor": 2.0}.get(type(last).__name__)
    log = power is not None or last.link == "log" or (last.link == "auto" and last.power > 0)
    deviance = HalfDeviance(float(last.power) if power is None else power, log)
    return Carried(_linear(last), Penalised(Criterion(deviance), float(last.alpha)), {})


def _network(last: Any, codes: Codes) -> Carried:
    if last.early_stopping:
        raise UnsupportedError(
            f"This {type(last).__name__} was fitted with early_stopping=True, on a part of the rows that it does not "
            f"tell. Fit it without."
        )
    if last.solver == "lbfgs" and last.n_outputs_ > 1 and last.out_activation_ == "identity":
        raise UnsupportedError(
            f"For the {last.n_outputs_} targets of this MLPRegressor, L-BFGS got the mean of their losses and the "
            f"gradient of their sum, so it ended at the minimum of neither. Fit it with solver='adam', or one for each."
        )
    layers: list[nn.Module] = []
    for weight, bias in zip(last.coefs_, last.intercepts_, strict=True):
        layer = nn.Linear(*weight.shape, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(weight.T, dtype=np.float64)))
            layer.bias.copy_(torch.from_numpy(np.array(bias, dtype=np.float64)))
        layers += [layer, ACTIVATIONS[last.activation]()]
    at = {"logistic": logistic, "softmax": softmax, "identity": half_square, "exp": HalfDeviance(1.0)}
    loss = OnOutputs(outputs, Criterion(at[last.out_activation_]))
    step = None if last.solver == "lbfgs" else 200 if last.batch_size == "auto" else int(last.batch_size)
    return Carried(nn.Sequential(*layers[:-1]), loss, {"*weight": float(last.alpha)}, step=step)


def _k_means(last: Any, codes: Codes) -> Carried:
    return Carried(Centres(torch.from_numpy(np.array(last.cluster_centers_, dtype=np.float64))), half_inertia, {})


def _mixture(last: Any, codes: Codes) -> Carried:
    parts = (last.weights_, last.means_, last.precisions_cholesky_)
    weights, means, roots = (torch.from_numpy(np.array(part, dtype=np.float64)) for part in parts)
    model = Mixture(weights, means, roots, last.covariance_type)
    loss = FieldLoss(regularised_density(float(last.reg_covar))) if last.reg_covar else negative_log_density
    return Carried(model, loss, {})


BUILDERS: dict[str, Builder] = {
    "LogisticRegression": _logistic,
    "LinearRegression": _least_squares,
    "Ridge": _ridge,
    "RidgeClassifier": _ridge_classes,
    "LinearSVC": _support_vectors,
    "PoissonRegressor": _generalised,
    "GammaRegressor": _generalised,
    "TweedieRegressor": _generalised,
    "MLPClassifier": _network,
    "MLPRegressor": _network,
    "KMeans": _k_means,
    "GaussianMixture": _mixture,
}
