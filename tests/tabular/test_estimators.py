"""Fitted scikit-learn estimators as risks: same predictions, a minimum, and the scores of fitting again."""

import numpy as np
import pytest
import torch

import crossfluence as cf
from crossfluence import tabular
from crossfluence.errors import DataError, HeldFixedWarning, ObjectiveError, UnsupportedError

sklearn = pytest.importorskip("sklearn")
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.cluster import KMeans  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from sklearn.ensemble import RandomForestClassifier  # noqa: E402
from sklearn.linear_model import (  # noqa: E402
    GammaRegressor,
    Lasso,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    TweedieRegressor,
)
from sklearn.mixture import GaussianMixture  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler  # noqa: E402
from sklearn.svm import SVC, LinearSVC  # noqa: E402

N, F = 300, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, F))
SLOPE = RNG.normal(size=F)
NOISY = X @ SLOPE + RNG.normal(size=N)
TWO = np.where(NOISY > 0, "yes", "no")
THREE = np.digitize(NOISY, [-1, 1])
COUNTS = RNG.poisson(np.exp(X @ SLOPE * 0.3))
WEIGHTS = RNG.uniform(0.5, 2, N)
SPREAD = X + 4 * RNG.integers(0, 3, N)[:, None] * np.array([1, 0.5, 0, 0])
HALVES = X + 4 * RNG.integers(0, 2, N)[:, None] * np.array([1, 0.5, 0, 0])
QUERY = RNG.normal(size=(1, F))
TIGHT = {"tol": 1e-10, "max_iter": 9999}
HINGE = {"tol": 1e-12, "max_iter": 99_999, "dual": False}
NET = {"hidden_layer_sizes": (3,), "activation": "tanh", "solver": "lbfgs", "tol": 1e-10, "max_iter": 5000,
       "max_fun": 99_999, "random_state": 0}  # fmt: skip
MIX = {"n_components": 2, "tol": 1e-13, "max_iter": 20_000, "random_state": 0}

CLASSIFIERS = {
    "logistic": (LogisticRegression(**TIGHT), TWO, None),
    "logistic with sample weights": (LogisticRegression(**TIGHT), TWO, WEIGHTS),
    "logistic balanced": (LogisticRegression(class_weight="balanced", **TIGHT), TWO, WEIGHTS),
    "logistic class weights": (LogisticRegression(C=0.3, class_weight={"yes": 3}, **TIGHT), TWO, WEIGHTS),
    "logistic without penalty": (LogisticRegression(C=np.inf, fit_intercept=False, **TIGHT), TWO, None),
    "liblinear": (
        LogisticRegression(solver="liblinear", tol=1e-12, max_iter=9999, intercept_scaling=2.0), TWO, WEIGHTS,
    ),
    "multinomial": (LogisticRegression(**TIGHT), THREE, WEIGHTS),
    "multinomial balanced": (LogisticRegression(class_weight="balanced", **TIGHT), THREE, None),
    "ridge classes": (RidgeClassifier(alpha=2.0), TWO, WEIGHTS),
    "ridge classes balanced": (RidgeClassifier(alpha=2.0, class_weight="balanced"), THREE, WEIGHTS),
    "support vectors": (LinearSVC(C=0.5, **HINGE), TWO, WEIGHTS),
    "support vectors, three classes": (
        LinearSVC(C=0.5, class_weight={0: 2.0, 1: 0.5}, intercept_scaling=3.0, **HINGE), THREE, WEIGHTS,
    ),
    "support vectors balanced": (LinearSVC(C=0.5, class_weight="balanced", **HINGE), THREE, WEIGHTS),
}  # fmt: skip
REGRESSIONS = {
    "ridge": (Ridge(alpha=2.0), NOISY, WEIGHTS),
    "ridge, two targets": (Ridge(alpha=2.0), np.c_[NOISY, COUNTS], None),
    "least squares": (LinearRegression(), NOISY, WEIGHTS),
    "least squares, two targets": (LinearRegression(fit_intercept=False), np.c_[NOISY, COUNTS], None),
    "Poisson": (PoissonRegressor(alpha=0.5, **TIGHT), COUNTS, WEIGHTS),
    "gamma": (GammaRegressor(alpha=0.5, **TIGHT), COUNTS + 0.5, WEIGHTS),
    "Tweedie": (TweedieRegressor(power=1.5, alpha=0.5, **TIGHT), COUNTS, None),
    "Tweedie, inverse Gaussian": (TweedieRegressor(power=3, alpha=0.1, **TIGHT), COUNTS + 0.5, WEIGHTS),
    "Tweedie, normal": (TweedieRegressor(power=0, alpha=0.5, **TIGHT), NOISY, WEIGHTS),
}
CHOSEN = {
    "logistic": (LogisticRegressionCV(Cs=[0.1, 1.0], cv=3, scoring="accuracy", l1_ratios=(0,),
                                      use_legacy_attributes=False, **TIGHT), TWO),
    "three classes": (LogisticRegressionCV(Cs=[0.1, 1.0], cv=3, scoring="accuracy", l1_ratios=(0,),
                                           use_legacy_attributes=True, **TIGHT), THREE),
    "ridge": (RidgeCV([0.1, 5.0]), NOISY),
    "ridge classes": (RidgeClassifierCV([0.1, 5.0]), TWO),
    "a search": (GridSearchCV(Ridge(), {"alpha": [0.1, 5.0]}, cv=3), NOISY),
    "a search in a pipeline": (make_pipeline(Normalizer(), GridSearchCV(Ridge(), {"alpha": [0.1, 5.0]}, cv=3)), NOISY),
    "a search over pipelines": (
        GridSearchCV(make_pipeline(Normalizer(), LogisticRegression(**TIGHT)), {"logisticregression__C": [0.1, 1.0]}),
        TWO,
    ),
}  # fmt: skip
NETWORKS = {
    "network": (MLPClassifier(alpha=2.0, **NET), TWO, None),
    "network, three classes": (MLPClassifier(alpha=2.0, **NET), THREE, WEIGHTS),
    "network, regression": (MLPRegressor(alpha=40.0, **NET), NOISY, None),
}
CLUSTERINGS = {
    "k-means": (KMeans(3, n_init=5, random_state=0, tol=0), SPREAD, None),
    "k-means with sample weights": (KMeans(3, n_init=5, random_state=0, tol=0), SPREAD, WEIGHTS),
    "mixture": (GaussianMixture(**MIX), HALVES, None),
    "mixture with a large regulariser": (GaussianMixture(reg_covar=0.2, **MIX), HALVES, None),
    "tied mixture": (GaussianMixture(covariance_type="tied", reg_covar=0.2, **MIX), HALVES, None),
    "diagonal mixture": (GaussianMixture(covariance_type="diag", reg_covar=0.2, **MIX), HALVES, None),
    "spherical mixture": (GaussianMixture(covariance_type="spherical", reg_covar=0.2, **MIX), HALVES, None),
}


def fit(estimator, y, weights, x=X, times=1):
    given = {} if weights is None else {"sample_weight": weights}
    for _ in range(times):
        estimator.fit(x, **given) if y is None else estimator.fit(x, y, **given)
    return estimator


def agrees(estimator, y, weights, question, x=X, count=25):
    """Scores beside leaving rows out and fitting scikit-learn again."""
    risk = tabular.risk_of(estimator, x, y, weights)
    scores = cf.influence(risk, question)
    drop = list(range(0, N, N // count))
    truth = cf.leave_out(tabular.training_of(estimator, x, y, weights), question, drop, n=N)
    found = cf.compare(scores.select(drop), truth)
    assert found.pearson > 0.99
    assert 0.9 < found.slope < 1.1
    return risk


def at_query(model):
    z = model(torch.tensor(QUERY))[0]
    return z[0] - z[1] if len(z) > 1 else z[0]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_carried_over_and_its_scores_are_those_of_fitting_again(name):
    estimator, y, weights = CLASSIFIERS[name]
    fitted = fit(sklearn.base.clone(estimator), y, weights)
    risk = agrees(fitted, y, weights, at_query)
    assert float(risk.gradient.abs().max()) < 1e-6
    decided = risk.model(torch.tensor(X)).detach().numpy()
    wanted = fitted.decision_function(X).reshape(N, -1)
    shift = 0 if decided.shape[1] == 1 else (decided - wanted).mean()
    assert abs(decided - wanted - shift).max() < 1e-10


@pytest.mark.parametrize("name", REGRESSIONS)
def test_a_regression_is_carried_over_and_its_scores_are_those_of_fitting_again(name):
    estimator, y, weights = REGRESSIONS[name]
    fitted = fit(sklearn.base.clone(estimator), y, weights)
    risk = agrees(fitted, y, weights, at_query)
    assert float(risk.gradient.abs().max()) < 1e-7
    predicted = risk.model(torch.tensor(X)).detach().numpy().reshape(y.shape)
    linked = name.startswith(("Poisson", "gamma", "Tweedie")) and name != "Tweedie, normal"
    predicted = np.exp(predicted) if linked else predicted
    assert abs(predicted - fitted.predict(X)).max() < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scores_of_a_network_are_those_of_fitting_on_without_the_rows(name):
    estimator, y, weights = NETWORKS[name]
    fitted = fit(sklearn.base.clone(estimator).set_params(warm_start=True), y, weights, times=40)
    agrees(fitted, y, weights, at_query)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # wherever it ended
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_a_network_predicts_what_it_did(activation):
    fitted = MLPClassifier((5, 4), activation=activation, solver="lbfgs", random_state=0, max_iter=200).fit(X, THREE)
    odds = tabular.model_of(fitted)(torch.tensor(X))
    assert abs(odds.softmax(1).detach().numpy() - fitted.predict_proba(X)).max() < 1e-10


def test_a_network_trained_in_batches_has_the_penalty_of_a_batch():
    fitted = MLPClassifier(
        (3,), activation="tanh", solver="sgd", learning_rate="adaptive", learning_rate_init=0.05, batch_size=50,
        alpha=2.0, tol=1e-7, max_iter=3000, random_state=0,
    ).fit(X, TWO)  # fmt: skip
    risk = tabular.risk_of(fitted, X, TWO)
    wrong = cf.Risk(risk.model, risk.loss, risk.data, l2={"*weight": 2.0 / N})
    assert risk.l2 == {"*weight": 2.0 / 50}
    assert risk.gradient.norm() < 0.2 * wrong.gradient.norm()


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_a_clustering_is_carried_over_and_its_scores_are_those_of_fitting_again(name):
    estimator, x, weights = CLUSTERINGS[name]
    fitted = fit(sklearn.base.clone(estimator), None, weights, x)
    mixture = isinstance(fitted, GaussianMixture)
    query = tabular.inputs_of(fitted, x[:1])[0]
    risk = agrees(fitted, None, weights, tabular.margin(query, 0, 1), x)
    assert float(risk.gradient.abs().max()) < 1e-7  # EM ends where its bound rises by less than 1e-13
    found = risk.model(torch.tensor(x)).detach()
    if mixture:
        assert abs(found.softmax(1).numpy() - fitted.predict_proba(x)).max() < 1e-10
        assert abs(found.logsumexp(1).numpy() - fitted.score_samples(x)).max() < 1e-10
    else:
        assert found.argmax(1).tolist() == fitted.predict(x).tolist()


def test_questions_about_clusters_have_the_values_of_the_estimators():
    mixture = GaussianMixture(**MIX).fit(HALVES)
    model, query = tabular.model_of(mixture), torch.tensor(HALVES[3])
    wanted = np.log(mixture.predict_proba(HALVES[3:4]))[0]
    assert abs(tabular.log_responsibility(query, 1)(model).item() - wanted[1]) < 1e-9
    assert abs(tabular.margin(query, 1, 0)(model).item() - (wanted[1] - wanted[0])) < 1e-9
    assert tabular.centre(1, 2)(model).item() == mixture.means_[1, 2]
    nearest = KMeans(3, n_init=1, random_state=0).fit(SPREAD)
    distances = nearest.transform(SPREAD[3:4])[0] ** 2
    found = tabular.margin(torch.tensor(SPREAD[3]), 0, 2)(tabular.model_of(nearest)).item()
    assert abs(found - (distances[2] - distances[0])) < 1e-9


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (tabular.log_responsibility(torch.zeros(F), 0), "GaussianMixture"),
        (tabular.margin(torch.zeros(F), 0, 9), "There is no cluster 9; there are 3"),
        (tabular.centre(0, 7), "There is no column 7; there are 4"),
    ],
)
def test_questions_about_clusters_that_are_not_there_are_refused(question, words):
    model = tabular.model_of(KMeans(3, n_init=1, random_state=0).fit(SPREAD))
    with pytest.raises((ObjectiveError, UnsupportedError), match=words):
        question(model)


def test_a_pipeline_is_taken_apart_and_its_fitted_step_is_said_to_be_held_fixed():
    pipeline = make_pipeline(Normalizer(), StandardScaler(), LogisticRegression(**TIGHT)).fit(X, TWO)
    with pytest.warns(HeldFixedWarning, match="StandardScaler was fitted on the data and held fixed"):
        risk = tabular.risk_of(pipeline, X, TWO)
    decided = risk.model(tabular.inputs_of(pipeline, X))[:, 0].detach().numpy()
    assert abs(decided - pipeline.decision_function(X)).max() < 1e-10
    question = lambda model: model(tabular.inputs_of(pipeline, QUERY))[0, 0]  # noqa: E731
    truth = cf.leave_out(tabular.training_of(pipeline, X, TWO), question, [0, 1, 2], n=N)
    scores = cf.influence(risk, question).select([0, 1, 2])
    assert torch.allclose(scores.values, truth.values, rtol=0.1)


@pytest.mark.parametrize("name", CHOSEN)
def test_settings_that_were_chosen_are_held_fixed_with_a_word(name):
    estimator, y = CHOSEN[name]
    fitted = sklearn.base.clone(estimator).fit(X, y)
    with pytest.warns(HeldFixedWarning, match="(?i)the .* that .* chose (is|are) held fixed"):
        risk = tabular.risk_of(fitted, X, y)
    assert risk.gradient.abs().max() < 1e-6
    decided = risk.model(tabular.inputs_of(fitted, X)).detach().numpy()
    wanted = (fitted.predict if y is NOISY else fitted.decision_function)(X).reshape(decided.shape)
    assert abs(decided - wanted - (decided - wanted).mean()).max() < 1e-10
    question = lambda model: at_query(lambda rows: model(tabular.inputs_of(fitted, rows.numpy())))  # noqa: E731
    truth = cf.leave_out(tabular.training_of(fitted, X, y), question, [0, 1, 2], n=N)
    scores = cf.influence(risk, question).select([0, 1, 2])
    assert (scores.values - truth.values).abs().max() < 0.1 * truth.values.abs().max()


def test_a_pipeline_whose_steps_learn_nothing_is_taken_apart_without_a_word():
    pipeline = make_pipeline(FunctionTransformer(np.tanh), Normalizer(), Ridge()).fit(X, NOISY)
    risk = tabular.risk_of(pipeline, X, NOISY)
    assert risk.gradient.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (LogisticRegression(solver="saga", l1_ratio=1, max_iter=9999), "the penalty 'l1'"),
        (LogisticRegression(solver="saga", l1_ratio=0.5, max_iter=9999), "the penalty 'elasticnet'"),
        (LogisticRegressionCV(cv=2, scoring="accuracy", refit=False), "mean coefficients of its folds"),
        (GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, refit=False), "refit=False"),
        (CalibratedClassifierCV(LogisticRegression()), "several fits in one"),
        (RandomForestClassifier(2), "trees have no parameters"),
        (SVC(), "fitted in the dual"),
        (LinearSVC(loss="hinge", max_iter=99_999), "loss='hinge'"),
        (LinearSVC(penalty="l1", dual=False), "penalty='l1'"),
        (MLPClassifier((3,), early_stopping=True, max_iter=5, random_state=0), "early_stopping=True"),
        (RidgeClassifier(positive=True), "positive=True"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore")
def test_a_classifier_that_cannot_be_carried_over_is_refused(estimator, words):
    with pytest.raises(UnsupportedError, match=words):
        tabular.risk_of(estimator.fit(X, TWO), X, TWO)


@pytest.mark.parametrize(
    ("estimator", "y", "words"),
    [
        (Lasso(), NOISY, "an l1 penalty has no second derivative"),
        (Ridge(positive=True), NOISY, "positive=True"),
        (Ridge(alpha=[1.0, 2.0]), np.c_[NOISY, COUNTS], "2 penalties"),
        (MLPRegressor(hidden_layer_sizes=(3,), solver="lbfgs", max_iter=20_000), np.c_[NOISY, COUNTS], "of neither"),
        (PCA(2), None, "A PCA cannot be carried over"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_an_estimator_that_cannot_be_carried_over_is_refused(estimator, y, words):
    with pytest.raises(UnsupportedError, match=words):
        tabular.risk_of(estimator.fit(X, y), X, y)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((X, None), "needed|Got no labels"),
        ((X[:, :3], TWO), r"Got X of shape \(300, 3\)"),
        ((X, TWO[:5]), r"Got labels of shape \(5,\) for 300 rows"),
        ((X, np.where(TWO == "yes", "maybe", "no")), "The label 'maybe' is none of the classes"),
        ((np.where(X > 2, np.nan, X), TWO), "is NaN or infinite"),
        ((np.array([["a"] * F] * N), TWO), "X holds what is no number"),
        ((X, TWO, WEIGHTS[:3]), r"Got sample weights of shape \(3,\)"),
        ((X, TWO, -WEIGHTS), "not negative"),
        ((X[:0], TWO[:0]), "Got no rows"),
    ],
)
def test_rows_that_do_not_fit_the_estimator_are_refused(given, words):
    fitted = LogisticRegression().fit(X, TWO)
    with pytest.raises(DataError, match=words):
        tabular.risk_of(fitted, *given)


def test_what_is_no_fitted_estimator_is_refused():
    for wrong, words in (
        (LogisticRegression(), "is not fitted"), (LogisticRegression, "the class"), (3, "Got int"),
        (make_pipeline(StandardScaler(), Ridge()), "is not fitted"),
    ):  # fmt: skip
        with pytest.raises(UnsupportedError, match=words):
            tabular.risk_of(wrong, X, TWO)


def test_leaving_out_a_whole_class_is_refused():
    fitted = LogisticRegression(**TIGHT).fit(X, THREE)
    weights = torch.tensor((THREE != 1).astype(float))
    with pytest.raises(DataError, match="no row of the class 1 is left"):
        tabular.training_of(fitted, X, THREE)(weights)


def test_the_estimator_and_its_rows_are_untouched():
    x, y = X.copy(), TWO.copy()
    fitted = LogisticRegression(**TIGHT).fit(x, y)
    before = fitted.coef_.copy()
    risk = tabular.risk_of(fitted, x, y)
    x += 1  # the risk holds a copy
    cf.influence(risk, at_query)
    tabular.training_of(fitted, X, y)(torch.ones(N).index_fill(0, torch.tensor([0]), 0))
    assert (fitted.coef_ == before).all()


def test_other_labels_have_the_numbers_of_the_classes():
    fitted = LogisticRegression(**TIGHT).fit(X, TWO)
    batch = next(iter(tabular.batches_of(fitted, X[:4], ["no", "yes", "yes", "no"])))
    assert tabular.flipped(batch)[1].tolist() == [1, 0, 0, 1]
    assert tabular.relabelled(1)(batch)[1].tolist() == [1, 1, 1, 1]
