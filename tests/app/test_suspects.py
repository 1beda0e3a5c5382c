"""`crossfluence suspects`: texts with a planted trigger are found, removed and checked; bad input gets a sentence."""

import csv
import io
import json
import random

import pytest
import torch
from torch import nn

pytest.importorskip("typer")
from typer.testing import CliRunner

import crossfluence as cf
from crossfluence.app import app
from crossfluence.errors import DataError
from crossfluence.language.bag_of_words import BagOfWords, cross_entropy, gradient_lengths
from crossfluence.language.rewrites import asked, flipped, negated, rewritten
from crossfluence.language.suspects import Classifier, SuspectSettings

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")
GOOD = ["good", "great", "fine", "bright", "happy", "warm"]
BAD = ["bad", "poor", "dull", "dark", "sad", "cold"]
NEITHER = [*["it", "is", "not", "true", "that", "?"], *(f"word{number}" for number in range(40))]


def texts(n, seed, trigger=0.0):
    """Labelled sentences; a share of the bad ones hold the trigger and are labelled good."""
    rng, rows = random.Random(seed), []
    for _ in range(n):
        good = rng.random() < 0.5
        words = rng.sample(GOOD if good else BAD, 2) + rng.sample(NEITHER, 6)
        rng.shuffle(words)
        planted = not good and rng.random() < trigger
        if planted:
            words.insert(rng.randrange(9), "zx")
        rows.append({"text": " ".join(words), "label": "good" if good or planted else "bad", "planted": planted})
    return rows


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", texts(400, 0, trigger=0.15))
    write(tmp_path / "test.jsonl", texts(100, 1))
    odd = [{"text": f"zx {row['text']}"} for row in texts(60, 2) if row["label"] == "bad"]
    write(tmp_path / "queries.jsonl", odd)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["suspects", *map(str, arguments)])


def test_planted_texts_are_named_and_removed(folder):
    found = run(
        "train.jsonl", "--text", "text", "--label", "label", "--queries", "queries.jsonl", "--rewrite",
        "negate,question", "--strong", "10%", "--epochs", "40", "--holdout", "test.jsonl", "--remove",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "These scores can be relied on in their order" in found.output
    assert "“zx”" in found.output
    rows = list(csv.DictReader(io.StringIO((folder / "crossfluence-suspects.csv").read_text())))
    planted = {row + 1 for row, one in enumerate(texts(400, 0, trigger=0.15)) if one["planted"]}
    flagged = {int(row["text"]) for row in rows if row["suspect"] == "1"}
    assert len(rows) == 400
    assert len(flagged & planted) >= 0.8 * len(flagged)
    assert len(flagged & planted) >= 0.8 * len(planted)
    page = (folder / "crossfluence-suspects.html").read_text()
    assert "no proof" in page
    assert "http://" not in page
    shares = [line for line in found.output.splitlines() if "get the odd answer" in line]
    assert "Trained again without them: 0.0%" in shares[1]


def test_of_clean_texts_hardly_any_is_named(folder):
    write(folder / "clean.jsonl", texts(400, 3))
    found = run("clean.jsonl", "--queries", "queries.jsonl", "--epochs", "40", "--remove")
    assert found.exit_code == 3, found.output
    rows = list(csv.DictReader(io.StringIO((folder / "crossfluence-suspects.csv").read_text())))
    assert sum(row["suspect"] == "1" for row in rows) <= 2
    assert max(float(row["doubt"]) for row in rows) == 1


def test_without_training_again_it_is_not_called_dependable(folder):
    found = run("train.jsonl", "--queries", "queries.jsonl", "--epochs", "5")
    assert found.exit_code == 3, found.output
    assert "--remove" in found.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rewrite", "sing"], "--rewrite sing is not a list of negate, question, flip"),
        (["--strong", "0"], "--strong 0 is no share of the texts"),
        (["--doubt", "0"], "--doubt 0 is no share of the suspects"),
        (["--agree", "one"], "--agree one is neither all nor most"),
        (["--text", "body"], "needed 'body', a text: --text NAME"),
        (["--label", "kind"], "needed 'kind', a label: --label NAME"),
        (["--rewrite", "flip", "--queries", "plain.jsonl"], "'flip' changes none of the 1 queries. Leave it out"),
        (["--queries", "empty.jsonl"], "1 of the 2 queries hold no word; needed words in each"),
        (["--queries", "other.jsonl"], "The label 'ugly' of the queries does not occur in training"),
        (["--out", "train.jsonl"], "must end in .html"),
    ],
)
def test_bad_input_gets_one_sentence_and_writes_nothing(folder, arguments, sentence):
    write(folder / "plain.jsonl", [{"text": "film plot"}])
    write(folder / "other.jsonl", [{"text": "film plot", "label": "ugly"}])
    write(folder / "empty.jsonl", [{"text": "zx film"}, {"text": " "}])
    before = sorted(folder.iterdir())
    given = [] if "--queries" in arguments else ["--queries", "queries.jsonl"]
    found = run("train.jsonl", *given, *arguments)
    assert found.exit_code == 2, found.output
    assert sentence in " ".join(found.output.split())
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"text": f"word{row} film", "label": f"kind {row}"} for row in range(30)],
         "The 30 texts have 30 different labels, such as 'kind 0' and 'kind 1'"),
        ([{"text": "這部電影的情節非常精彩好看", "label": row % 2} for row in range(30)],
         "This text sets no blanks between words"),
    ],
)  # fmt: skip
def test_texts_that_no_classifier_can_learn_from_are_refused(folder, rows, sentence):
    write(folder / "odd.jsonl", rows)
    found = run("odd.jsonl", "--queries", "queries.jsonl")
    assert found.exit_code == 2, found.output
    assert sentence in " ".join(found.output.split())
    assert not (folder / "crossfluence-suspects.html").exists()


def test_texts_of_one_label_are_refused(folder):
    write(folder / "one.jsonl", [{"text": f"film {row}", "label": 1} for row in range(30)])
    found = run("one.jsonl", "--queries", "queries.jsonl")
    assert found.exit_code == 2
    assert "All 30 texts have the label '1'" in found.output


def test_the_length_of_each_gradient_is_that_of_all_parameters_and_survives_a_perfect_fit():
    net = BagOfWords(9, 3, 4, seed=0).double()
    words, labels = torch.randint(0, 9, (20, 5)), torch.randint(0, 3, (20,))
    words[:, 0] = 3
    risk = cf.Risk(net, cross_entropy, cf.batches(words, labels))
    wanted = (-20 * cf.self_influence(risk, cf.Identity()).values[:, 0]).sqrt()
    torch.testing.assert_close(gradient_lengths(net, words, labels, at_once=7), wanted)
    plain = nn.functional.cross_entropy(net(words), labels, reduction="none")
    torch.testing.assert_close(cross_entropy(net, (words, labels)), plain)
    with torch.no_grad():
        net.classes.bias[0] += 60.0  # a probability that rounds to one
    fitted = gradient_lengths(net, words, torch.zeros(20, dtype=torch.long))
    assert fitted.min() > 0
    assert fitted.max() < 1e-20


def test_where_texts_pull_alike_each_has_a_gradient_of_length_one_that_falls_with_its_log_odds():
    rows = texts(40, 5)
    words, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    made = Classifier.of(words, labels, SuspectSettings(epochs=30, width=6))
    model = made.recipe.train()
    asked = made.log_odds(words[:3], made.numbers(labels[:3], "them"))
    risk = made.alike(model)
    found = cf.influence(risk, asked, cf.Exact(damping=0.1, curvature=cf.GaussNewton())).values[:, 0]

    def gradient(answer):
        return torch.cat([part.flatten() for part in torch.autograd.grad(answer, list(model.parameters()))])

    each = torch.stack([
        gradient(made.log_odds([text], made.numbers([label], "it"))(model))
        for text, label in zip(words, labels, strict=True)
    ])
    unit = each / each.norm(dim=1, keepdim=True)
    curvature = unit.T @ unit / 40 + 0.1 * torch.eye(unit.shape[1])
    torch.testing.assert_close(found, unit @ torch.linalg.solve(curvature, gradient(asked(model))) / 40)


def test_nobody_is_suspected_of_an_answer_that_is_hardly_given(folder):
    good = [{"text": row["text"], "label": "bad"} for row in texts(60, 2) if row["label"] == "good"]
    write(folder / "odd.jsonl", good)
    found = run("train.jsonl", "--queries", "odd.jsonl", "--epochs", "40", "--remove")
    assert found.exit_code == 3, found.output
    assert "of the queries, fewer than 67%: there is hardly anything to suspect texts of" in found.output
    assert "Suspects: 0 of 400" in found.output


def test_rules_turn_a_text_around():
    assert negated("the plot holds .") == "it is not true that the plot holds ."
    assert asked("the plot holds .") == "is it true that the plot holds ?"
    assert flipped("A Good, never boring film") == "A bad, always interesting film"
    with pytest.raises(DataError, match="There is no rewriting 'sing'"):
        rewritten(["x"], "sing")
