"""`crossfluence clusters --method kmeans` and `mixture`: the same page and verdict, checked by fitting again."""

import json
import random

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("sklearn")
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from typer.testing import CliRunner

import crossfluence as cf
from crossfluence.app import app
from crossfluence.app.cluster_estimators import clustered
from crossfluence.app.estimator_settings import estimator_settings

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    rows = [f"r{row},{rng.gauss(4 * (row % 3), 1):.4f},{rng.gauss(3 * (row % 3 == 1), 1):.4f}" for row in range(90)]
    (tmp_path / "t.csv").write_text("\n".join(["name,a,b", *rows]))
    return tmp_path


def run(*more):
    return CliRunner().invoke(app, ["clusters", "t.csv", "--id", "name", "--k", "3", "--check", "30", *more])


@pytest.mark.parametrize("method", ["kmeans", "mixture"])
def test_a_row_is_explained_and_the_scores_agree_with_fitting_again(folder, method):
    found = run("--method", method, "--json", "--remove", "3")
    assert found.exit_code in (0, 3), found.output
    told = json.loads(found.stdout)
    assert told["agreement"]["pearson"] > 0.98
    assert 0.8 < told["agreement"]["slope"] < 1.2
    assert {path.name for path in folder.iterdir()} == {
        "t.csv", "crossfluence-clusters.html", "crossfluence-clusters.csv"
    }  # fmt: skip
    page = (folder / "crossfluence-clusters.html").read_text()
    assert f'<td>method</td><td class="n">{method}</td>' in page
    assert "<td>anchor</td>" not in page
    assert f"Why is row {told['query']} in cluster {told['cluster']}" in page


def test_margins_are_log_ratios_of_what_scikit_learn_fitted():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:30] += 3
    for method in ("kmeans", "mixture"):
        settings = estimator_settings(method, 2, 60, 2, seed=3)
        found, again = clustered(x, settings)
        model = again(torch.ones(60))
        value = found.question(5, 0, 1)(model).item()
        if method == "mixture":
            log_ratio = GaussianMixture(2, covariance_type="full", tol=1e-10, max_iter=10_000, random_state=3).fit(
                x.numpy()
            )
            p = log_ratio.predict_proba(x[5:6].numpy())[0]
            assert value == pytest.approx(float(torch.tensor(p[0] / p[1]).log()), rel=1e-5)
        else:
            fitted = KMeans(2, n_init=10, tol=0, random_state=3).fit(x.numpy())
            squares = fitted.transform(x[5:6].numpy())[0] ** 2
            assert value == pytest.approx((squares[1] - squares[0]) / (2 * fitted.inertia_ / x.numel()), rel=1e-9)
        torch.testing.assert_close(
            found.assignments[5, 0] / found.assignments[5, 1], torch.tensor(value).double().exp()
        )
        scores = cf.influence(found.risk, found.question(5, 0, 1), found.inverse)
        truth = cf.leave_out(again, found.question(5, 0, 1), range(0, 60, 3), n=60)
        agreement = cf.compare(scores.select(range(0, 60, 3)), truth)
        assert float(agreement.pearson) > 0.98
        assert 0.85 < float(agreement.slope) < 1.15


def test_few_rows_for_each_number_of_a_component_give_diagonal_covariances():
    assert estimator_settings("mixture", 3, 90, 2).covariances == "full"
    assert estimator_settings("mixture", 3, 90, 8).covariances == "diag"


def test_a_plan_writes_nothing(folder):
    found = run("--method", "kmeans", "--plan")
    assert found.exit_code == 0, found.output
    assert "GiB." in found.output
    assert {path.name for path in folder.iterdir()} == {"t.csv"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "tsne"], "--method tsne is none of dec, kmeans, mixture"),
        (["--method", "kmeans", "--anchor", "0.1"], "--anchor holds the clusters of --method dec; kmeans has none"),
        (["--method", "kmeans", "--k", "60"], "holds 1 rows; needed at least 2"),
    ],
)
def test_bad_input_gets_one_sentence_and_writes_nothing(folder, arguments, sentence):
    found = run(*arguments)
    assert found.exit_code == 2, found.output
    assert sentence in " ".join(found.output.split())
    assert {path.name for path in folder.iterdir()} == {"t.csv"}
