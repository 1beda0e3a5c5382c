"""The explorer on a result of `words`: tests and words as questions, and a person with a browser."""

import csv
import io
import os
import signal

import pytest
import torch
from browser import CHROMIUM
from served import HOST, TOKEN, ended, post
from typer.testing import CliRunner

from crossfluence import app as cli
from crossfluence import influence, leave_out
from crossfluence.app.explore.result import read_result
from crossfluence.app.explore.words_result import WordsResult, keep_words
from crossfluence.errors import ResultFileError
from crossfluence.words import ExpectedTraining, Pairs, WordsSettings, weat, word_sets
from crossfluence.words.planted import planted

pytest.importorskip("starlette")
pytest.importorskip("httpx2")

from starlette.testclient import TestClient

from crossfluence.app.explore.command import _application
from crossfluence.app.explore.guard import HEADERS, Guard
from crossfluence.app.explore.jobs import Jobs

EVIL = '<img src=x onerror="document.title=1">'
SETTINGS = WordsSettings(dimensions=6)
TEST = {"kind": "test", "name": "career-terms"}


@pytest.fixture(scope="module")
def made():
    text = planted(sentences=500, culprits=40)
    training = ExpectedTraining(Pairs(text.corpus, SETTINGS.sampling), 6, prior=SETTINGS.prior, seed=0)
    return text, training, training.train()


@pytest.fixture
def folder(made, tmp_path):
    text, _, model = made
    texts = [*text.texts[:1], f"{EVIL} {text.texts[1]}", *text.texts[2:]]
    shown = ["=1+1", *(f"line {row}" for row in range(1, len(texts)))]
    keep_words(WordsResult(
        tmp_path / "w.result", text.corpus, model, SETTINGS, texts, shown, word_sets("career-terms"), "", 4,
        f"t.txt {EVIL}", "These scores can be relied on.", "sizes", "crossfluence words",
    ))  # fmt: skip
    return tmp_path / "w.result"


@pytest.fixture
def client(folder):
    jobs = Jobs()
    application = _application(read_result(folder), jobs)
    yield TestClient(Guard(application.routes(), [HOST], TOKEN), base_url=f"http://{HOST}/{TOKEN}")
    jobs.close()


def listed(client, question=TEST, **more):
    return post(client, "listed", **question, page=0, sign=0, falling=True, by="score", **more).json()


def test_a_test_is_answered_as_influence_says_and_its_sentences_are_listed_in_order(client, made):
    text, training, model = made
    first = client.get("api/result").json()
    assert (first["n"], first["tests"], first["first"]) == (540, ["career-terms"], TEST)
    asked = weat(word_sets("career-terms")[0], text.corpus.index, least=SETTINGS.least).held_at(model)
    answer = post(client, "answer", **TEST).json()
    assert answer["value"] == pytest.approx(float(asked(model).detach()))
    assert "career" not in answer["marked"]["target"]
    assert "he" in answer["marked"]["target"] + answer["marked"]["other"]
    scores = influence(training.risk(model), asked).values[:, 0]
    found = listed(client)
    assert (found["count"], found["pages"]) == (540, 22)
    strongest = scores.abs().argsort(descending=True).tolist()[:25]
    assert [one["row"] for one in found["rows"]] == strongest
    torch.testing.assert_close(
        torch.tensor([one["score"] for one in found["rows"]]).double(), scores[strongest].double(), rtol=1e-4, atol=1e-9
    )
    top = post(client, "strongest", **TEST, sign=1, many=3).json()["rows"]
    assert top == scores.argsort(descending=True).tolist()[:3]


def test_sentences_are_searched_by_text_id_effect_and_tick(client):
    assert {one["row"] for one in listed(client, find="LINE 17")["rows"]} == {17, *range(170, 180)}
    assert listed(client, find="=1+1")["count"] == 1
    assert listed(client, find="onerror")["rows"][0]["text"].startswith(EVIL)
    raises, lowers = (
        post(client, "listed", **TEST, page=0, sign=sign, by="score", falling=True).json()["count"] for sign in (1, -1)
    )
    assert 0 < raises + lowers <= 540
    assert listed(client, only=True, chosen=[3, 9], find="line")["count"] == 2
    numbered = post(client, "listed", **TEST, page=1, sign=0, by="id", falling=False).json()
    assert [one["row"] for one in numbered["rows"]] == list(range(25, 50))


def test_prediction_and_training_again_stand_beside_each_other_and_are_kept(client, made, folder):
    text, training, model = made
    rows = post(client, "strongest", **TEST, sign=1, many=8).json()["rows"]
    summed = post(client, "predict", **TEST, chosen=rows).json()
    assert summed["newton"] is None
    newton = post(client, "predict", **TEST, chosen=rows, newton=True).json()["newton"]
    job = ended(client, post(client, "act", **TEST, chosen=rows, action="remove").json()["job"])
    assert job["state"] == "done", job
    assert job["done"] > 0
    entry = job["result"]
    asked = weat(word_sets("career-terms")[0], text.corpus.index, least=SETTINGS.least).held_at(model)
    truth = leave_out(
        training.starting_from(model), asked, {"g": [text.corpus.ids[row] for row in sorted(rows)]}, n=text.corpus.n,
        ids=text.corpus.ids,
    )  # fmt: skip
    assert entry["achieved"] == pytest.approx(-float(truth.values[0, 0]), abs=1e-6)
    assert entry["predicted"] == pytest.approx(summed["sum"])
    assert entry["newton"] == pytest.approx(newton)
    assert abs(newton - entry["achieved"]) < 0.3 * abs(entry["achieved"])
    assert "With its own spread the effect size is then" in entry["said"]
    assert post(client, "act", **TEST, chosen=rows, action="remove").json() == {"job": None, "entry": entry}
    assert "test career-terms, value" in (folder / "tried.md").read_text()


def test_a_word_is_a_question_too_and_undone_sentences_move_it(client):
    asked = {"kind": "word", "name": "Fox"}
    answer = post(client, "answer", **asked).json()
    assert answer["name"] == "fox"
    assert "margin in nats" in answer["said"]
    rows = post(client, "strongest", **asked, sign=1, many=5).json()["rows"]
    act = post(client, "act", **asked, chosen=rows, action="undo", steps=3, rate=1e-4).json()
    entry = ended(client, act["job"])["result"]
    assert entry["achieved"] == pytest.approx(entry["predicted"], rel=0.5)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("answer", {"kind": "test", "name": "none"}, "one of the tests career-terms"),
        ("answer", {"kind": "word", "name": "dooku"}, "dooku"),
        ("answer", {"kind": "word", "name": " "}, "or a word"),
        ("predict", {**TEST, "chosen": []}, "at least one"),
        ("predict", {**TEST, "chosen": list(range(300))}, "at most half"),
        ("predict", {**TEST, "chosen": [540]}, "from 0 to 539"),
        ("act", {**TEST, "chosen": [1], "action": "delete"}, "must be one of"),
        ("act", {**TEST, "chosen": [1], "action": "undo", "rate": 7}, "Needed 1 to 10000"),
        ("listed", {**TEST, "page": "1", "sign": 0}, "whole number for 'page'"),
    ],
)
def test_what_cannot_be_gets_one_sentence(client, path, body, said):
    reply = client.post(f"api/{path}", json=body)
    assert reply.status_code == 400
    assert said in reply.json()["said"]
    assert all(reply.headers[name] == value for name, value in HEADERS.items())


def test_chosen_sentences_and_all_others_are_exported_without_formulas(client):
    chosen, rest = (
        list(csv.reader(io.StringIO(post(client, "export", **TEST, chosen=[0, 4], which=which).text)))
        for which in ("chosen", "rest")
    )
    assert [line[0] for line in chosen] == ["id", "'=1+1", "line 4"]
    assert len(rest) == 1 + 538


def test_the_command_keeps_a_result_that_the_explorer_opens(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(planted(sentences=400, culprits=20).texts))
    line = ["words", str(tmp_path / "t.txt"), "--dimensions", "6", "--min-count", "2", "--remove", "5"]
    ran = CliRunner().invoke(cli.app, [*line, "--out", str(tmp_path / "w.html")])
    assert ran.exit_code == 0, ran.output
    assert "crossfluence explore" in ran.output
    found = read_result(tmp_path / "w.html")
    assert isinstance(found, WordsResult)
    assert (found.corpus.n, len(found.texts), found.lists[0].name) == (420, 420, "career-terms")
    assert str(found.verdict) in ran.output.replace("\n", " ")
    (tmp_path / "w.result" / "texts.json.gz").write_bytes(b"no")
    with pytest.raises(ResultFileError, match="is damaged"):
        read_result(tmp_path / "w.html")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or os.name != "posix", reason="needs chromium")
def test_a_person_asks_ticks_trains_and_exports(folder, tmp_path):
    from devtools import browsing
    from test_explore import start

    server, address = start(folder)
    try:
        with browsing(tmp_path / "user") as browser:
            page = browser.page(address)
            page.until("document.querySelectorAll('#rows tbody tr').length === 25")
            assert "effect size" in page.text("#said")
            page.type("#find", "onerror")
            page.until("document.querySelectorAll('#rows tbody tr').length === 1")
            assert "<img" in page.text("#rows tbody")
            page.type("#find", "")
            page.until("document.querySelectorAll('#rows tbody tr').length === 25")
            page.click("#strongest button")
            page.until("document.querySelector('#predicted').innerText.includes('Newton')")
            page.click("#retrain")
            page.until("document.querySelectorAll('#list tbody tr').length === 1")
            page.type("#word", "fox")
            page.click("#ask button")
            page.until("document.querySelector('#said').innerText.includes('The word fox')")
            assert page.js("document.title") == f"Explore t.txt {EVIL}"
            assert all(url.startswith((address, "data:", "about:", "blob:")) for url in browser.requested)
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
