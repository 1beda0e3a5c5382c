"""Estimators with rows that they were not fitted on."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import (
    GammaRegressor,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
)
from sklearn.mixture import GaussianMixture
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from crossfluence.errors import DataError, HeldFixedWarning
from crossfluence.tabular import risk_of

DRAW = np.random.default_rng(3)
IRIS, DIABETES, CANCER = ((found.data, found.target) for found in (load_iris(), load_diabetes(), load_breast_cancer()))
FITS = [
    (LogisticRegression(max_iter=5_000), IRIS),
    (LogisticRegression(max_iter=5_000), CANCER),
    (LogisticRegression(class_weight="balanced", max_iter=5_000), IRIS),
    (LogisticRegressionCV(Cs=3, l1_ratios=(0.0,), use_legacy_attributes=False, max_iter=5_000), IRIS),
    (RidgeClassifier(), CANCER),
    (LinearSVC(), IRIS),
    (Ridge(), DIABETES),
    (LinearRegression(), DIABETES),
    (PoissonRegressor(max_iter=1_000), DIABETES),
    (GammaRegressor(max_iter=1_000), DIABETES),
]
CLUSTERED = [KMeans(3, n_init=3, random_state=0), GaussianMixture(3, random_state=0)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "data"), FITS, ids=lambda one: type(one).__name__)
def test_a_fit_is_known_by_its_own_rows_alone(estimator, data):
    x, y = data
    fitted = estimator.fit(x, y)
    assert risk_of(fitted, x, y).n == len(x)
    draw = np.random.default_rng(5)
    half, exchanged = draw.permutation(len(x))[: len(x) // 2], draw.permutation(y)
    weights = np.where(x[:, 0] > np.median(x[:, 0]), 2.0, 0.5) * np.where(y > np.median(y), 2.0, 0.5)
    for other in ((x[half], y[half]), (x, exchanged), (1.1 * x, y), (x, y, weights)):
        with pytest.raises(DataError, match="was not fitted on these rows as they are: a fit that ended leaves no"):
            risk_of(fitted, *other)


@pytest.mark.parametrize("estimator", CLUSTERED, ids=lambda one: type(one).__name__)
def test_a_clustering_is_known_by_what_it_minimised(estimator):
    x = IRIS[0]
    fitted = estimator.fit(x)
    assert risk_of(fitted, x).n == 150
    assert risk_of(fitted, x[DRAW.permutation(150)]).n == 150  # their order is their labels' alone
    for other in (x[:75], 1.1 * x, x + 0.5):
        with pytest.raises(DataError, match=r"was not fitted on these rows as they are: (inertia_|lower_bound_) is"):
            risk_of(fitted, other)


def test_weights_of_the_fit_belong_to_it():
    x, y = IRIS
    weights = DRAW.uniform(0.2, 2, 150)
    fitted = LogisticRegression(max_iter=5_000).fit(x, y, weights)
    assert risk_of(fitted, x, y, weights).n == 150
    with pytest.raises(DataError, match="sample_weight= if fit had one"):
        risk_of(fitted, x, y)
    means = KMeans(3, n_init=3, random_state=0).fit(x, sample_weight=weights)
    assert risk_of(means, x, sample_weight=weights).n == 150
    with pytest.raises(DataError, match="sample_weight= if fit had one"):
        risk_of(means, x)


def test_rows_before_their_preprocessing_are_told_from_those_after_it():
    x, y = CANCER
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5_000)).fit(x, y)
    with pytest.warns(HeldFixedWarning):
        assert risk_of(fitted, x, y).n == len(x)
    with pytest.warns(HeldFixedWarning), pytest.raises(DataError, match="before any later preprocessing"):
        risk_of(fitted, StandardScaler().fit_transform(x), y)


@pytest.mark.filterwarnings("ignore")
def test_a_fit_that_stopped_early_and_a_network_say_nothing_of_their_rows():
    x, y = CANCER
    assert risk_of(LogisticRegression(max_iter=20).fit(x, y), x[:300], y[:300]).n == 300
    assert risk_of(MLPClassifier((4,), max_iter=30, random_state=0).fit(x, y), x[:300], y[:300]).n == 300


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_a_perfect_fit_belongs_to_its_rows(scale):
    x = DRAW.normal(size=(6, 8))
    y = scale * x.sum(1)
    assert risk_of(LinearRegression().fit(x, y), x, y).n == 6
    assert risk_of(LinearRegression().fit(x, 0 * y), x, 0 * y).n == 6
