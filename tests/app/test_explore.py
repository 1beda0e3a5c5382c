"""The explorer: what comes in, what it answers, what it keeps; and a person with a browser."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from browser import CHROMIUM
from grid import normal
from served import HOST, TOKEN, ended, post
from typer.testing import CliRunner

from crossfluence import app as cli
from crossfluence import influence, leave_out
from crossfluence.app.explore.result import Result, keep, read_result
from crossfluence.app.report.page import Samples
from crossfluence.clustering import ClusterSettings, margin, settled
from crossfluence.errors import ResultFileError

pytest.importorskip("starlette")
pytest.importorskip("httpx2")

from starlette.testclient import TestClient

from crossfluence.app.explore.engine import Engine
from crossfluence.app.explore.guard import HEADERS, Guard
from crossfluence.app.explore.jobs import Jobs, Stopped
from crossfluence.app.explore.server import Application
from crossfluence.app.explore.tried import TriedList

X = 0.5 * normal(60, 2, seed=0) + torch.tensor([[0.0, 0.0], [4.0, 4.0], [4.0, -4.0]])[torch.arange(60) % 3]
EVIL = '<img src=x onerror="document.title=1">'
IDS = ("=1+1", EVIL, *(f"r{row}" for row in range(2, 60)))


@pytest.fixture(scope="module")
def found():
    return settled(X, IDS, ClusterSettings(3, pretraining=30, steps=80))


@pytest.fixture
def folder(found, tmp_path):
    samples = Samples(f"t.csv {EVIL}", "row", columns=("u", f"v{EVIL}"), values=X, remarks=("Columns used: u, v.",))
    keep(Result(tmp_path / "t.result", found, samples, 3, "These scores can be relied on.", "sizes", "crossfluence"))
    return tmp_path / "t.result"


@pytest.fixture
def served(folder):
    result = read_result(folder)
    jobs = Jobs()
    made = Application(Engine(result), jobs, TriedList(folder, result.samples.title, "row"))
    yield made
    jobs.close()


@pytest.fixture
def client(served):
    return TestClient(Guard(served.routes(), [HOST], TOKEN), base_url=f"http://{HOST}/{TOKEN}")


# What comes in.


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("api/result", {}, 200),
        ("api/result", {"host": "localhost:8000"}, 403),  # only the names that were given
        ("api/result", {"host": "evil.example"}, 403),
        ("api/result", {"origin": "http://evil.example"}, 403),
        ("api/result", {"origin": "null"}, 403),
        ("api/result", {"origin": f"http://{HOST}"}, 200),
        ("api/result", {"sec-fetch-site": "cross-site"}, 403),
        ("api/result", {"sec-fetch-site": "same-site"}, 403),
        (f"http://{HOST}/api/result", {}, 403),
        (f"http://{HOST}/wrong/api/result", {}, 403),
        (f"http://{HOST}/", {}, 403),
        ("api/nothing", {}, 404),
        ("../pyproject.toml", {}, 403),
        ("explore.js/../../server.py", {}, 403),
    ],
)
def test_only_its_own_pages_with_its_token_come_in(client, path, headers, status):
    reply = client.get(path, headers=headers)
    assert reply.status_code == status
    assert all(reply.headers[name] == value for name, value in HEADERS.items())
    assert status == 200 or "r2" not in reply.text


def test_what_is_sent_must_be_short_json(client):
    line = {"content": b"{}", "headers": {"content-type": "text/plain"}}
    assert client.post("api/answer", **line).status_code == 415
    assert client.post("api/answer", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert client.post("api/answer", json={"row": "x" * 5_000_000}).status_code == 413
    unknown = iter([b"{}"])  # of unknown length
    assert client.post("api/answer", content=unknown, headers={"content-type": "application/json"}).status_code == 411
    assert client.put("api/answer", json={}).status_code == 405


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("answer", {"row": 60}, "no row number 60"),
        ("answer", {"id": "nobody"}, "No row has the id 'nobody'"),
        ("answer", {"row": 1, "first": 1, "second": 1}, "must be two of 0 to 2"),
        ("answer", {"row": True}, "whole number for 'row'"),
        ("answer", [], "JSON object"),
        ("rows", {"rows": [-1], "beside": 0}, "row numbers from 0 to 59"),
        ("predict", {"row": 1, "first": 0, "second": 1, "chosen": []}, "at least one"),
        ("predict", {"row": 1, "first": 0, "second": 1, "chosen": list(range(31))}, "at most half"),
        ("predict", {"row": 1, "first": 0, "second": 1, "chosen": ["1"]}, "list of row numbers"),
        ("act", {"row": 1, "first": 0, "second": 1, "chosen": [2], "action": "delete"}, "must be one of remove, undo"),
        ("act", {"row": 1, "first": 0, "second": 1, "chosen": [2], "action": "undo", "steps": 0}, "Needed 1 to 10000"),
    ],
)
def test_what_cannot_be_gets_one_sentence(client, path, body, said):
    reply = client.post(f"api/{path}", json=body)
    assert reply.status_code == 400
    assert said in reply.json()["said"]


# What it answers.


def test_an_answer_is_what_influence_says(client, found):
    answer = post(client, "answer", row=7).json()
    first, second = found.model(X)[7].topk(2).indices.tolist()
    assert (answer["first"], answer["second"]) == (first, second)
    question = margin(X[7], first, second)
    scores = influence(found.risk, question, found.inverse).values[:, 0]
    torch.testing.assert_close(torch.tensor(answer["scores"]).double(), scores, rtol=1e-5, atol=1e-12)
    assert answer["margin"] == pytest.approx(float(question(found.model).detach()))
    assert post(client, "answer", id=" r7 ").json() == answer
    other = post(client, "answer", row=7, first=second, second=first).json()
    assert other["margin"] == pytest.approx(-answer["margin"])


def test_prediction_and_training_again_stand_beside_each_other(client, found):
    asked = post(client, "answer", row=7).json()
    body = {"row": 7, "first": asked["first"], "second": asked["second"], "chosen": [4, 10, 13]}
    summed = post(client, "predict", **body).json()
    assert summed["sum"] == pytest.approx(-sum(asked["scores"][row] for row in (4, 10, 13)), rel=1e-4)
    assert summed["newton"] is None
    newton = post(client, "predict", newton=True, **body).json()["newton"]
    job = ended(client, post(client, "act", action="remove", **body).json()["job"])
    assert (job["state"], job["done"], job["total"]) == ("done", 80, 80)
    truth = leave_out(
        found.recipe, margin(X[7], asked["first"], asked["second"]), {"g": [IDS[row] for row in (4, 10, 13)]}, ids=IDS
    )
    entry = job["result"]
    assert entry["achieved"] == pytest.approx(-float(truth.values[0, 0]), abs=1e-12)
    assert entry["newton"] == pytest.approx(newton)
    assert abs(newton - entry["achieved"]) < 0.1 * abs(entry["achieved"])
    assert client.get("api/state").json()["tried"] == [entry]
    again = post(client, "act", action="remove", **body).json()
    assert again == {"job": None, "entry": entry}


@pytest.mark.parametrize("action", ["undo", "amplify"])
def test_samples_are_undone_and_amplified(client, action):
    asked = post(client, "answer", row=7).json()
    body = {"row": 7, "first": asked["first"], "second": asked["second"], "chosen": [4, 10]}
    entry = ended(client, post(client, "act", action=action, steps=5, rate=1e-4, **body).json()["job"])["result"]
    assert entry["newton"] is None
    assert entry["achieved"] == pytest.approx(entry["predicted"], rel=0.5)
    assert entry["achieved"] != 0
    assert "All 5 steps were taken" in entry["said"]


def test_chosen_rows_and_all_others_are_exported_without_formulas(client):
    asked = post(client, "answer", row=7).json()
    body = {"row": 7, "first": asked["first"], "second": asked["second"], "chosen": [0, 4]}
    chosen, rest = (
        list(csv.reader(io.StringIO(post(client, "export", which=which, **body).text))) for which in ("chosen", "rest")
    )
    assert chosen[0] == ["id", "score", "cluster", "u", f"v{EVIL}"]
    assert [line[0] for line in chosen[1:]] == ["'=1+1", "r4"]
    assert [float(cell) for cell in chosen[2][3:]] == X[4].tolist()
    assert float(chosen[2][1]) == pytest.approx(asked["scores"][4], rel=1e-5)
    assert len(rest) == 1 + 58
    assert not {"'=1+1", "r4"} & {line[0] for line in rest}


def test_rows_come_with_their_features(client):
    found = post(client, "rows", rows=[4], beside=7).json()["4"]
    assert found["features"] == [["u", f"{float(X[4, 0]):.4g}"], [f"v{EVIL}", f"{float(X[4, 1]):.4g}"]]
    assert found["text"].startswith("u ")


# What it keeps.


def test_what_was_tried_stays_and_can_be_read(client, folder):
    asked = post(client, "answer", row=1).json()
    body = {"row": 1, "first": asked["first"], "second": asked["second"], "chosen": [4]}
    ended(client, post(client, "act", action="undo", **body).json()["job"])
    text = (folder / "tried.md").read_text()
    assert re.search(r"cluster \d against \d, margin .* nats; undid 1 row \(r4\): predicted", text)
    assert "<img" not in text.replace("\\<img", "")
    assert client.get("tried.md").text == text
    assert TriedList(folder, "t", "row").entries == json.loads((folder / "tried.json").read_text())["entries"]
    (folder / "tried.json").write_text("{")
    with pytest.raises(ResultFileError, match="damaged"):
        TriedList(folder, "t", "row")


def test_many_ask_at_once_and_each_action_happens_once(client, served):
    asked = post(client, "answer", row=7).json()
    body = {"row": 7, "first": asked["first"], "second": asked["second"], "chosen": [4], "action": "remove"}

    def one(number):
        act = post(client, "act", **body).json()
        return post(client, "answer", row=number % 9).status_code, act["job"] or act["entry"]["ids"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(24)))
    assert {status for status, _ in found} == {200}
    assert all(what in (1, ["r4"]) for _, what in found)
    assert ended(client, 1)["state"] == "done"
    assert len(served.tried.entries) == 1


def test_work_is_stopped_in_the_middle_and_nothing_is_kept_of_it():
    jobs, steps = Jobs(), []

    def work(tell):
        for step in range(1, 100_000):
            steps.append(step)
            tell(step, 100_000)
            time.sleep(0.001)
        return {}

    def broken(tell):
        raise RuntimeError("no")

    job = jobs.start({"a": 1}, work)
    assert jobs.start({"a": 1}, work) is job
    waiting, failing = jobs.start({"a": 2}, work), jobs.start({"a": 3}, broken)
    while not steps:
        time.sleep(0.01)
    assert jobs.stop(waiting.number)
    assert jobs.stop(job.number)
    ends = time.monotonic() + 30
    while failing.state != "failed":
        assert time.monotonic() < ends
        time.sleep(0.01)
    assert (job.state, waiting.state, failing.said) == ("stopped", "stopped", "no")
    assert job.result is None
    assert not jobs.stop(job.number)
    jobs.close()
    with pytest.raises(Stopped):
        job.tell(1, 2)


def test_a_folder_without_a_result_is_refused_in_one_sentence(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    for path, said in ((tmp_path / "empty", "is no finished result"), (tmp_path / "no.html", "is no finished result")):
        result = CliRunner().invoke(cli.app, ["explore", str(path)])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert said in result.stderr
    (folder / "result.json").write_text("[]")
    assert "is damaged" in CliRunner().invoke(cli.app, ["explore", str(folder)]).stderr
    (folder / "result.json").write_text('{"format": "crossfluence.result/9"}')
    assert "crossfluence.result/9" in CliRunner().invoke(cli.app, ["explore", str(folder)]).stderr


# A person.


def start(folder):
    line = [sys.executable, "-c", "from crossfluence.app import main; main()", "explore", str(folder), "--no-open"]
    server = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, re.search(r"http://\S+", server.stdout.readline())[0]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or os.name != "posix", reason="needs chromium")
def test_two_people_click_choose_tick_train_and_export(folder, tmp_path):
    from devtools import browsing

    server, address = start(folder)
    rows = "#rows tbody tr"
    try:
        second = subprocess.run(
            [sys.executable, "-c", "from crossfluence.app import main; main()", "explore", str(folder), "--no-open"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert second.returncode == 2
        assert "is open already" in second.stderr
        with browsing(tmp_path / "one") as one, browsing(tmp_path / "two") as two:
            page, other = one.page(address), two.page(address)
            for each in (page, other):
                each.size(1200)
                each.until(f"document.querySelectorAll('{rows}').length === 25")
            assert page.text("#title") == f"t.csv {EVIL}"
            page.type("#ask-id", "r5")
            page.click("#ask button")
            page.until("location.hash === '#r5'")
            left, top, wide, high = page.js(
                "(() => { const box = document.querySelector('#map').getBoundingClientRect();"
                " return [box.left, box.top, box.width, box.height]; })()"
            )
            for step in range(1, 100):  # somewhere on this way there is a point
                page.press_at(left + wide * (step % 10) / 10, top + high * step / 100)
                if page.js("location.hash") != "#r5":
                    break
            page.until("!document.querySelector('#said').innerText.includes('row r5 ')")
            page.type("#ask-id", "r5")
            page.click("#ask button")
            page.until("document.querySelector('#said').innerText.includes('row r5 ')")
            page.type("#find", "r5")
            page.until(f"document.querySelectorAll('{rows}').length === 11")  # r5 and r50 to r59
            page.type("#find", "")
            page.click("#rows tbody button")
            page.until("!document.querySelector('#said').innerText.includes('row r5 ')")
            page.type("#many", "3")
            page.click("#strongest button")
            page.until("document.querySelector('#predicted').innerText.includes('by one Newton step')")
            assert page.text("#chosen-count") == "3 rows ticked."
            page.do("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "down"))
            page.click("[data-export=chosen]")
            page.click("#retrain")
            page.until("document.querySelectorAll('#list tbody tr').length === 1")
            other.until("document.querySelectorAll('#list tbody tr').length === 1")  # the second person sees it
            assert "trained again without 3 rows" in other.text("#list tbody")
            other.click("#list tbody button")
            other.until("document.querySelector('#chosen-count').innerText === '3 rows ticked.'")
            assert page.js("document.title").startswith("Explore t.csv")
            exported = tmp_path / "down" / "chosen.csv"
            ends = time.monotonic() + 60
            while not exported.exists():
                assert time.monotonic() < ends
                time.sleep(0.1)
            assert len(exported.read_text().splitlines()) == 4
            for width in (360, 1200):
                page.size(width)
                assert page.js("document.documentElement.scrollWidth") <= width
            assert not [url for url in one.requested + two.requested if not url.startswith((address, "data:", "blob:"))]
    finally:
        server.send_signal(signal.SIGINT)
        _, said = server.communicate(timeout=60)
    assert server.returncode == 130
    assert "tried.md" in said
    assert len(json.loads((folder / "tried.json").read_text())["entries"]) == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_server_that_is_stopped_in_the_middle_leaves_a_whole_list(folder, how):
    import httpx2 as httpx

    server, address = start(folder)
    asked = httpx.post(f"{address}api/answer", json={"row": 7}, timeout=60).json()
    for row in range(20, 30):
        body = {"row": 7, "first": asked["first"], "second": asked["second"], "chosen": [row], "action": "remove"}
        httpx.post(f"{address}api/act", json=body, timeout=60)
    ends = time.monotonic() + 60
    while not (folder / "tried.json").exists():
        assert time.monotonic() < ends
        time.sleep(0.01)
    server.send_signal(how)
    server.communicate(timeout=60)
    kept = TriedList(folder, "t", "row").entries
    assert 1 <= len(kept) <= 10
    server, address = start(folder)
    assert httpx.get(f"{address}api/state", timeout=60).json()["tried"] == kept
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=60)
    assert server.returncode == 130
