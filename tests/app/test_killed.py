"""Runs that are killed at any moment go on where they were; two runs never write one output."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from crossfluence.app.output import alone
from crossfluence.errors import ResultFileError

COMMAND = """
import functools, sys
from crossfluence.app import main
from crossfluence.clustering import explain
explain.ClusterSettings = functools.partial(explain.ClusterSettings, pretraining=60, steps=400, draws=2, group=4)
main(sys.argv[1:])
"""


def command(folder, out):
    line = ["clusters", "t.csv", "--k", "2", "--query", "3", "--check", "12", "--out", out]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *line], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


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


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    write_table(tmp_path)
    began = time.perf_counter()
    whole = command(tmp_path, "whole.html")
    assert whole.wait(timeout=600) in {0, 3}
    seconds = time.perf_counter() - began
    draw = random.Random(1)
    for kill in range(6):
        run = command(tmp_path, "page.html")
        time.sleep(seconds * draw.uniform(0.2, 0.9))
        run.send_signal(signal.SIGKILL if kill % 2 == 0 else signal.SIGINT)
        run.wait(timeout=600)
    ended = command(tmp_path, "page.html")
    assert ended.wait(timeout=600) in {0, 3, 2}
    assert (tmp_path / "page.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    figures = [
        [
            line
            for line in (tmp_path / name).read_text().splitlines()
            if "removed together" in line or "random 3" in line
        ]
        for name in ("page.html", "whole.html")
    ]
    assert figures[0] == figures[1]
    assert os.listdir(tmp_path).count("page.html.unfinished") == 0
