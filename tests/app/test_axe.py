"""No serious fault of accessibility on pages and explorers, in light and dark, wide and narrow.

CROSSFLUENCE_AXE names `axe.min.js` of the package axe-core from the npm registry: `npm pack axe-core`, unpacked.
"""

import os
import signal
from pathlib import Path

import pytest
from browser import CHROMIUM
from typer.testing import CliRunner

from crossfluence import app as cli
from crossfluence.words.planted import planted

AXE = os.environ.get("CROSSFLUENCE_AXE")
SERIOUS = """
axe.run(document, {resultTypes: ["violations"]}).then(found => JSON.stringify(found.violations
  .filter(one => ["serious", "critical"].includes(one.impact))
  .map(one => `${one.id}: ${one.help}: ${one.nodes.slice(0, 3).map(node => node.html.slice(0, 120)).join(" | ")}`)))
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(AXE is None, reason="needs CROSSFLUENCE_AXE"),
    pytest.mark.skipif(CHROMIUM is None or os.name != "posix", reason="needs chromium"),
]


def run(*line):
    result = CliRunner().invoke(cli.app, [str(one) for one in line])
    assert result.exit_code in {0, 3}, result.output


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    from test_fair import lines, write

    folder = tmp_path_factory.mktemp("pages")
    rows = [f"r{row},{row % 3 * 4 + row % 7 / 9:.3f},{row % 5 / 3:.3f}" for row in range(60)]
    (folder / "t.csv").write_text("\n".join(["name,height,width", *rows]))
    (folder / "t.txt").write_text("\n".join(planted(sentences=400, culprits=20).texts))
    small = ["--dimensions", 6, "--min-count", 2, "--remove", 5]
    run("clusters", folder / "t.csv", "--k", 3, "--id", "name", "--check", 3, "--out", folder / "clusters.html")
    run("words", folder / "t.txt", *small, "--out", folder / "words.html")
    run("words", folder / "t.txt", *small, "--word", "fox", "--clusters", 4, "--out", folder / "word.html")
    write(folder / "people.csv", lines())
    run("fair", folder / "people.csv", "--label", "hired", "--group", "town", "--budget", "3%", "--against-random", 2,
        "--out", folder / "fair.html")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from devtools import browsing

    with browsing(tmp_path_factory.mktemp("user")) as made:
        yield made


def faults(page, dark, width):
    page.size(width, dark=dark)
    if not page.js("typeof axe !== 'undefined'"):
        page.do("Runtime.evaluate", expression=Path(AXE).read_text())
    return page.js(SERIOUS)


@pytest.mark.parametrize("name", ["clusters", "words", "word", "fair"])
def test_a_page_has_no_serious_fault(pages, browser, name):
    page = browser.page((pages / f"{name}.html").as_uri())
    for dark in (False, True):
        for width in (1280, 360):
            assert faults(page, dark, width) == "[]", (name, dark, width)


@pytest.mark.parametrize("name", ["clusters", "words", "word"])
def test_an_explorer_has_no_serious_fault(pages, browser, name):
    from test_explore import start

    server, address = start(pages / f"{name}.result")
    try:
        page = browser.page(address)
        page.until("document.querySelectorAll('#rows tbody tr').length === 25")
        page.click("#rows tbody input")
        page.until("!document.querySelector('#chosen').hidden")
        for dark in (False, True):
            for width in (1280, 360):
                assert faults(page, dark, width) == "[]", (name, dark, width)
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
