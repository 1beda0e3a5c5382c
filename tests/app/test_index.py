"""The commands `index build`, `ask` and `info`: the scores of `influence`, exit codes, one sentence for bad input."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from language_models import WORDS, llama, tokenizer
from small_model import lines, write_model
from typer.testing import CliRunner

import crossfluence as cf
from crossfluence._index import shards
from crossfluence._storage import atomic
from crossfluence.app import app
from crossfluence.language.loading import load, read_questions

pytestmark = [
    pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["index", *map(str, arguments)])


def build(*more):
    return run("build", "model", "texts.jsonl", "texts.index", *more)


def wanted(texts):
    """The scores of `influence` with the same settings."""
    loaded = load("model")
    encoded = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    risk = cf.Risk(loaded.model, loaded.loss, cf.batches(dict(encoded), size=8))
    questions = read_questions(Path("ask.jsonl"), loaded.tokenizer)
    return cf.influence(risk, lambda model: {name: one(model) for name, one in questions.items()}, cf.EKFAC())


def test_an_index_is_built_and_asked_without_its_texts(folder):
    texts = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    scores = wanted(texts)
    assert build("--dtype", "float32").exit_code == 0
    (folder / "texts.jsonl").rename(folder / "gone.jsonl")
    found = run("ask", "texts.index", "model", "ask.jsonl")
    assert found.exit_code in {0, 3}, found.output
    assert found.output.startswith("These scores can")
    assert f"he or she: {scores.report.values[0]:.4f}." in found.output
    first, value = scores.top(1, "he or she")[0]
    assert f"Raise it most: text {first + 1} ({value:+.4g})" in found.output
    rows = list(csv.DictReader(io.StringIO((folder / "crossfluence-index.csv").read_text())))
    assert sorted(int(row["text"]) for row in rows) == list(range(1, 13))
    for row in rows:
        for column, name in enumerate(scores.objectives):
            one = float(scores.values[int(row["text"]) - 1, column])
            assert float(row[name]) == pytest.approx(one, rel=1e-3, abs=1e-5 * float(scores.values.abs().max()))


def test_the_texts_are_printed_if_they_are_given_and_json_says_the_same(folder):
    build()
    found = run("ask", "texts.index", "model", "ask.jsonl", "--texts", "texts.jsonl", "--top", 1)
    assert found.exit_code in {0, 3}, found.output
    assert "Raise it most: “" in found.output
    assert "Warning" not in found.output
    plain = run("ask", "texts.index", "model", "ask.jsonl", "--json", "--top", 1, "--force", "--share", 0.9)
    assert plain.exit_code == found.exit_code
    content = json.loads(plain.output)
    assert content["level"] in {"sizes", "order", "unreliable"}
    assert list(content["questions"]) == ["he or she", "pronouns"]
    assert len(content["questions"]["pronouns"]["raises"]) == 1


def test_texts_in_another_order_are_printed_with_a_warning(folder):
    build()
    rows = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    lines(folder / "turned.jsonl", rows[::-1])
    found = run("ask", "texts.index", "model", "ask.jsonl", "--texts", "turned.jsonl")
    assert "Warning: turned.jsonl could not be recognised as the texts" in found.output


def test_info_needs_no_model(folder):
    build("--dtype", "int8", "--tolerance", "0.2")
    shutil.rmtree(folder / "model")
    said = run("info", "texts.index").output
    assert "samples: 12\n" in said
    assert "dtype: int8\n" in said
    assert json.loads(run("info", "texts.index", "--json").output)["tolerance"] == 0.2


def test_a_build_that_was_stopped_goes_on(folder, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1_000)
    write, count = atomic.os.replace, iter(range(100))

    def stopping(source, target):
        if next(count) == 8:
            raise KeyboardInterrupt
        write(source, target)

    monkeypatch.setattr(atomic.os, "replace", stopping)
    found = build()
    assert found.exit_code == 130, found.output
    assert "are kept in texts.index; the same command goes on from there." in found.output
    asked = run("ask", "texts.index", "model", "ask.jsonl")
    assert asked.exit_code == 2
    assert "is not finished" in asked.output
    assert "Run the same crossfluence index build again" in " ".join(asked.output.split())
    assert build().exit_code == 0
    assert json.loads(run("info", "texts.index", "--json").output)["samples"] == 12


@pytest.mark.parametrize(("arguments", "words"), [
    (["build", "model", "texts.jsonl", "new", "--dtype", "int2"], "needed one of float32, float16, int8, int4, sign"),
    (["build", "model", "texts.jsonl", "new", "--tolerance", "2"], "--tolerance 2; needed a share"),
    (["build", "missing", "texts.jsonl", "new"], "No model could be loaded from missing"),
    (["build", "model", "missing.jsonl", "new"], "no file missing.jsonl"),
    (["build", "model", "texts.jsonl", "a/b"], "Make its parent first"),
    (["build", "model", "texts.jsonl", "model"], "holds other files"),
    (["build", "model", "texts.jsonl", "texts.index", "--dtype", "sign"], "dtype (float16, now sign)"),
    (["build", "other", "texts.jsonl", "texts.index"], "What differs, by content hash or value: model"),
    (["info", "nowhere"], "it does not exist. Make one: crossfluence index build MODEL TEXTS nowhere."),
    (["info", "model"], "model is no index: it has no manifest.json"),
    (["ask", "nowhere", "model", "ask.jsonl"], "is no index"),
    (["ask", "texts.index", "missing", "ask.jsonl"], "No model could be loaded from missing"),
    (["ask", "texts.index", "other", "ask.jsonl"], "other weights or buffers"),
    (["ask", "texts.index", "small", "ask.jsonl"], "is of another model"),
    (["ask", "texts.index", "model", "missing.jsonl"], "no file missing.jsonl"),
    (["ask", "texts.index", "model", "ask.jsonl", "--share", "7"], "--share 7; needed a share"),
    (["ask", "texts.index", "model", "ask.jsonl", "--texts", "few.txt"], "few.txt holds 1 texts; the index holds 12"),
    (["ask", "texts.index", "model", "ask.jsonl", "--out", "old.csv"], "--force"),
    (["ask", "texts.index", "model", "ask.jsonl", "--out", "page.html"], "must end in .csv"),
    (["ask", "texts.index", "model", "ask.jsonl", "--out", "texts.index/a.csv"], "lies in the folder of the index"),
    (["ask", "texts.index", "model", "unknown.jsonl"], "The tokenizer does not know 'xe'"),
    (["info", "few.txt"], "it is a file"),
    (["build", "model", "texts.jsonl", "few.txt"], "Name another folder."),
    (["ask", "torn.index", "model", "ask.jsonl"], "rows-00000.safetensors has"),
    (["ask", "newer.index", "model", "ask.jsonl"], "pip install --upgrade crossfluence"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_nothing_is_written(folder, arguments, words):
    build()
    (folder / "old.csv").write_text("mine")
    (folder / "few.txt").write_text("the nurse\n")
    lines(folder / "unknown.jsonl", [{"template": "the nurse said that {he/xe} was late"}])
    other, small = llama().float(), llama(vocab_size=len(WORDS) + 1).float()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    for name, model in (("other", other), ("small", small)):
        model.save_pretrained(name)
        tokenizer().save_pretrained(name)
    for name in ("torn.index", "newer.index"):
        shutil.copytree("texts.index", name)
    rows = folder / "torn.index" / "rows-00000.safetensors"
    rows.write_bytes(rows.read_bytes()[:-9])
    listed = folder / "newer.index" / "manifest.json"
    listed.write_text(listed.read_text().replace("crossfluence.index/1", "crossfluence.index/9"))
    before = sorted(path.name for path in folder.rglob("*"))
    found = run(*arguments)
    assert found.exit_code == 2, found.output
    assert words in " ".join(found.output.split())
    assert found.output.startswith("crossfluence: ")
    assert "Traceback" not in found.output
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert (folder / "old.csv").read_text() == "mine"
