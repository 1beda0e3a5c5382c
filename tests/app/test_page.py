"""Pictures drawn when a page is made, the list of all samples, and names that try to run something."""

import json
import re

import pytest
from browser import CHROMIUM, browse
from markupsafe import Markup

from crossfluence.app.advice import as_typed
from crossfluence.app.output import plain
from crossfluence.app.report.page import MOST_BYTES, all_samples, template
from crossfluence.app.report.svg import NAMED_UP_TO, Picture

EVIL = '</script><script>document.title="ran"</script><img src=x onerror="document.title=1">'


def test_a_picture_escapes_names_and_puts_points_where_they_belong():
    picture = Picture(EVIL, EVIL, EVIL)
    picture.points([(0.0, 0.0), (1.0, 2.0)], [EVIL, "b"], name=EVIL, colour="#000000", texts=["", EVIL])
    drawn = picture.drawn()
    assert "<script" not in drawn
    assert "<img" not in drawn
    (x0, y0), (x1, y1) = [tuple(map(float, at)) for at in re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="3.5"', drawn)]
    assert x0 < x1
    assert y0 > y1  # upwards


def test_bars_of_negative_numbers_hang_below_zero():
    picture = Picture("t", "", "y")
    picture.bars(["a", "b"], [1.0, -1.0], name="n", colour="#123456")
    tops = re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)" fill="#123456"><title>', picture.drawn())
    (up, tall), (down, deep) = [tuple(map(float, one)) for one in tops]
    assert up + tall == pytest.approx(down, abs=0.11)
    assert tall == pytest.approx(deep, abs=0.11)


@pytest.mark.parametrize("places", [[], [(1.0, 1.0)], [(float("nan"), 1.0), (0.0, 1e300), (0.0, -1e300)]])
def test_pictures_of_nothing_one_place_and_huge_numbers_are_drawn(places):
    picture = Picture("t", "x", "y")
    picture.points([place for place in places if place[0] == place[0]], ["n"] * sum(p[0] == p[0] for p in places),
                   name="n", colour="red")  # fmt: skip
    assert isinstance(picture.drawn(), Markup)


def test_many_points_are_one_path():
    picture = Picture("t", "x", "y")
    count = NAMED_UP_TO + 1
    picture.points([(float(i), float(i % 7)) for i in range(count)], [""] * count, name="n", colour="red")
    assert picture.drawn().count("<circle") == 1  # of the legend
    assert len(picture.drawn()) < 20 * count


def test_the_list_of_samples_has_a_limit_and_never_closes_its_script():
    rows = [{"id": EVIL, "score": 1.0 / (1 + row), "text": "x" * 10_000, "source": "s"} for row in range(100)]
    everything = all_samples(rows, sheet="t.csv", sources=True)
    assert everything["count"] == 100
    assert 1 <= everything["shown"] < 100
    assert len(everything["data"]) <= MOST_BYTES * 1.01
    assert "<" not in everything["data"]
    assert json.loads(everything["data"])[0]["id"] == EVIL


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_lists_samples_as_text(tmp_path):
    rows = [{"id": f"{EVIL}{row}", "score": 1.0 / (1 + row), "text": EVIL, "source": "s"} for row in range(60)]
    page = template("samples.html").module.samples(all_samples(rows, sheet="=t.csv", sources=True), "row")
    (tmp_path / "page.html").write_text(f"<!doctype html><title>still</title><main>{page}</main>")
    dom, requested = browse(tmp_path, (tmp_path / "page.html").as_uri())
    assert "<title>still</title>" in dom
    assert requested == set()
    assert dom.count("<tr") == 1 + 25
    assert "page 1 of 3" in dom


def test_advice_is_in_options_of_the_command_line():
    assert as_typed("Lower min_count=5, or read more text.") == "Lower --min-count 5, or read more text."
    assert as_typed("Pass encoding='utf-16'.") == "Pass --encoding utf-16."
    assert as_typed("Name one: column='a b', or --column 'a b' on the command line.") == "Name one: --column 'a b'."
    assert as_typed("The discount=5 stays.") == "The discount=5 stays."


def test_json_holds_no_nan():
    assert plain({"a": [float("inf"), 1.5, None, True], 3: ("x",)}) == {"a": [None, 1.5, None, True], "3": ["x"]}
