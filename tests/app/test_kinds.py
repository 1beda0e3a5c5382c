"""Kinds of table as people bring them: each gives the numbers of the clean table, or a sentence that helps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from crossfluence.app import app
from crossfluence.app.tables import TableError, read_table

GENERATOR = np.random.default_rng(3)
CLEAN = pd.DataFrame({
    "height": np.round(GENERATOR.normal(170, 9, 12), 1), "weight": np.round(GENERATOR.normal(70, 9, 12), 1),
    "age": np.round(GENERATOR.normal(40, 5, 12), 1),
})  # fmt: skip
NUMBERS = CLEAN.to_numpy()
TEXT = CLEAN.to_csv(index=False)
SHUFFLED = np.random.default_rng(4).permutation(12)


def written(folder: Path, text: str | None, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes((text or "").encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("Zeile", SHUFFLED + 1, "row numbers"), ("customer_no", SHUFFLED * 7 + 300, "row numbers"),
        ("anything", SHUFFLED, "row numbers"), ("anything", SHUFFLED[::-1] + 1.0, "row numbers"),
        ("Unnamed: 0", [0, 1, 2, 3, 4, 5] * 2, "row numbers"), ("SK_ID_CURR", SHUFFLED * 31, "ids"),
        ("Kundennummer", SHUFFLED * 31, "ids"), ("ISBN", SHUFFLED * 7 + 9783161484100, "codes"),
        ("customerNo", SHUFFLED * 3 + 20, "row numbers"),
    ],
)  # fmt: skip
def test_columns_that_name_rows_are_left_out_whatever_they_are_called(name, values, kind, tmp_path):
    frame = CLEAN.copy()
    frame.insert(0, name, values)
    table = read_table(written(tmp_path, frame.to_csv(index=False)))
    np.testing.assert_array_equal(table.numbers, NUMBERS)
    assert table.left_out == {name: kind}


@pytest.mark.parametrize("values", [np.arange(12) * 10 + 500, np.arange(2012, 2000, -1)])
def test_a_column_of_equal_steps_is_used_with_a_warning(values, tmp_path):
    table = read_table(written(tmp_path, CLEAN.assign(step=values).to_csv(index=False)))
    assert "step" in table.columns
    assert any("'step' goes" in warning and "--exclude" in warning for warning in table.warnings)


def test_ranks_are_quantities(tmp_path):
    assert "rank" in read_table(written(tmp_path, CLEAN.assign(rank=SHUFFLED + 1).to_csv(index=False))).columns


@pytest.mark.parametrize(
    ("no", "yes"), [("nein", "Ja"), ("non", "OUI"), ("no", "sí"), ("FALSCH", "WAHR"), ("нет", "да")]
)
def test_truth_in_other_languages_is_a_number(no, yes, tmp_path):
    truth = SHUFFLED % 2
    table = read_table(written(tmp_path, CLEAN.assign(flag=np.where(truth, yes, no)).to_csv(index=False)))
    np.testing.assert_array_equal(table.numbers[:, 3], truth)


def test_truth_with_unknown_cells_is_refused_or_filled(tmp_path):
    cells = np.where(SHUFFLED % 2, "yes", "no").astype(object)
    cells[2] = "?"
    path = written(tmp_path, CLEAN.assign(flag=cells).to_csv(index=False))
    with pytest.raises(TableError, match=r"column 'flag' holds '\?'; needed true or false"):
        read_table(path)
    assert read_table(path, missing="drop").numbers.shape == (11, 4)


SPELLINGS = {
    "1 304,50": lambda x: f"{x:,.1f}".replace(",", " ").replace(".", ","),
    "no-break blank": lambda x: f"{x:,.1f}".replace(",", "\u00a0").replace(".", ","),
    "1'304.50": lambda x: f"{x:,.1f}".replace(",", "'"),
    "$1,304.50": lambda x: f"${x:,.1f}",
    "1.304,50 €": lambda x: f"{x:_.1f} €".replace(".", ",").replace("_", "."),
    "12.5%": lambda x: f"{x}%",
    "12,5 %": lambda x: f"{x} %".replace(".", ","),
    "CHF 12.50": lambda x: f"CHF {x}",
    "12 kg": lambda x: f"{x} kg",
    '="12"': lambda x: f'="{x}"',
}


@pytest.mark.parametrize("scale", [1, 1024])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_numbers_with_units_and_groups_are_read(spelling, scale, tmp_path):
    cells = [[SPELLINGS[spelling](round(x * scale, 1)) for x in row] for row in NUMBERS.tolist()]
    text = "\n".join(["height;weight;age", *map(";".join, cells)])
    table = read_table(written(tmp_path, text))
    np.testing.assert_allclose(table.numbers, np.round(NUMBERS * scale, 1))
    assert scale == 1 or any("Read as numbers: height (as in" in remark for remark in table.remarks)


@pytest.mark.parametrize("sign", ["\u2212{}", "({})", "$({})", "-{} €"])
def test_negative_numbers_of_accountants_are_negative(sign, tmp_path):
    rows = [";".join(sign.format(x) for x in row) for row in NUMBERS.tolist()]
    text = "\n".join(["height;weight;age", *rows])
    if sign == "$({})":
        with pytest.raises(TableError, match="its first row holds"):
            read_table(written(tmp_path, text))
        return
    np.testing.assert_array_equal(read_table(written(tmp_path, text)).numbers, -NUMBERS)


def test_text_that_begins_with_digits_stays_text(tmp_path):
    frame = CLEAN.assign(size=["5 kg", "7 lb"] * 6, place=["1 Main Street"] * 6 + ["2 Hill"] * 6, code=["P1", "P2"] * 6)
    table = read_table(written(tmp_path, frame.to_csv(index=False)))
    np.testing.assert_array_equal(table.numbers, NUMBERS)


@pytest.mark.parametrize("sign", ["^", "~", "\x01", "§"])
def test_odd_separators_are_told(sign, tmp_path):
    np.testing.assert_array_equal(read_table(written(tmp_path, TEXT.replace(",", sign))).numbers, NUMBERS)


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\n" + TEXT.replace(",", ";"), "# made in 2020\n# by us\n" + TEXT, "Persons, all of them\n\n" + TEXT,
        "Persons,,\n" + TEXT, "Persons\n\n" + TEXT.replace(",", ";"), "# " + TEXT, TEXT + "\x1a",
        "\ufeff" + TEXT, "% comment\n" + TEXT,
    ],
)  # fmt: skip
def test_what_stands_around_a_table_is_no_part_of_it(text, tmp_path):
    table = read_table(written(tmp_path, text))
    np.testing.assert_array_equal(table.numbers, NUMBERS)
    assert table.columns == tuple(CLEAN.columns)


def test_a_number_sign_as_the_name_of_a_column_is_no_comment(tmp_path):
    frame = CLEAN.copy()
    frame.insert(0, "#", SHUFFLED)
    assert read_table(written(tmp_path, frame.to_csv(index=False))).left_out == {"#": "row numbers"}


def test_decimal_commas_without_a_header_are_cut_at_semicolons(tmp_path):
    path = written(tmp_path, CLEAN.to_csv(index=False, header=False, sep=";", decimal=","))
    np.testing.assert_array_equal(read_table(path, header=False).numbers, NUMBERS)


def test_thousands_are_told_by_other_columns(tmp_path):
    frame = pd.DataFrame({"cost": [f"{x:,.0f}" for x in range(1000, 13000, 1000)], "age": np.arange(12) ** 2 + 0.5})
    assert read_table(written(tmp_path, frame.to_csv(index=False))).numbers[:, 0].tolist() == list(
        range(1000, 13000, 1000)
    )
    dotted = pd.DataFrame({"cost": [f"{x}.000" for x in range(1, 13)], "age": [f"{x * x},5" for x in range(12)]})
    assert read_table(written(tmp_path, dotted.to_csv(index=False, sep=";"))).numbers[1, 0] == 2000
    alone = read_table(written(tmp_path, dotted.assign(age=range(20, 32)).to_csv(index=False, sep=";")))
    assert any("If the points set thousands apart" in remark for remark in alone.remarks)


@pytest.mark.parametrize("value", [-999.0, 0.0, 9999.0])
def test_numbers_that_stand_for_missing_ones_are_named(value, tmp_path):
    frame = pd.concat([CLEAN] * 4, ignore_index=True)
    frame.loc[::4, "height"] = value
    warnings = read_table(written(tmp_path, frame.to_csv(index=False))).warnings
    assert any(f"'height' holds {value:g} in 12 of 48 rows" in warning for warning in warnings)


def test_amounts_that_are_often_zero_are_not_missing(tmp_path):
    paid = np.where(SHUFFLED % 3 == 0, 0, SHUFFLED**3 + 10.5)
    assert not read_table(written(tmp_path, CLEAN.assign(paid=paid).to_csv(index=False))).warnings


@pytest.mark.parametrize("orient", ["records", "split", "index", "columns", "table"])
def test_json_of_pandas_is_read_in_every_orientation(orient, tmp_path):
    table = read_table(written(tmp_path, CLEAN.to_json(orient=orient), "t.json"))
    np.testing.assert_array_equal(table.numbers, NUMBERS)


def test_json_with_one_list_of_objects_is_that_list(tmp_path):
    made = {"data": CLEAN.to_dict("records"), "meta": {"n": 12}}
    np.testing.assert_array_equal(read_table(written(tmp_path, json.dumps(made, indent=1), "t.json")).numbers, NUMBERS)


@pytest.mark.parametrize("row", ['{"a": 1, "a": 2, "b": 3}', '{"a": {"b": 1}, "a.b": 2, "c": 3}'])
def test_json_with_a_field_twice_is_refused(row, tmp_path):
    with pytest.raises(TableError, match="name each otherwise"):
        read_table(written(tmp_path, f"{row}\n{row}\n", "t.jsonl"))


def test_decimal_commas_in_json_and_sheets_are_read(tmp_path):
    text = CLEAN.map(lambda x: str(x).replace(".", ","))
    (tmp_path / "t.json").write_text(text.to_json(orient="records"))
    text.to_excel(tmp_path / "t.xlsx", index=False)
    for name in ("t.json", "t.xlsx"):
        np.testing.assert_array_equal(read_table(tmp_path / name).numbers, NUMBERS)


def test_a_sheet_may_have_a_title_and_no_header(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [["All persons"], [], [*CLEAN.columns], *NUMBERS.tolist()]:
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    np.testing.assert_array_equal(read_table(tmp_path / "t.xlsx").numbers, NUMBERS)
    CLEAN.assign(name="P").to_excel(tmp_path / "n.xlsx", index=False, header=False)
    assert any("--no-header" in warning for warning in read_table(tmp_path / "n.xlsx").warnings)


@pytest.mark.parametrize(
    ("keys", "said"),
    [(["a", "a "] * 6, "The id 'a' stands in 12 rows"), (["", *"bcdefghijkl"], "'key' is empty in row 0")],
)
def test_ids_that_do_not_tell_rows_apart_are_refused_with_a_way_out(keys, said, tmp_path):
    path = written(tmp_path, CLEAN.assign(key=keys).to_csv(index=False))
    with pytest.raises(TableError, match=f"{said}.*Name another column with --id"):
        read_table(path, id_column="key")
    with pytest.raises(TableError, match="Did you mean 'key'"):
        read_table(path, id_column="Key")


def test_ids_are_found_as_they_are_typed(tmp_path):
    table = read_table(written(tmp_path, CLEAN.assign(key=SHUFFLED.astype(float)).to_csv(index=False)), id_column="key")
    assert table.row("7") == table.row(" 7.0 ") == int(np.flatnonzero(SHUFFLED == 7)[0])
    CLEAN.assign(key=SHUFFLED.astype(float)).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", id_column="key").ids[0] == str(SHUFFLED[0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04abc", "a zip or Excel file, and no text. Name it with .xlsx"), (b"<html><body>", "a web page"),
        (b"a,b\n1,\x002\n3,4\n5,6\n7,8\n", "Line 2 of t.csv holds a zero byte"),
        (b'a,b\n"1,2\n', "a quote .* is opened and not closed"),
        (b"", "t.csv is empty"),
        (b"a_x\nb_y\nc_z\n", "its first row holds 'b_y'. If that is several cells, type --sep"),
    ],
)  # fmt: skip
def test_files_of_other_kinds_are_named(content, said, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(TableError, match=said):
        read_table(tmp_path / "t.csv")


def test_more_clusters_than_different_rows_are_refused_before_anything_is_written(tmp_path):
    path = written(tmp_path, pd.concat([CLEAN[:3]] * 8).to_csv(index=False))
    assert (read_table(path).different_rows(2), read_table(path).different_rows(9)) == (2, 3)
    result = CliRunner().invoke(app, ["clusters", str(path), "--k", "5", "--out", str(tmp_path / "out.html")])
    assert result.exit_code == 2
    assert "--k 5 is more than the 3 different rows of t.csv. Type --k 3." in " ".join(result.output.split())
    assert [one.name for one in tmp_path.iterdir()] == ["t.csv"]
