"""Times foretold without training, and without waiting for PyTorch; corpora and tables known from their beginning."""

import gzip
import json
import random
import subprocess
import sys

import numpy as np
import pytest
from small_model import write_model
from typer.testing import CliRunner

from crossfluence.app import app, forecast
from crossfluence.app import forecast_words as forecast_words_of
from crossfluence.app.forecast import Forecast, forecast_clusters
from crossfluence.app.forecast_words import BEGINNING, Extent, beginning, forecast_words
from crossfluence.app.table_files import HEAD, share_in_head
from crossfluence.clustering.explain import ClusterSettings
from crossfluence.clustering.settings import ClusterSettings as Settings
from crossfluence.words.corpus.vocabulary import read_corpus
from crossfluence.words.explain_bias import WordsSettings

QUIET = """
import sys
from crossfluence.app import app, forecast
from crossfluence.app import forecast_words as forecast_words_of
try:
    app(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
slow = {"torch", "sklearn", "transformers", "scipy"} & set(sys.modules)
assert not slow, slow
"""


def texts(count):
    draw = random.Random(0)
    words = ["he", "him", "his", "man", "she", "her", "hers", "woman", "office", "salary", "home", "family", "the", "a"]
    return [" ".join(draw.choices(words, k=9)) for _ in range(count)]


def rows(count):
    draw = np.random.default_rng(0)
    return "\n".join(["a,b,c", *(",".join(f"{cell:.5f}" for cell in row) for row in draw.normal(size=(count, 3)))])


@pytest.mark.parametrize("command", [["demo"], ["clusters", "t.csv"], ["clusters", "long.csv.gz"], ["words", "t.txt"],
    ["language", "model", "texts.jsonl", "--ask", "ask.jsonl"],
    ["language", "model", "texts.jsonl", "--bias", "ask.jsonl", "--train", "--remove", "2"]])  # fmt: skip
def test_a_plan_loads_neither_pytorch_nor_scikit_learn(tmp_path, command):
    if command[0] == "language":
        write_model(tmp_path)
    (tmp_path / "t.csv").write_text(rows(50))
    (tmp_path / "long.csv.gz").write_bytes(gzip.compress(rows(30_000).encode()))
    (tmp_path / "t.txt").write_text("\n".join(texts(200)))
    more = ["--weat", "own.json"] if command[0] == "words" else []
    (tmp_path / "own.json").write_text(json.dumps(
        {"X": ["he", "him"], "Y": ["she", "her"], "A": ["office", "salary"], "B": ["home", "family"]}
    ))  # fmt: skip
    subprocess.run([sys.executable, "-c", QUIET, *command, *more, "--plan"], cwd=tmp_path, check=True)


def test_rows_of_a_long_table_are_told_from_its_beginning_packed_or_not(tmp_path):
    text = rows(40_000).encode()
    assert len(text) > HEAD
    (tmp_path / "t.csv").write_bytes(text)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text))
    (tmp_path / "short.csv").write_text(rows(10))
    assert share_in_head(tmp_path / "t.csv") == pytest.approx(HEAD / len(text))
    assert share_in_head(tmp_path / "t.csv.gz") == pytest.approx(HEAD / len(text), rel=0.1)
    assert share_in_head(tmp_path / "short.csv") == 1.0
    assert share_in_head(tmp_path / "none.csv") == 1.0
    ran = CliRunner().invoke(app, ["clusters", str(tmp_path / "t.csv.gz"), "--plan"])
    assert ran.exit_code == 0, ran.output
    count = int(ran.output.partition("of about ")[2].partition(" rows")[0].replace(",", ""))
    assert count == pytest.approx(40_000, rel=0.1)


def test_the_size_of_a_long_corpus_is_told_from_its_beginning(tmp_path):
    lines = texts(40_000)
    (tmp_path / "t.txt").write_text("\n".join(lines))
    assert (tmp_path / "t.txt").stat().st_size > 2 * BEGINNING
    reading = {"format": None, "column": None, "split": "lines", "encoding": "utf-8"}
    options = {"tokenizer": "words", "min_count": 5, "max_words": 1000}
    part, extent = beginning(tmp_path / "t.txt", reading=reading, keep=set(), **options)
    whole = Extent.of(read_corpus(tmp_path / "t.txt", **options))
    assert part.n < whole.sentences
    assert extent.words == whole.words
    assert extent.sentences == pytest.approx(whole.sentences, rel=0.05)
    assert extent.tokens == pytest.approx(whole.tokens, rel=0.05)
    assert "were read" in str(extent)
    assert "were read" not in str(whole)


def test_a_longer_run_is_foretold_longer(monkeypatch):
    for module in (forecast, forecast_words_of):
        monkeypatch.setattr(module, "seconds_of", lambda work, **_: 1e-3)
    settings = ClusterSettings(k=3)
    assert forecast_clusters(40_000, 6, settings).seconds > forecast_clusters(20_000, 6, settings).seconds
    small, large = Extent(1_000, 9_000, 500), Extent(50_000, 900_000, 4_000)
    assert forecast_words(large, 1, WordsSettings()).seconds > forecast_words(small, 1, WordsSettings()).seconds
    further = WordsSettings(further=(10, 20))
    assert forecast_words(large, 1, further).seconds > 1.1 * forecast_words(large, 1, WordsSettings()).seconds


def test_settings_are_one_class_and_a_short_time_is_said_in_seconds():
    assert Settings is ClusterSettings
    assert str(Forecast(7.2, 1.0)) == "About 7 s and 1.0 GiB."
    assert str(Forecast(89.0, 1.0)) == "About 89 s and 1.0 GiB."
