"""`crossfluence fair`: a planted gap is found in a table, narrowed and checked; what is wrong gets one sentence."""

import csv
import gzip
import re

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("sklearn")
from typer.testing import CliRunner

from crossfluence import tabular
from crossfluence.app import app
from crossfluence.app.fair_encoding import Encoding, split
from crossfluence.app.fair_table import read_people
from crossfluence.errors import UnsupportedError
from crossfluence.tabular.fairness import FairSettings, Part, explain_gap, leverage, reweighing
from crossfluence.tabular.measured import counted_gap, measured, paired

N = 900


def lines(n=N, seed=0):
    """Hiring by skill; some of the skilled of town b were turned away."""
    rng = np.random.default_rng(seed)
    skill, town = rng.normal(size=n), np.where(rng.random(n) < 0.4, "b", "a")
    hired = skill + 0.5 * rng.normal(size=n) > 0
    hired &= ~((town == "b") & (rng.random(n) < 0.3))
    years = np.where(rng.random(n) < 0.1, "?", rng.integers(0, 30, n).astype(str))
    school = rng.choice(["north", "south", ""], n)
    return [
        {"person": f"p{row}", "skill": f"{skill[row]:.4f}", "town": town[row], "years": years[row],
         "school": school[row], "hired": "yes" if hired[row] else "no"}
        for row in range(n)
    ]  # fmt: skip


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def threshold(bias):
    net = nn.Linear(1, 1).double()
    with torch.no_grad():
        net.weight.fill_(1), net.bias.fill_(bias)
    return net


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "people.csv", lines())


def run(*arguments):
    return CliRunner().invoke(app, ["fair", *map(str, arguments)])


def test_a_planted_gap_is_narrowed_and_the_rows_are_written(tmp_path):
    table, out = write(tmp_path / "people.csv", lines(4000)), tmp_path / "fair.html"
    ran = run(table, "--label", "hired", "--group", "town", "--budget", "3%", "--id", "person", "--against-random", 3,
              "--actions", "remove,relabel,add", "--out", out)  # fmt: skip
    assert ran.exit_code == 0, ran.output
    text = re.sub(r"\s+", " ", ran.output)
    assert "These scores can be relied on" in text
    before, after = map(float, re.search(r"from (0\.\d+) to (0\.\d+)", text).groups())
    assert after < 0.8 * before
    rows = list(csv.DictReader(out.with_suffix(".csv").read_text().splitlines()))
    assert 0 < len(rows) <= 0.03 * 4000
    own = {row["person"]: row for row in lines(4000)}
    for row in rows:
        assert own[row["id"]]["town"] == row["town"]
        assert own[row["id"]]["hired"] == row["label"]
        assert row["new label"] == ({"yes": "no", "no": "yes"}[row["label"]] if row["action"] == "relabel" else "")
        assert float(row["change"]) < 0 or row["action"] != "remove"
    page = out.read_text()
    assert "<script" not in page
    assert "http" not in page
    assert page.index('id="verdict"') < page.index('id="gaps"')
    meaning = "The gap: the share predicted yes of those of a group who are yes, in one group less in another"
    assert meaning in text
    assert meaning in page


def test_a_holdout_table_is_tested_on(table, tmp_path):
    other = write(tmp_path / "other.csv", lines(500, seed=1))
    ran = run(table, "--label", "hired", "--group", "town", "--holdout", other, "--against-random", 2, "--id", "person",
              "--out", tmp_path / "fair.html")  # fmt: skip
    assert ran.exit_code in {0, 3}
    assert "500 test" in ran.output


def test_a_packed_table_is_read(table):
    packed = table.with_name("people.csv.gz")
    packed.write_bytes(gzip.compress(table.read_bytes()))
    given = {"label": "hired", "group": "town", "id_column": "person"}
    first, second = read_people(table, **given), read_people(packed, **given)
    assert first.frame.equals(second.frame)
    assert first.ids == second.ids


def test_cells_become_numbers_by_the_stated_rule(table):
    people = read_people(table, label="hired", group="town", id_column="person")
    rows = split(people, [0.5, 0.5], 0)
    encoding = Encoding.of(people, rows[0])
    x = encoding.features(people, rows[0])
    column = dict(zip(encoding.names, x.T, strict=True))
    own = lines()
    years = [own[row]["years"] for row in rows[0]]
    known = np.array([float(cell) for cell in years if cell != "?"])
    filled = np.array([float(cell) if cell != "?" else np.median(known) for cell in years])
    assert np.allclose(column["years"], (filled - filled.mean()) / filled.std())
    assert column["years missing"].tolist() == [float(cell == "?") for cell in years]
    assert column["school=north"].tolist() == [float(own[row]["school"] == "north") for row in rows[0]]
    assert column["school=missing"].tolist() == [float(own[row]["school"] == "") for row in rows[0]]
    assert column["town=b"].tolist() == [float(own[row]["town"] == "b") for row in rows[0]]
    assert "person" not in people.frame


def test_reweighing_makes_group_and_label_independent():
    rng = np.random.default_rng(0)
    part = Part(np.zeros((300, 1)), (rng.random(300) < 0.4).astype(int), rng.choice(["a", "b", "c"], 300))
    weights = reweighing(part)
    whole = np.average(part.y, weights=weights)
    for group in "abc":
        mine = part.groups == group
        assert np.average(part.y[mine], weights=weights[mine]) == pytest.approx(whole)
        assert weights[mine].sum() == pytest.approx(mine.sum())


@pytest.mark.parametrize("metric", tabular.METRICS)
def test_a_gap_counted_by_cells_is_the_hard_gap(metric):
    rng = np.random.default_rng(0)
    x, y = torch.tensor(rng.normal(size=(300, 1))), (rng.random(300) < 0.4).astype(int)
    gap = tabular.group_gap(metric, x, y, rng.choice(["a", "b", "c"], 300))
    net = threshold(0.2)
    assert measured(gap, net).gap.value == pytest.approx(gap.hard(net), abs=1e-12)
    interval = measured(gap, net).gap
    assert interval.low < interval.high


def test_a_paired_interval_is_that_of_drawing_rows_again():
    rng = np.random.default_rng(0)
    n = 300
    x, y, groups = rng.normal(size=(n, 1)), (rng.random(n) < 0.5).astype(int), rng.choice(["a", "b"], n)
    gap = tabular.group_gap("statistical-parity", torch.tensor(x), y, groups)
    first, second = threshold(0.0), threshold(0.3)
    found = paired(gap, first, second)
    values = []
    for _ in range(2000):
        rows = rng.integers(0, n, n)
        rates = [[((x[rows, 0] + shift) > 0)[groups[rows] == g].mean() for g in "ab"] for shift in (0, 0.3)]
        values.append(abs(rates[1][0] - rates[1][1]) - abs(rates[0][0] - rates[0][1]))
    assert found.low == pytest.approx(np.quantile(values, 0.025), abs=0.01)
    assert found.high == pytest.approx(np.quantile(values, 0.975), abs=0.01)
    assert paired(gap, first, first, 0.5).value == pytest.approx(gap.hard(first) / 2)


def test_counted_gaps_of_empty_cells_are_finite():
    assert counted_gap("equal-opportunity", np.zeros((1, 2, 2, 2), dtype=int)).tolist() == [0.0]


def test_leverage_is_that_of_the_summed_hessian(table):
    people = read_people(table, label="hired", group="town", id_column="person")
    rows = np.arange(N)
    part = Encoding.of(people, rows).part(people, rows)
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1 / (1e-3 * N), tol=1e-10, max_iter=999).fit(part.x, part.y)
    found = leverage(tabular.risk_of(fitted, part.x, part.y))
    p = fitted.predict_proba(part.x)[:, 1]
    wide = np.c_[part.x, np.ones(N)]
    hessian = wide.T @ (wide * (p * (1 - p))[:, None]) + np.diag([1e-3 * N] * part.x.shape[1] + [0])
    assert np.allclose(found.numpy(), np.einsum("ij,jk,ik->i", wide, np.linalg.inv(hessian), wide), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_network_is_answered_by_removal_only(table):
    people = read_people(table, label="hired", group="town", id_column="person")
    rows = split(people, [0.6, 0.2, 0.2], 0)
    encoding = Encoding.of(people, rows[0])
    train, validation, test = (encoding.part(people, part) for part in rows)
    answer = explain_gap(train, validation, test, FairSettings("equal-opportunity", model="mlp", draws=2, budget=20))
    assert float(answer.outcome.achieved[0]) < 0
    assert 0.5 < float(answer.outcome.achieved[0] / answer.found.predicted[0]) < 2
    with pytest.raises(UnsupportedError, match="the wrong sign"):
        explain_gap(train, validation, test, FairSettings("equal-opportunity", ("relabel",), model="mlp"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--label": "wage"}, "has no column 'wage'"),
        ({"--label": "years"}, "needed two labels"),
        ({"--group": "hired"}, "needed two columns"),
        ({"--group": "same"}, "holds one value, 'x'"),
        ({"--group": "town=c"}, "does not hold 'c'"),
        ({"--group": "person"}, "too many for groups"),
        ({"--group": "lone"}, "of group 'b' is undefined: it has no positives"),
        ({"--metric": "fair"}, "There is no --metric fair"),
        ({"--budget": "200%"}, "is not a share such as 1%"),
        ({"--budget": "5000"}, "larger than the data"),
        ({"--actions": "erase"}, "is not a list of remove, relabel and add"),
        ({"--model": "tree"}, "There is no --model tree"),
        ({"--favourable": "maybe"}, "does not hold 'maybe'"),
        ({"--columns": "skill,hired"}, "a label cannot predict itself"),
        ({"--columns": "skill,height"}, "has no column 'height'"),
        ({"--model": "mlp", "--actions": "relabel"}, "rows are removed only"),
        ({"--holdout": "other.csv"}, "There is no file"),
        ({"--out": "page.txt"}, "must end in .html"),
    ],
)
def test_bad_input_gets_one_sentence_and_nothing_is_written(changed, words, tmp_path):
    rows = lines()
    for row in rows:
        row["same"] = "x"
        row["lone"] = "b" if row["hired"] == "no" and row["town"] == "b" else "a"
    table = write(tmp_path / "people.csv", rows)
    given = {"--label": "hired", "--group": "town", "--out": str(tmp_path / "page.html")} | changed
    ran = run(table, *[part for pair in given.items() for part in pair])
    assert ran.exit_code == 2, ran.output
    said = re.sub(r"\s+", " ", ran.stderr)
    assert words in said
    assert said.count("crossfluence:") == 1
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["people.csv"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (lines(100), "needed at least 200"),
        ([row | {"hired": "maybe" if place == 3 else row["hired"]} for place, row in enumerate(lines(300))],
         "holds 3 values, 'maybe', 'no', 'yes'"),
    ],
)  # fmt: skip
def test_tables_that_are_too_small_or_have_a_third_label_are_refused(rows, words, tmp_path):
    table = write(tmp_path / "people.csv", rows)
    ran = run(table, "--label", "hired", "--group", "town", "--out", tmp_path / "page.html")
    assert ran.exit_code == 2
    assert words in re.sub(r"\s+", " ", ran.stderr)


def test_a_holdout_with_other_columns_or_labels_is_refused(table, tmp_path):
    rows = lines(300, seed=1)
    for changed, words in (
        ([{k: v for k, v in row.items() if k != "skill"} for row in rows], "has no column 'skill'"),
        ([row | {"hired": row["hired"].upper()} for row in rows], "does not hold 'yes'"),
        ([row | {"skill": "high"} for row in rows], "in the table it holds numbers"),
    ):
        other = write(tmp_path / "other.csv", changed)
        ran = run(table, "--label", "hired", "--group", "town", "--id", "person", "--holdout", other,
                  "--out", tmp_path / "page.html")  # fmt: skip
        assert ran.exit_code == 2
        assert words in re.sub(r"\s+", " ", ran.stderr)
        assert not (tmp_path / "page.html").exists()
