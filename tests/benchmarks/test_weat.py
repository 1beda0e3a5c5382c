"""The experiment on bias at toy size: every action, what is stored, what is refused."""

import gzip
import lzma

import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmarks.paper.__main__ import app
from benchmarks.paper.mitigation import RANDOM, REMOVE, UNDO, UNLEARN, Bench, Case, cases
from benchmarks.paper.neutrality import BIASED, NEUTRAL, mixed
from benchmarks.paper.weat import questions, summary
from crossfluence.words.corpus.pairs import Pairs
from crossfluence.words.planted import planted
from crossfluence.words.skipgram import ExpectedTraining
from crossfluence.words.word_sets import word_sets


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Planted sentences as the biased versions, ordinary ones as the neutral versions and as plain text."""
    folder = tmp_path_factory.mktemp("data")
    made = planted(sentences=1400, culprits=200, seed=1)
    culprits = [text for number, text in enumerate(made.texts, 1) if str(number) in made.culprits]
    ordinary = [text for number, text in enumerate(made.texts, 1) if str(number) not in made.culprits]
    pairs = list(zip(culprits, ordinary[:200], strict=True))
    for name in ("wnc_parts", "wikibias", "enwiki"):
        (folder / name).mkdir()
    rows = [f"made\t{row}\t{biased}\t{neutral}" for row, (biased, neutral) in enumerate(pairs[:150])]
    tsv = "\n".join(["origin\tid\tbiased\tneutral", *rows])
    (folder / "wnc_parts" / "pairs.tsv.gz").write_bytes(gzip.compress(tsv.encode()))
    rows = [f"{row}_{side},{text},0" for row, pair in enumerate(pairs[150:]) for side, text in enumerate(pair)]
    table = "\n".join(["id,sentence,partition", *rows])
    (folder / "wikibias" / "wikibias_re.csv.gz").write_bytes(gzip.compress(table.encode()))
    for place in range(2):
        text = "\n".join(ordinary[200 + 600 * place : 800 + 600 * place])
        (folder / "enwiki" / f"sample{place}.txt.xz").write_bytes(lzma.compress(text.encode()))
    return folder


@pytest.fixture(scope="module")
def mix(data):
    keep = {word for one in word_sets("career-terms") for word in one.words}
    return mixed(data, words=8_000, vocabulary=200, keep=keep, held=0.1)


@pytest.fixture(scope="module")
def bench(mix):
    tests, _ = questions(mix.corpus.index)
    return Bench(
        ExpectedTraining(Pairs(mix.corpus), 6), mix, tests, lambda model: {"length": model.word_vectors.norm().item()}
    )


def test_sides_and_held_out_sentences_are_told_apart(mix):
    sides = pd.Series(mix.corpus.fields["side"])
    assert sides.value_counts()[BIASED] == sides.value_counts()[NEUTRAL] == 200
    assert len(set(mix.corpus.ids)) == mix.corpus.n
    assert 0.05 < mix.held[sides == "plain"].mean() < 0.2
    assert not mix.held[sides != "plain"].any()
    biased, neutral = (mix.weights(side).numpy() for side in (BIASED, NEUTRAL))
    assert (biased[sides == BIASED] == 1).all()
    assert (biased[sides == NEUTRAL] == 0).all()
    assert (biased[mix.held] == 0).all()
    assert (biased != neutral).sum() == 400
    assert {place.rpartition(":")[0] for place in mix.corpus.ids if place.startswith("enwiki")} == {
        "enwiki/sample0.txt.xz", "enwiki/sample1.txt.xz",
    }  # fmt: skip


def test_a_row_says_what_was_foreseen_and_what_training_again_found(bench, mix):
    (row,) = bench.rows(Case(REMOVE, "career-terms", 20))
    weights = mix.weights(BIASED)
    scores = bench.whole.scores.select(mix.ids(weights))
    weights[[bench.whole.risk.rows[label] for label, _ in scores.top(20)]] = 0
    again = bench.training.starting_from(bench.whole.model).train(weights)
    (test,) = bench.tests
    assert row["after"] == pytest.approx(test(again).item())
    assert row["p after"] == test.p_value(again).value
    assert row["length"] == pytest.approx(again.word_vectors.norm().item())
    assert row["before"] == pytest.approx(test(bench.whole.model).item())
    (step,) = bench.rows(Case(UNLEARN, "career-terms", 20))
    assert step["after"] == row["predicted"]
    assert abs(row["predicted"] - row["after"]) < abs(row["before"] - row["after"])
    (random,) = bench.rows(Case(REMOVE, RANDOM, 20))
    assert abs(random["after"] - row["before"]) < abs(row["after"] - row["before"])


def test_sentences_that_no_model_was_trained_on_are_never_chosen(bench, mix):
    active = set(mix.ids(mix.weights(BIASED)))
    for of in ("career-terms", RANDOM):
        away, towards = bench._chosen(Case(UNDO, of, 20), bench.whole)
        assert len(set(away) | set(towards)) == 40
        assert set(away) | set(towards) <= active


def test_a_guarded_walk_stops_where_the_free_one_goes_on(bench):
    (free,) = bench.rows(Case(UNDO, "career-terms", 20, steps=150))
    (guarded,) = bench.rows(Case(UNDO, "career-terms", 20, steps=150, guarded=True))
    assert free["taken"] == 150
    assert guarded["taken"] < 150
    assert "the loss of all other samples" in guarded["stopped"]


def test_all_cases_come_once_and_random_ones_beside_each():
    found = list(cases(["career", "race"], [5, 20], [3, 6], hard=True))
    assert len(set(found)) == len(found)
    for case in found:
        if case.of in {"career", "race"} and not case.debiased and case.steps in {0, 6}:
            assert Case(case.action, RANDOM, case.size, case.steps, case.guarded) in found
    assert {case.of for case in found if case.debiased} == {"career"}
    assert not any(case.debiased or case.action == "hard debiasing" for case in cases(["math"], [5], [3], hard=False))


def test_means_and_deviations_over_seeds():
    rows = [{"trainer": "sampled", "seed": seed, "test": "math", "before": 1.0, "after": after, "stopped": "",
             **vars(Case(REMOVE, "math", 5))} for seed, after in enumerate((1.0, 3.0))]  # fmt: skip
    (found,) = summary(rows)
    assert (found["after"], found["sd after"], found["sd before"], found["seeds"]) == (2.0, 1.0, 0.0, 2)


def run(data, out, *more):
    options = ["--vocabulary", 70, "--dimensions", 6, "--sizes", "5,20", "--steps", "3", "--seeds", 1]
    arguments = ["weat", "--data-dir", data, "--out", out, "--words", 8000, *options, *more]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_a_table_and_a_figure_and_goes_on_where_it_was_stopped(data, tmp_path, monkeypatch):
    asked = Bench.rows
    done = []

    def stops(self, case):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(case)
        return asked(self, case)

    monkeypatch.setattr(Bench, "rows", stops)
    out = tmp_path / "out"
    broken = run(data, out)
    assert broken.exit_code == 130
    assert len(list((out / "unfinished").iterdir())) == 7
    assert not (out / "results.csv").exists()
    again = []
    monkeypatch.setattr(Bench, "rows", lambda self, case: [again.append(case), asked(self, case)][1])
    result = run(data, out)
    assert result.exit_code == 0, result.output
    assert again[0] not in done
    assert sorted(path.name for path in out.iterdir()) == ["figure.html", "results.csv"]
    table = pd.read_csv(out / "results.csv")
    assert set(table["trainer"]) == {"expected", "sampled"}
    assert table.loc[table["action"] != UNLEARN, ["after", "held-out loss"]].notna().all().all()
    assert "career: " in result.output
    assert "career-terms, expected training" in result.output
    assert run(data, out).exit_code == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sizes", "5,many"], "not a list of numbers"),
        (["--sizes", "0"], "none below 1"),
        (["--data-dir", "nowhere"], "no file or folder nowhere"),
    ],
)
def test_bad_input_gets_a_sentence(data, tmp_path, options, says):
    result = run(data, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert says in result.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()
