"""Traps of tables and the command line: what is easy to get silently wrong."""

import functools
import importlib

import numpy as np
import pandas as pd
import pytest
import torch
from grid import normal
from typer.testing import CliRunner

from crossfluence import app as cli
from crossfluence.app import forecast  # noqa: F401  # before the settings are patched
from crossfluence.app.tables import TableError, read_table

study = importlib.import_module("crossfluence.clustering.explain")  # the package has the function of this name
settle = importlib.import_module("crossfluence.clustering.settle")

# Tables.


@pytest.mark.parametrize("text", ["a,b\n1,2,3\n4,5,6\n", "a,b\n1,2,\n4,5,\n"])
def test_rows_that_are_longer_than_the_header_are_refused(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(TableError, match=r"header|column names|fields"):
        read_table(tmp_path / "t.csv")


def test_semicolons_are_read_and_commas_between_digits_are_decimal(tmp_path):
    (tmp_path / "t.csv").write_text("a;b;c\n1,5;2,5;3,1\n4,5;5,5;1,2\n")
    assert read_table(tmp_path / "t.csv").values.tolist() == [[1.5, 2.5, 3.1], [4.5, 5.5, 1.2]]


def test_times_are_no_numbers(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "when": pd.to_datetime(["2020-01-01", "2020-01-02"]),
                          "long": pd.to_timedelta([1, 2], unit="s")})  # fmt: skip
    frame.to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").ignored == ("when", "long")


def test_several_arrays_under_the_name_of_one_are_refused(tmp_path):
    with (tmp_path / "t.npy").open("wb") as file:
        np.savez(file, a=np.ones((2, 2)))
    with pytest.raises(TableError, match=r"t\.npy"):
        read_table(tmp_path / "t.npy")


def test_a_column_of_remarks_does_not_become_numeric_by_its_empty_cells(tmp_path):
    (tmp_path / "t.csv").write_text("a,note\n1,\n2,\n3,see below\n4,4\n")
    assert read_table(tmp_path / "t.csv").ignored == ("note",)  # a fourth of its cells are numbers


def test_a_missing_cell_of_parquet_is_called_empty_and_an_error_has_one_full_stop(tmp_path):
    pd.DataFrame({"a": [1.0, None, 3.0]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(TableError, match="is empty"):
        read_table(tmp_path / "t.parquet")
    np.save(tmp_path / "t.npy", np.arange(3))
    with pytest.raises(TableError) as caught:
        read_table(tmp_path / "t.npy")
    assert not str(caught.value).endswith("..")
    assert str(caught.value).count("t.npy") == 1


# The command line.

BLOBS = 0.5 * normal(40, 2, seed=0) + torch.tensor([[0.0, 0.0], [4.0, 4.0], [4.0, -4.0]])[torch.arange(40) % 3]
LINES = ["name,u,v,kind [/s]", *[f"r{row}[/b],{u:.4f},{v:.4f},x" for row, (u, v) in enumerate(BLOBS.tolist())]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = functools.partial(study.ClusterSettings, pretraining=30, steps=80, draws=1, group=4)
    monkeypatch.setattr(study, "ClusterSettings", quick)
    (tmp_path / "markup.csv").write_text("\n".join(LINES))
    (tmp_path / "plain.csv").write_text("\n".join(LINES).replace("[/b]", "").replace(" [/s]", ""))
    return tmp_path


def clusters(source, out, *more, query="r3"):
    line = ["clusters", source, "--k", "3", "--query", query, "--id", "name", "--check", "3", "--out", out, *more]
    return CliRunner().invoke(cli.app, line)


def test_the_users_table_is_never_overwritten(folder):
    before = (folder / "plain.csv").read_bytes()
    for out in ("plain.html", "plain.csv"):
        result = clusters("plain.csv", out, "--force")
        assert (folder / "plain.csv").read_bytes() == before
        assert result.exit_code == 2


def test_page_and_scores_are_two_files(folder):
    result = clusters("plain.csv", "page.csv")
    assert result.exit_code == 2 or (folder / "page.csv").read_text().startswith("id,") is False


def test_a_folder_as_output_is_refused_before_the_work(folder):
    (folder / "there").mkdir()
    result = clusters("plain.csv", "there", "--force")
    assert result.exit_code == 2
    assert not (folder / "there.unfinished").exists()


def test_names_that_look_like_markup_are_printed_as_they_are(folder):
    result = clusters("markup.csv", "page.html", query="r3[/b]")
    assert result.exit_code == 0
    assert "kind [/s]" in result.stdout
    assert "Row r3[/b] is in cluster" in result.stdout


def test_a_run_interrupted_for_one_row_gives_nothing_to_another(folder, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    found = []
    original = study.compare
    monkeypatch.setattr(
        study, "compare", lambda scores, actual: found.append(actual.values) or original(scores, actual)
    )
    assert clusters("plain.csv", "fresh.html", query="r4").exit_code == 0
    with monkeypatch.context() as patched:
        patched.setattr(study, "compare", stopped)
        clusters("plain.csv", "page.html", query="r3")
    assert (folder / "page.html.unfinished").exists()
    assert clusters("plain.csv", "page.html", query="r4").exit_code == 0
    assert torch.equal(found[0], found[1])


def test_a_run_stopped_before_any_retraining_promises_no_folder(folder, monkeypatch):
    monkeypatch.setattr(settle, "pretrain", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    result = clusters("plain.csv", "page.html")
    assert "page.html.unfinished" not in result.output
    assert not (folder / "page.html.unfinished").exists()


def test_a_folder_that_cannot_be_written_gets_one_line(folder, monkeypatch):
    from pathlib import Path

    original = Path.mkdir

    def refuse(path, *args, **options):
        if path.name.endswith(".unfinished"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = clusters("plain.csv", "page.html")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
