"""The documentation site builds strictly, holds every name and change, and loads nothing from another host."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crossfluence as cf

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("offline", ROOT / ".ci" / "offline.py")
offline = importlib.util.module_from_spec(spec)
spec.loader.exec_module(offline)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_loads_anything_from_another_host(site, capsys):
    offline.main(site)
    assert "nothing from another host" in capsys.readouterr().out


def test_the_reference_holds_every_public_name(site):
    pages = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    assert [name for name in cf.__all__ if f'id="crossfluence.{name}"' not in pages] == []


def test_the_changelog_holds_every_fragment(site):
    items = (site / "changelog.html").read_text().count("<li>")
    assert items >= len([*(ROOT / "changelog.d").glob("*.*.md")])


def test_formulas_are_drawn_without_a_script(site):
    page = (site / "mathematics.html").read_text()
    assert page.count("<math") > 20
    assert 'class="arithmatex"' not in page


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://cdn.example/x.js"></script>'),
        ("b.html", '<link rel="stylesheet" href="//fonts.example/css">'),
        ("c.html", '<img src="a.png" srcset="a.png 1x, https://cdn.example/a.png 2x">'),
        ("d.css", "@font-face { src: url(https://fonts.example/f.woff2) }"),
        ("e.js", 'import("https://cdn.example/x.mjs")'),
        ("f.html", '<style>@import "http://cdn.example/x.css";</style>'),
    ],
)
def test_a_load_from_another_host_is_found(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=re.escape(name) + " loads"):
        offline.main(tmp_path)


def test_a_link_to_another_host_is_no_load(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="https://example.org">x</a><link rel="canonical" href="https://example.org">'
    )
    offline.main(tmp_path)


def test_a_folder_without_pages_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no page"):
        offline.main(tmp_path)
