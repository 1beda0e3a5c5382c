"""The bar for all of a command, where a person looks on."""

import io
import re
import sys
import time

from crossfluence.app import whole as bars
from crossfluence.app.forecast import Forecast
from crossfluence.app.whole import Remaining, whole


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_what_is_left_follows_the_pace_of_this_run_alone():
    left = Remaining(100.0, 40)
    assert left.after(10.0, 12) == 90.0  # twelve are of an earlier run
    assert left.after(20.0, 13) == 80.0
    assert left.after(22.0, 15) == 78.0  # two are too few
    assert left.after(24.0, 17) == 23 * 1.0
    assert left.after(500.0, 40) == 0.0
    assert Remaining(5.0, 0).after(9.0, 0) == 0.0


def test_a_person_sees_the_time_that_is_left_and_no_line_stays(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(bars, "EVERY", 0.01)
    with whole(Forecast(300.0, 1.0)) as aside:
        time.sleep(0.3)
        with aside():
            pass
    shown = terminal.getvalue()
    assert re.search(r"in all: +0%\|.*\| 1 s passed, about 5 min left", shown), shown
    assert not shown.replace("\x1b[A", "").rsplit("\r", 1)[-1].strip()


def test_nobody_looks_on_at_a_pipe(monkeypatch):
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    with whole(Forecast(300.0, 1.0)) as aside, aside():
        pass
    assert not pipe.getvalue()
