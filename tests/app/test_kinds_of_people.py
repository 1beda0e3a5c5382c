"""Kinds of table with people, for `crossfluence fair`: each is read as the clean table, or refused with a way out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sklearn")
from typer.testing import CliRunner

from crossfluence.app import app
from crossfluence.app.fair_encoding import Encoding
from crossfluence.app.fair_table import People, read_people
from crossfluence.app.tables import TableError

N = 120
DRAWN = np.random.default_rng(5)
CLEAN = pd.DataFrame({
    "skill": np.round(DRAWN.normal(size=N), 4), "town": DRAWN.choice(["a", "b"], N),
    "income": DRAWN.integers(8_000, 90_000, N), "rate": np.round(DRAWN.uniform(0.5, 99, N), 1),
    "school": DRAWN.choice(["north", "south", "east"], N), "hired": DRAWN.choice(["yes", "no"], N),
})  # fmt: skip
THIRD = np.arange(N) % 3


def read(folder: Path, frame: pd.DataFrame, name: str = "t.csv", **given) -> People:
    path = folder / name
    frame.to_parquet(path) if name.endswith(".parquet") else frame.to_csv(path, index=False)
    return read_people(path, **{"label": "hired", "group": "town"} | given)


def features(people: People) -> tuple[tuple[str, ...], np.ndarray]:
    rows = np.arange(len(people))
    encoding = Encoding.of(people, rows)
    return encoding.names, encoding.features(people, rows)


def assert_clean(folder: Path, people: People) -> None:
    clean = read(folder, CLEAN, "clean.csv")
    assert features(people)[0] == features(clean)[0]
    np.testing.assert_allclose(features(people)[1], features(clean)[1], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(people.y, clean.y)
    assert people.groups.tolist() == clean.groups.tolist()


def said(people: People) -> str:
    return " ".join(people.remarks)


NUMBERS = {
    "$50,000": ("income", lambda x: f"${x:,}"), "50.000 €": ("income", lambda x: f"{x:,} €".replace(",", ".")),
    "50,000": ("income", lambda x: f"{x:,}"), "12.5%": ("rate", lambda x: f"{x}%"),
    "3 kg": ("rate", lambda x: f"{x} kg"),
    "(3)": ("skill", lambda x: f"({-x})" if x < 0 else f"{x}"), '="3"': ("income", lambda x: f'="{x}"'),
}  # fmt: skip


@pytest.mark.parametrize("spelling", NUMBERS)
def test_numbers_are_read_as_clusters_reads_them(spelling, tmp_path):
    column, spelt = NUMBERS[spelling]
    people = read(tmp_path, CLEAN.assign(**{column: [spelt(x) for x in CLEAN[column].tolist()]}))
    assert_clean(tmp_path, people)
    assert spelling == "50,000" or f"Read as numbers: {column} (as in" in said(people)


@pytest.mark.parametrize("word", ["unknown", "-", "#N/A", "inf"])
def test_words_for_nothing_in_numbers_are_missing_cells_and_are_counted(word, tmp_path):
    cells = CLEAN.assign(income=[word if row in (3, 50, 70) else x for row, x in enumerate(CLEAN.income)])
    blank = CLEAN.assign(income=["" if row in (3, 50, 70) else x for row, x in enumerate(CLEAN.income)])
    people = read(tmp_path, cells)
    np.testing.assert_array_equal(features(people)[1], features(read(tmp_path, blank, "blank.csv"))[1])
    assert f"count as missing: 3 in 'income', such as {word!r}" in said(people)


@pytest.mark.parametrize("scale", [1e200, 1.5e303, 1e-300])
def test_columns_of_any_scale_count_alike(scale, tmp_path):
    assert_clean(tmp_path, read(tmp_path, CLEAN.assign(income=CLEAN.income * scale)))


def test_a_number_that_all_training_rows_share_is_no_rounding_blown_up(tmp_path):
    people = read(tmp_path, CLEAN.assign(k=np.where(np.arange(N) == N - 1, 0.2, 0.1)))
    encoding = Encoding.of(people, np.arange(N - 1))
    place = encoding.names.index("k")
    assert encoding.features(people, np.arange(N))[:, place].tolist() == [0.0] * (N - 1) + [pytest.approx(0.1)]


ALIKE = {
    "hired": {"yes": ["Yes", "yes", " YES"], "no": ["no", "NO ", "No"]},
    "town": {"a": ["A", "a", "a "], "b": ["b"] * 3},
    "school": {"north": ["north", "North", "nor\u00a0th"], "south": ["south"] * 3, "east": ["east"] * 3},
}  # fmt: skip


@pytest.mark.parametrize("column", ALIKE)
def test_values_that_differ_in_capitals_and_blanks_are_one_and_it_is_said(column, tmp_path):
    spelt = ALIKE[column] | ({"north": ["north", "North", "NORTH"]} if column == "school" else {})
    cells = [spelt[cell][third] for cell, third in zip(CLEAN[column], THIRD, strict=True)]
    people = read(tmp_path, CLEAN.assign(**{column: cells}))
    clean = read(tmp_path, CLEAN, "clean.csv")
    np.testing.assert_array_equal(people.y, clean.y)
    assert len(set(people.groups)) == 2
    np.testing.assert_array_equal(features(people)[1].sum(), features(clean)[1].sum())
    assert f"of '{column}'" in said(people)
    assert "Read as one value each" in said(people)


@pytest.mark.parametrize(
    ("no", "yes"),
    [("nein", "ja"), ("no", "Yes"), ("FALSE", "TRUE"), ("0", "1"), ("0.0", "1"), ("-1", "+1"), ("A", "a")],
)  # fmt: skip
def test_the_favourable_label_is_the_one_that_says_yes(no, yes, tmp_path):
    people = read(tmp_path, CLEAN.assign(hired=np.where(CLEAN.hired == "yes", yes, no)))
    assert_clean(tmp_path, people)
    assert people.labels == (no, yes)
    assert ("--favourable A" in said(people)) == (no == "A")


def test_whole_numbers_with_a_gap_are_shown_without_decimals(tmp_path):
    labels = [np.nan if row == 4 else float(cell == "yes") for row, cell in enumerate(CLEAN.hired)]
    people = read(tmp_path, CLEAN.assign(hired=labels), "t.parquet")
    assert people.labels == ("0", "1")
    assert "Not used: 1 row of t.parquet without hired or town." in people.remarks


def test_a_column_of_groups_may_hold_an_equals_sign(tmp_path):
    frame = CLEAN.rename(columns={"town": "x=y"}).replace({"a": "p=q"})
    assert len(set(read(tmp_path, frame, group="x=y").groups)) == 2
    assert set(read(tmp_path, frame, group="x=y=p=q").groups) == {"p=q", "all others"}


@pytest.mark.parametrize(
    ("changed", "remark"),
    [
        ({"rate": np.where(THIRD == 0, -999, CLEAN.rate)}, "'rate' holds -999"),
        ({"income": np.where(np.arange(N) == 7, 1e12, CLEAN.income)}, "column 'income' holds 1e+12"),
        ({"again": CLEAN.income * 2}, "say the same, up to scale"), ({"step": np.arange(N) * 5}, "'step' goes up by 5"),
        ({"tiny": 1 + 1e-15 * (THIRD == 0)}, "perhaps nothing but rounding"),
        ({"town": np.where(THIRD == 0, "none", CLEAN.town)}, "('none' counted as missing)"),
    ],
)  # fmt: skip
def test_odd_columns_are_named_as_clusters_names_them(changed, remark, tmp_path):
    assert remark in said(read(tmp_path, CLEAN.assign(**changed)))


def test_columns_that_stand_twice_are_read_once_or_refused(tmp_path):
    text = CLEAN.to_csv(index=False).strip().split("\n")
    same = [text[0] + ",skill", *(line + "," + line.split(",")[0] for line in text[1:])]
    (tmp_path / "same.csv").write_text("\n".join(same))
    people = read_people(tmp_path / "same.csv", label="hired", group="town")
    assert_clean(tmp_path, people)
    assert "Read once" in said(people)
    (tmp_path / "other.csv").write_text("\n".join([text[0] + ",hired", *(line + ",no" for line in text[1:])]))
    with pytest.raises(TableError, match="2 columns named 'hired'"):
        read_people(tmp_path / "other.csv", label="hired", group="town")


def test_columns_named_twice_count_once_and_excluded_ones_not_at_all(tmp_path):
    assert list(read(tmp_path, CLEAN, columns=["skill", "skill", "rate"]).frame.columns) == ["skill", "rate"]
    assert list(read(tmp_path, CLEAN, exclude=["school", "town"]).frame.columns) == ["skill", "income", "rate"]


@pytest.mark.parametrize(
    ("changed", "given", "words"),
    [
        ({}, {"label": "hird"}, "no column 'hird'.*Did you mean 'hired'"),
        ({}, {"group": "Town"}, "Did you mean 'town'"), ({}, {"group": "town=B"}, "not hold 'B'.*Did you mean 'b'"),
        ({}, {"favourable": "Yes"}, "Did you mean 'yes'"), ({}, {"columns": ["skil"]}, "Did you mean 'skill'"),
        ({}, {"exclude": ["scool"]}, "Did you mean 'school'"), ({}, {"columns": []}, "no column to predict"),
        ({"copy": CLEAN.hired}, {}, "'copy' says 'hired' again.*--exclude copy"),
        ({"code": (CLEAN.hired == "yes") * 3 + 1}, {}, "'code' says 'hired' again"),
        ({"hired": CLEAN.hired.replace("no", "none")}, {}, r"holds one value, 'yes' \('none' counted as missing\)"),
        ({"town": CLEAN.town.replace("a", "None")}, {}, r"one value, 'b' \('None' counted as missing\)"),
        ({"name": [f"P{row % 7}" for row in range(N)]}, {"id_column": "name"}, "The id 'P0' stands in 18 rows"),
    ],
)  # fmt: skip
def test_slips_are_refused_with_the_way_out(changed, given, words, tmp_path):
    with pytest.raises(TableError, match=words):
        read(tmp_path, CLEAN.assign(**changed), **given)


def test_a_table_without_names_says_how_to_read_it(tmp_path):
    (tmp_path / "t.csv").write_text(CLEAN.to_csv(index=False, header=False))
    with pytest.raises(TableError, match=r"no column 'hired'.*type --no-header"):
        read_people(tmp_path / "t.csv", label="hired", group="town")
    people = read_people(tmp_path / "t.csv", label="5", group="1", header=False)
    assert people.y.tolist() == read(tmp_path, CLEAN).y.tolist()
    (tmp_path / "t.csv").write_text(",".join(CLEAN.columns))
    with pytest.raises(TableError, match=r"t\.csv holds no rows"):
        read_people(tmp_path / "t.csv", label="hired", group="town")


def test_a_holdout_is_read_as_the_table_and_its_strange_categories_are_named(tmp_path):
    people = read(tmp_path, CLEAN)
    spelt = CLEAN.assign(income=[f"${x:,}" for x in CLEAN.income])
    np.testing.assert_array_equal(read(tmp_path, spelt, "o.csv", like=people).numbers["income"], CLEAN.income)
    west = read(tmp_path, CLEAN.replace({"school": {"east": "west"}}), "o.csv", like=people)
    assert "'school' holds 'west', which the table does not" in said(people.with_remarks(west))
    with pytest.raises(TableError, match=r"'school' of o\.csv holds 'EAST'.*spelling in both"):
        read(tmp_path, CLEAN.assign(school=CLEAN.school.str.upper()), "o.csv", like=people)


def run(folder: Path, frame: pd.DataFrame, *more: str):
    frame.to_csv(folder / "t.csv", index=False)
    out = ["--label", "hired", "--group", "town", "--out", str(folder / "page.html"), "--against-random", "2"]
    return CliRunner().invoke(app, ["fair", str(folder / "t.csv"), *out, *more])


LARGE = pd.concat([CLEAN] * 3, ignore_index=True)


@pytest.mark.parametrize(
    ("frame", "more", "words"),
    [
        (LARGE.assign(x=np.where(LARGE.hired == "yes", 5.0, -5.0) + np.arange(len(LARGE)) * 1e-3), [],
         "there is no gap to narrow. The model is right about all of them: does a column say the label?"),
        (LARGE, ["--columns", "town"], "Name columns to predict from that differ within groups: --columns."),
        (LARGE.assign(town=["c" if row == 7 else cell for row, cell in enumerate(LARGE.town)]), [], "The group 'c'"),
        (LARGE, ["--holdout", "t.csv"], "is the table that is trained on"),
    ],
)  # fmt: skip
def test_questions_without_an_answer_say_why_and_write_nothing(frame, more, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run(tmp_path, frame, *more)
    assert ran.exit_code == 2, ran.output
    assert words in re.sub(r"\s+", " ", ran.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
