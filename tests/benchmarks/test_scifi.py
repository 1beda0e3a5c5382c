"""The science-fiction study on a toy corpus: two questions, four actions, and which question has one answer."""

import gzip
import json
import lzma
from dataclasses import replace

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.paper import scifi as study
from benchmarks.paper.__main__ import app
from benchmarks.paper.scifi import FILES, SciFi, clustered_again, scifi_corpus, scifi_study
from crossfluence._evaluation import leave_out
from crossfluence.errors import CorpusError, ResultFileError
from crossfluence.words.explain_word import clustered
from crossfluence.words.planted import planted
from crossfluence.words.skipgram import SkipGram

TOY = SciFi(
    ("river", "bread", "zulu"),
    sentences=(1, 4), steps=(2, 5), clusters=3, vocabulary=60, least=4, dimensions=4, prior=3.0,
)  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.NotConvergedWarning")  # the paper's question


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The three files, each with a third of the planted corpus."""
    folder = tmp_path_factory.mktemp("scifi")
    texts = planted(sentences=400, culprits=20).texts
    for number, (name, column) in enumerate(FILES.items()):
        rows = "".join(json.dumps({column: text, "title": "a"}) + "\n" for text in texts[number::3])
        pack = lzma.compress if name.endswith("xz") else gzip.compress
        (folder / name).write_bytes(pack(rows.encode()))
    return folder


@pytest.fixture(scope="module")
def found(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "study"
    return scifi_study(data, out, TOY), out


def test_the_corpus_is_all_files_and_no_two_sentences_share_an_id(data):
    corpus = scifi_corpus(data, TOY)
    assert corpus.n == 420
    assert {label.partition(":")[0] for label in corpus.ids} == {name.partition(".")[0] for name in FILES}
    assert "river" in corpus.index
    assert "zulu" not in corpus.index


def test_every_action_is_there_for_every_word_the_corpus_has(found):
    result, out = found
    table = pd.read_csv(out / "results.csv")
    assert len(table) == len(result.rows)
    assert set(table["word"]) == {"river", "bread"}
    counts = table.groupby(["word", "question"])["action"].value_counts()
    for word in ("river", "bread"):
        for question in ("moved", "margin"):
            assert counts[word, question].to_dict() == {
                "whole corpus": 1, "without the top": 2, "without random ones": 1, "undo": 4, "amplify": 4,
            }  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == [
        "clusters.csv", "determined.csv", "figure.html", "results.csv",
    ]  # fmt: skip
    assert sum(row["words"] for row in result.clusters) == 60
    assert -1 < result.silhouette < 1


def test_newton_steps_on_the_margin_predict_what_training_again_finds(found):
    rows = [row for row in found[0].rows if row["question"] == "margin" and row["action"].startswith("without")]
    change = torch.tensor([[row["newton"] - row["before"], row["after"] - row["before"]] for row in rows])
    assert torch.corrcoef(change.T)[0, 1] > 0.95
    top = [row for row in rows if row["action"] == "without the top"]
    assert all(row["after"] < row["before"] for row in top)


def test_undoing_and_amplifying_move_the_margin_in_opposite_ways(found):
    table = pd.DataFrame(found[0].rows).query("question == 'margin'")
    change = (table["after"] - table["before"]).groupby([
        table[name] for name in ("word", "action", "sentences", "steps")
    ])
    change = change.first()
    for word, count, steps in change.xs("undo", level="action").index:
        assert change[word, "undo", count, steps] * change[word, "amplify", count, steps] < 0


def test_the_margin_hangs_on_the_data_alone_and_the_distance_from_the_start_on_the_path(found):
    table = pd.DataFrame(found[0].determined).set_index(["trained", "word"])
    whole, other = table.loc["as above"], table.loc["another seed"]
    assert (whole["margin"] - other["margin"]).abs().max() < 1e-5
    assert (whole["length"] - other["length"]).abs().max() < 1e-3
    assert (whole["moved"] - other["moved"]).abs().min() > 0.02
    cold, warm = table.loc["without 10 random sentences"], table.loc["the same, from the trained model"]
    assert (cold["margin"] - warm["margin"]).abs().max() < 1e-5
    assert (cold["moved"] - warm["moved"]).abs().max() > 1e-3


def test_clusters_keep_their_numbers_when_the_space_is_turned():
    model = SkipGram.initial([f"w{number}" for number in range(40)], 5, seed=3)
    members = clustered(model, 4, seed=0)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    turned = SkipGram(model.words, model.word_vectors.detach() @ turn, model.context_vectors.detach() @ turn)
    before = {word: number for number, words in enumerate(members) for word in words}
    assert clustered_again(model, members) == before
    assert clustered_again(turned, members) == before


def test_a_stopped_study_goes_on_and_gives_what_an_unbroken_one_gives(data, found, tmp_path, monkeypatch):
    out = tmp_path / "study"

    def stops(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(study, "amplify", stops)
        with pytest.raises(KeyboardInterrupt):
            scifi_study(data, out, TOY)
    assert not list(out.glob("*.csv"))
    monkeypatch.setattr(study, "influence", stops)  # scores, retrainings and steps are kept
    monkeypatch.setattr(study, "newton_step", stops)
    monkeypatch.setattr(leave_out, "retrained_values", stops)
    scifi_study(data, out, TOY)
    assert (out / "results.csv").read_text() == (found[1] / "results.csv").read_text()


def test_what_cannot_be_done_is_refused_before_anything_is_written(data, found, tmp_path):
    with pytest.raises(ResultFileError, match="--force"):
        scifi_study(data, found[1], TOY)
    with pytest.raises(CorpusError, match="wookieepedia_characters"):
        scifi_study(tmp_path, tmp_path / "out", TOY)
    with pytest.raises(CorpusError, match="zulu occurs 4 times"):
        scifi_study(data, tmp_path / "out", replace(TOY, words=("zulu",)))
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_tables(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        study, "SciFi", lambda seed: replace(TOY, seed=seed, words=("river",), sentences=(2,), steps=(2,))
    )
    (tmp_path / "scifi").symlink_to(data)
    line = ["scifi", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert "with river" in result.output
    assert "another seed" in result.output
    assert CliRunner().invoke(app, line).exit_code == 2
