"""Runs that are killed at any moment go on where they were; two runs never write one output."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from crossfluence import app as cli
from crossfluence.app import cleaned
from crossfluence.app.output import alone
from crossfluence.errors import ResultFileError
from crossfluence.words.planted import planted

COMMAND = """
import functools, importlib, pathlib, sys
from crossfluence.app import main
explain = importlib.import_module("crossfluence.clustering.explain")  # the package has the function of this name
sharpen = importlib.import_module("crossfluence.clustering.sharpen")
explain.ClusterSettings = functools.partial(explain.ClusterSettings, pretraining=60, steps=2000, draws=2, group=4)
fit = sharpen.Sharpening.fit
def counted(self, *arguments, **options):
    with pathlib.Path("pieces.log").open("a") as log:
        log.write("begun\\n")
    return fit(self, *arguments, **options)
sharpen.Sharpening.fit = counted
main(sys.argv[1:])
"""
KILLS = 20


def command(folder, out):
    line = ["clusters", "t.csv", "--k", "2", "--query", "3", "--check", "24", "--out", out]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *line], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def pieces(folder):
    log = folder / "pieces.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def write_table(folder):
    draw = random.Random(0)
    rows = [f"{draw.gauss(3 * (row % 2), 1):.4f},{draw.gauss(0, 1):.4f}" for row in range(60)]
    (folder / "t.csv").write_text("\n".join(["a,b", *rows]) + "\n")


def test_two_runs_with_one_output_cannot_overwrite_each_other(tmp_path):
    out = tmp_path / "page.html"
    with alone(out):
        with pytest.raises(ResultFileError, match=r"Another run with --out .*page\.html has not ended"), alone(out):
            pass
        with alone(tmp_path / "other.html"):
            pass
    with alone(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(tmp_path):
    with (
        pytest.raises(ResultFileError, match=r"Cannot write into the folder .*Choose another --out"),
        alone(tmp_path / "absent" / "page.html"),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_noticed_before_anything_is_read_or_trained(tmp_path, monkeypatch):
    from crossfluence.clustering import settle

    write_table(tmp_path)
    monkeypatch.setattr(settle, "pretrain", lambda *_, **__: pytest.fail("it trained"))
    monkeypatch.chdir(tmp_path)
    for out, said in (("absent/page.html", "does not exist"), ("t.csv/page.html", "is a file, and no folder")):
        result = CliRunner().invoke(cli.app, ["clusters", "t.csv", "--k", "2", "--out", out])
        assert result.exit_code == 2
        assert said in result.stderr
    (tmp_path / "locked").mkdir(mode=0o555)
    if not os.access(tmp_path / "locked", os.W_OK):  # to the administrator every folder is open
        result = CliRunner().invoke(cli.app, ["clusters", "t.csv", "--k", "2", "--out", "locked/page.html"])
        assert (result.exit_code, "Cannot write into the folder" in result.stderr) == (2, True)


def test_a_page_of_a_run_that_was_killed_before_its_end_is_no_obstacle(tmp_path, monkeypatch):
    write_table(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.html").write_text("of the run that was killed")
    line = ["clusters", "t.csv", "--k", "2", "--query", "3", "--check", "3", "--out", "page.html"]
    assert CliRunner().invoke(cli.app, line).exit_code == 2
    (tmp_path / "page.html.unfinished").mkdir()
    assert CliRunner().invoke(cli.app, line).exit_code in {0, 3}
    assert "of the run" not in (tmp_path / "page.html").read_text()
    assert not (tmp_path / "page.html.unfinished").exists()


@pytest.mark.parametrize(("command", "written"), [("clusters", "write_table"), ("words", "write_corpus")])
def test_a_run_killed_while_it_writes_the_cleaned_file_goes_on(command, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if command == "clusters":
        write_table(tmp_path)
        line = ["clusters", "t.csv", "--k", "2", "--query", "3", "--check", "3"]
    else:
        (tmp_path / "t.txt").write_text("\n".join(planted(sentences=800, culprits=40).texts) + "\n")
        line = ["words", "t.txt", "--word", "fox", "--clusters", "3", "--dimensions", "4", "--min-count", "2"]
    line += ["--write-cleaned", f"cleaned.{'csv' if command == 'clusters' else 'txt'}", "--out", "page.html"]

    def kill(*_, **__):
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr(cleaned, written, kill)
        assert CliRunner().invoke(cli.app, line).exit_code == 9
    (tmp_path / line[-3]).write_text("half")
    again = CliRunner().invoke(cli.app, line)
    assert again.exit_code in {0, 3}, again.stderr
    assert len((tmp_path / line[-3]).read_text().splitlines()) > 10
    assert not (tmp_path / "page.html.unfinished").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_second_run_with_the_same_output_is_refused_while_the_first_goes_on_unharmed(tmp_path):
    write_table(tmp_path)
    first = command(tmp_path, "page.html")
    while pieces(tmp_path) < 3 and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)  # it would end before the second has begun
    second = command(tmp_path, "page.html")
    _, said = second.communicate(timeout=600)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert b"has not ended" in said
    _, said = first.communicate(timeout=600)
    assert first.returncode in {0, 3}, said


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_bits_and_repeats_at_most_a_piece_each(tmp_path):
    write_table(tmp_path)
    began = time.perf_counter()
    whole = command(tmp_path, "whole.html")
    _, said = whole.communicate(timeout=600)
    assert whole.returncode in {0, 3}, said
    seconds, needed = time.perf_counter() - began, pieces(tmp_path)
    draw, kills, told = random.Random(1), 0, 0
    while kills < KILLS:
        (tmp_path / "pieces.log").unlink()
        for name in ("page.html", "page.csv"):
            (tmp_path / name).unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "page.result", ignore_errors=True)
        stopped, ended = 0, None
        while ended is None:
            run = command(tmp_path, "page.html")
            try:
                _, said = run.communicate(timeout=seconds * draw.uniform(0.1, 0.9) if kills < KILLS else 600)
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL if kills % 2 == 0 else signal.SIGINT)
                kills, stopped = kills + 1, stopped + 1
                _, said = run.communicate(timeout=600)
            importing = run.returncode == 1 and b"KeyboardInterrupt" in said
            whole_already = b"exists already" in said and not (tmp_path / "page.html.unfinished").exists()
            assert run.returncode in {0, 3, 130, -signal.SIGKILL, -signal.SIGINT} or importing or whole_already, said
            told += b"the same command goes on from there" in said
            ended = run.returncode if run.returncode in {0, 3} or whole_already else None
        assert pieces(tmp_path) <= needed + stopped
        assert not (tmp_path / "page.html.unfinished").exists()
        assert (tmp_path / "page.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
        for name in os.listdir(tmp_path / "whole.result"):
            if name.endswith(".safetensors"):
                page, unbroken = (load_file(tmp_path / folder / name) for folder in ("page.result", "whole.result"))
                assert page.keys() == unbroken.keys()
                assert all(torch.equal(page[key], unbroken[key]) for key in page), name  # beside them stand seconds
        assert figures(tmp_path / "page.html") == figures(tmp_path / "whole.html")
    assert told  # some were stopped where there was something to keep


def figures(page):
    lines = page.read_text().splitlines()
    return [line for line in lines if "removed together" in line or "random 3" in line or "Pearson" in line]
