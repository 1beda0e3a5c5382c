"""The command line: one sentence and exit code 2 for bad input, a page that needs nothing, runs that go on."""

import functools
import importlib
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from browser import CHROMIUM, browse, parsed
from grid import normal
from typer.testing import CliRunner

from crossfluence import app as cli
from crossfluence._evaluation import leave_out as retrain
from crossfluence.app import forecast, tables
from crossfluence.app.report import verdicts

command = importlib.import_module("crossfluence.app.clusters")  # so has that one
study = importlib.import_module("crossfluence.clustering.explain")  # the package has the function of this name

BLOBS = 0.5 * normal(40, 2, seed=0) + torch.tensor([[0.0, 0.0], [4.0, 4.0], [4.0, -4.0]])[torch.arange(40) % 3]
WRITTEN = {"blobs.csv", "page.html", "page.csv", "page.result"}
HEADER = "name,u [cm],v <b>,kind"
ROWS = [f"r{row},{u:.4f},{v:.4f},text" for row, (u, v) in enumerate(BLOBS.tolist())]


def table(*changes, rows=40):
    """The table, with some rows written anew."""
    return "\n".join([HEADER, *[dict(changes).get(row, ROWS[row]) for row in range(rows)]]) + "\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder that holds the table, and settings that take a second."""
    monkeypatch.chdir(tmp_path)
    quick = functools.partial(study.ClusterSettings, pretraining=30, steps=80, draws=1, group=4)
    monkeypatch.setattr(command, "ClusterSettings", quick)
    monkeypatch.setattr(forecast, "beside_others", lambda own: 1.0)  # the answer comes at once, however busy it is here
    (tmp_path / "blobs.csv").write_text(table())
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def clusters(*more, source="blobs.csv", k=3, query="r3"):
    return call(
        "clusters", source, "--k", k, "--query", query, "--id", "name", "--check", 5, "--out", "page.html", *more
    )


def content(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


# Bad input.

BAD = {
    "no file": (None, {}, "There is no file"),
    "no numeric column": ("name,kind\nu,x\nv,y\n", {"query": "u"}, "no numeric column"),
    "text": (table((7, "r7,1,oops,text")), {}, "Row 7 (id 'r7'), column 'v <b>' holds 'oops'"),
    "NaN": (table((7, "r7,nan,1,text")), {}, "Row 7 (id 'r7'), column 'u [cm]' holds 'nan'"),
    "empty cell": (table((0, "r0,,1,text")), {}, "Row 0 (id 'r0'), column 'u [cm]' is empty"),
    "two ids": (table((7, "r8,1,1,text")), {}, "The id 'r8' stands in 2 rows"),
    "k too large": (table(rows=12), {"k": 13}, "--k 13 is more than the 12 rows"),
    "few rows": (table(rows=7), {}, "7 rows; needed at least 8"),
    "constant": (HEADER + "\n" + "".join(f"r{row},1,2,text\n" for row in range(9)), {}, "constant"),
    "unknown query": (table(), {"query": "r40"}, "No row has the id 'r40'"),
    "empty": ("", {}, "is empty"),
    "two columns of one name": (table().replace("kind", "u [cm]", 1), {}, "2 columns named 'u [cm]'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_gets_one_line_and_nothing_is_written(folder, name):
    text, options, sentence = BAD[name]
    if text is not None:
        (folder / "bad.csv").write_text(text)
    before = content(folder)
    result = clusters(source="bad.csv", **options)
    assert result.exit_code == 2
    assert result.stderr.startswith("crossfluence: ")
    assert result.stderr.count("\n") == 1
    assert sentence in result.stderr
    assert result.stdout == ""
    assert content(folder) == before


@pytest.mark.parametrize("taken", ["page.html", "page.csv"])
def test_an_output_that_exists_or_cannot_be_there_is_refused(folder, taken):
    (folder / taken).write_text("precious")
    before = content(folder)
    for result, sentence in (
        (clusters(), f"{taken} exists already. Choose another --out, or add --force"),
        (clusters("--out", "gone/page.html"), "The folder gone does not exist"),
    ):
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith("crossfluence: ")
        assert sentence in result.stderr
        assert content(folder) == before


@pytest.mark.parametrize(
    "option", [("--k", "1"), ("--k", "three"), ("--check", "2"), ("--seed", "-1"), ("--what", "1")]
)
def test_an_option_that_cannot_be_is_refused_with_its_name(folder, option):
    before = content(folder)
    result = clusters(*option)
    assert result.exit_code == 2
    assert option[0] in result.stderr
    assert content(folder) == before


def test_the_console_script_says_the_same(folder):
    script = shutil.which("crossfluence", path=Path(sys.executable).parent)
    if script is None:
        pytest.skip("the console script is not installed beside Python")
    before = content(folder)
    line = [script, "clusters", "gone.csv", "--k", "3", "--query", "0"]
    result = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "crossfluence: There is no file gone.csv.\n")
    assert content(folder) == before


@pytest.mark.parametrize("line", [[], ["demo"], ["clusters"], ["words"], ["explore"]])
def test_every_command_has_help(line):
    result = call(*line, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


# A run.


def test_a_run_writes_page_and_scores_and_overwrites_them_only_when_told(folder):
    result = clusters()
    assert result.exit_code == 0, result.output
    assert {path.name for path in folder.iterdir()} == WRITTEN
    assert "Row r3 is in cluster" in result.stdout
    assert "Wrote page.html and page.csv." in result.stdout
    sheet = (folder / "page.csv").read_text().splitlines()
    assert sheet[0] == "id,objective"
    assert sorted(line.split(",")[0] for line in sheet[1:]) == sorted(f"r{row}" for row in range(40))
    sizes = [abs(float(line.split(",")[1])) for line in sheet[1:]]
    assert sizes == sorted(sizes, reverse=True)
    before = content(folder)
    assert clusters().exit_code == 2
    assert content(folder) == before
    assert clusters("--force").exit_code == 0
    assert content(folder)[folder / "page.csv"] == before[folder / "page.csv"]


def test_time_and_memory_are_foretold_before_a_run_and_alone_with_plan(folder):
    result = clusters("--plan")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"Not used.*\.\nAbout \d+ (?:s|min) and \d+\.\d GiB\.\n", result.stdout, re.DOTALL)
    assert {path.name for path in folder.iterdir()} == {"blobs.csv"}
    assert re.search(r"About \d+ (?:s|min) and \d+\.\d GiB\.\n.*Row r3", clusters().stdout, re.DOTALL)
    assert clusters("--plan").exit_code == 0  # it will not overwrite anything


def test_a_forecast_multiplies_what_a_few_steps_take(monkeypatch):
    monkeypatch.setattr(forecast, "seconds_of", lambda work, **_: 3.0)
    monkeypatch.setattr(forecast, "beside_others", lambda own: (0.5 + own) / 2 if own > 1 else 1.0)
    monkeypatch.setattr(forecast, "processors", lambda: 2)
    settings = study.ClusterSettings(3, pretraining=30, steps=60, check=60, draws=2)
    p = 3 * 24 + 24 + 24 * 16 + 16 + 3 * 16

    def foretold(n, step):
        step = forecast.SLOWER * step + forecast.CALLS
        anchored = forecast.ANCHORS * (step * (60 + p * forecast.HESSIAN) + p**3 * forecast.SOLVED)
        once = forecast.STARTED + step * 30 * forecast.PRETRAINING + anchored
        return once + 1.25 * step * 60 * (min(60, n) + 4) / 2  # two processes and half of one on two processors

    for n, step in ((40, 3.0), (20_480, 30.0)):  # 2,048 rows are tried
        found = forecast.forecast_clusters(n, 3, settings)
        assert found.seconds == pytest.approx(foretold(n, step))
        assert found.gigabytes > forecast.LIBRARIES + forecast.WORKER
        assert found.processes == 2


def test_work_takes_longer_beside_others(monkeypatch):
    monkeypatch.setattr(forecast, "processors", lambda: 2)
    for load, one, two in ((0.0, 1.0, 1.0), (0.5, 1.0, 1.25), (6.0, 3.5, 4.0)):
        monkeypatch.setattr(forecast.os, "getloadavg", lambda load=load: (load, 9.0, 9.0), raising=False)
        assert (forecast.beside_others(1), forecast.beside_others(2)) == (one, two)
    monkeypatch.delattr(forecast.os, "getloadavg")
    assert forecast.beside_others(9) == 4.5


def test_an_interrupted_run_says_where_its_work_is_and_goes_on(folder, monkeypatch):
    original, trained = retrain.retrained_values, []

    def interrupted(train, objective, weights):
        if trained:
            raise KeyboardInterrupt
        trained.append(len(weights))
        return original(train, objective, weights)

    quick = functools.partial(study.ClusterSettings, draws=30)  # more than are trained at once
    monkeypatch.setattr(command, "ClusterSettings", quick)
    with monkeypatch.context() as patched:
        patched.setattr(retrain, "retrained_values", interrupted)
        result = clusters()
    unfinished = folder / "page.html.unfinished"
    assert result.exit_code != 0
    assert f"kept in {unfinished.name}; the same command goes on" in result.output
    assert len(list(unfinished.glob("*.json"))) == trained[0]
    assert not list(folder.glob("page.*ml"))
    rest = []
    monkeypatch.setattr(retrain, "retrained_values", lambda *a: rest.append(len(a[2])) or original(*a))
    assert clusters().exit_code == 0
    assert trained[0] + sum(rest) == 5 + 31 + 1
    assert {path.name for path in folder.iterdir()} == WRITTEN


# The page.


def test_the_page_has_its_parts_and_fetches_nothing(folder):
    assert clusters().exit_code == 0
    page = (folder / "page.html").read_text()
    tags = parsed(page)
    assert set(tags.ids) >= {"question", "map", "raises", "lowers", "check", "made"}
    assert tags.fetched == [("link", "data:,")]
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "u [cm]" in page
    assert "v &lt;b&gt;" in page


def test_ids_of_the_user_are_text_in_the_page(folder):
    evil = "</script><script src=http://evil.example/x.js></script><img src=http://evil.example/y>{}"
    rows = [ROWS[row].replace(f"r{row},", evil.format(row) + ",") for row in range(40)]
    (folder / "evil.csv").write_text("\n".join([HEADER, *rows]))
    result = clusters(source="evil.csv", query=evil.format(3))
    assert result.exit_code == 0, result.output
    assert clusters("--out", "plain.html").exit_code == 0
    tags, plain = (parsed((folder / name).read_text()) for name in ("page.html", "plain.html"))
    assert (tags.fetched, tags.scripts) == (plain.fetched, plain.scripts)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_page_and_requests_nothing(folder):
    assert clusters().exit_code == 0
    control = folder / "control.html"
    control.write_text("<img src='http://127.0.0.1:9/a.png'><script>fetch('http://127.0.0.1:9/b')</script>")
    assert browse(folder, control.as_uri())[1] == {"http://127.0.0.1:9/a.png", "http://127.0.0.1:9/b"}  # the log tells
    dom, requested = browse(folder, (folder / "page.html").as_uri())
    assert dom.count('class="main-svg"') >= 2
    assert requested == set()


# How far an answer can be relied on.


def test_a_dependable_answer_says_so_first(folder):
    result = clusters()
    assert result.exit_code == 0, result.output
    answer = result.stdout[result.stdout.index("GiB.") + 5 :].strip()
    assert answer.startswith("These scores can be relied on")
    page = (folder / "page.html").read_text()
    assert page[page.index("</h1>") :].startswith('</h1>\n<p id="verdict" class="verdict ')
    assert "Columns used: u [cm], v &lt;b&gt;." in page


def test_predictions_that_fail_their_check_are_named_first_and_end_with_3(folder, monkeypatch):
    original = study.leave_out

    def opposite(*args, **options):
        truth = original(*args, **options)
        return replace(truth, values=-truth.values)

    monkeypatch.setattr(study, "leave_out", opposite)
    result = clusters()
    assert result.exit_code == 3, result.output
    answer = result.stdout[result.stdout.index("GiB.") + 5 :].strip()
    assert answer.startswith("These scores cannot be relied on: removing the top 2 together changed the margin by ")
    assert "; type --anchor 1." in answer.partition("\n")[0]
    page = (folder / "page.html").read_text()
    assert page[page.index("</h1>") :].startswith(
        '</h1>\n<p id="verdict" class="verdict unreliable">These scores cannot'
    )
    assert {path.name for path in folder.iterdir()} == WRITTEN


def test_a_firmer_anchor_is_taken(folder):
    assert clusters("--anchor", 0.5).exit_code == 0
    assert '<td>anchor</td><td class="n">0.5</td>' in (folder / "page.html").read_text()


def test_a_cluster_without_a_row_is_named():
    assignments = torch.eye(4, dtype=torch.float64)[[0, 0, 2, 2]] + 0.1
    found = SimpleNamespace(assignments=assignments, settings=SimpleNamespace(k=4))
    assert verdicts.empty_clusters(found) == [1, 3]
    assert verdicts.no_sample_in([1, 3], "row") == "clusters 1, 3 hold no row"


def test_warnings_about_the_table_stand_above_the_answer_and_on_the_page(folder):
    (folder / "far.csv").write_text(table((7, "r7,1e12,1,text")))
    result = clusters(source="far.csv")
    assert result.stdout.startswith("Warning: Row 7 (id 'r7'), column 'u [cm]' holds 1e+12, so far from all others")
    assert "Warning: Row 7 (id &#39;r7&#39;), column &#39;u [cm]&#39;" in (folder / "page.html").read_text()


def test_a_run_stopped_by_the_keyboard_ends_with_130(folder, monkeypatch):
    monkeypatch.setattr(study, "settled", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    before = content(folder)
    result = clusters()
    assert result.exit_code == 130
    assert "Nothing is kept, so the same command starts from the beginning." in result.stderr
    assert content(folder) == before
    monkeypatch.setattr(tables, "read_table", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert clusters().exit_code == 130


@pytest.mark.parametrize("command", ["demo", "clusters", "words"])
def test_help_says_what_exit_codes_mean(command):
    assert "3 printed and not dependable" in " ".join(call(command, "--help").stdout.split())
