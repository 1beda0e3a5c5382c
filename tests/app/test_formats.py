"""Files of tables as people have them: packed, in other encodings, spreadsheets, JSON; and what is done with cells."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import numpy as np
import pandas as pd
import pytest

from crossfluence.app.columns import TableError
from crossfluence.app.tables import read_table

TEXT = "name,größe,b\nJürgen,1.5,2\nÉva,2.5,5\nÅsa,3.5,1\n"
VALUES = [[1.5, 2], [2.5, 5], [3.5, 1]]


@pytest.fixture
def read(tmp_path):
    def write_and_read(content, name="t.csv", **options):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_table(path, **options)

    return write_and_read


def zipped(content, *names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_encodings_are_told(read, encoding):
    table = read(TEXT.encode(encoding), id_column="name")
    assert (table.ids, table.columns, table.values.tolist()) == (("Jürgen", "Éva", "Åsa"), ("größe", "b"), VALUES)
    guessed = [sentence for sentence in table.used() if "name its encoding with --encoding" in sentence]
    assert bool(guessed) == (encoding in {"latin-1", "cp1252", "utf-16-le", "utf-16-be"})


@pytest.mark.parametrize(
    ("ending", "pack"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress),
     (".zip", lambda c: zipped(c, "t.csv", "__MACOSX/t.csv"))],
)  # fmt: skip
def test_packed_tables_are_read_and_damaged_ones_refused(read, ending, pack):
    packed = pack(TEXT.encode())
    assert read(packed, f"t.csv{ending}", id_column="name").values.tolist() == VALUES
    for damaged in (packed[: len(packed) // 2], b"name,a\nu,1\n"):
        with pytest.raises(TableError) as caught:
            read(damaged, f"t.csv{ending}")
        assert "\n" not in str(caught.value)


def test_an_archive_of_several_files_names_them(read):
    with pytest.raises(TableError, match=r"holds 2 files: a\.csv, b\.csv; needed one"):
        read(zipped("a\n1\n", "a.csv", "b.csv"), "t.zip")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " ", ":"])
def test_separators_are_told_or_named(read, separator):
    text = TEXT.replace(",", separator)
    assert read(text, id_column="name").values.tolist() == VALUES
    assert read(text, id_column="name", separator=separator).values.tolist() == VALUES
    with pytest.raises(TableError, match="--separator ab must be one sign"):
        read(text, separator="ab")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a;b\n1.304,50;1\n2.500,25;2\n", [[1304.5, 1], [2500.25, 2]]),
        ('a,b\n"1,304.50",1\n"12,500.25",2\n', [[1304.5, 1], [12500.25, 2]]),
        ('a,b\n"0,5",1\n"2,25",2\n', [[0.5, 1], [2.25, 2]]),  # quoted, so that the decimal comma may stand there
        ("a;b\n0,5;1\n;2\n2,25;3\n", None),
    ],
)
def test_numbers_are_read_as_people_write_them(read, text, values):
    if values is None:
        assert read(text, missing="mean").values.tolist() == [[0.5, 1], [1.375, 2], [2.25, 3]]
    else:
        assert read(text).values.tolist() == values


def test_spreadsheets_json_and_arrays_are_the_same_table(tmp_path):
    pytest.importorskip("openpyxl")
    frame = pd.DataFrame({"name": ["u", "v", "w"], "a": [1.5, 2.5, 3.5], "b": [2, 5, 1], "yes": [True, False, True]})
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "t.json", orient="records")
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    for ending in ("xlsx", "jsonl", "json", "parquet", "csv"):
        table = read_table(tmp_path / f"t.{ending}", id_column="name")
        assert (table.ids, table.columns) == (("u", "v", "w"), ("a", "b", "yes"))
        assert table.values.tolist() == [[1.5, 2, 1], [2.5, 5, 0], [3.5, 1, 1]]
    np.savez(tmp_path / "t.npz", x=np.array(VALUES), labels=np.arange(3))
    assert read_table(tmp_path / "t.npz").values.tolist() == VALUES
    np.savez(tmp_path / "two.npz", x=np.array(VALUES), y=np.array(VALUES))
    with pytest.raises(TableError, match=r"holds 2 arrays of numbers of shape .n, f., of x \(3, 2\), y \(3, 2\)"):
        read_table(tmp_path / "two.npz")


def test_sheets_without_a_header_or_with_company_are_named(tmp_path):
    pytest.importorskip("openpyxl")
    pd.DataFrame(VALUES).to_excel(tmp_path / "bare.xlsx", index=False, header=False)
    with pytest.raises(TableError, match="Type --no-header"):
        read_table(tmp_path / "bare.xlsx")
    assert read_table(tmp_path / "bare.xlsx", header=False).values.tolist() == VALUES
    with pd.ExcelWriter(tmp_path / "two.xlsx") as book:
        for name in ("first", "second"):
            pd.DataFrame({"a": [1, 2]}).to_excel(book, sheet_name=name, index=False)
    with pytest.raises(TableError, match="holds 2 sheets: 'first', 'second'"):
        read_table(tmp_path / "two.xlsx")


def test_nested_fields_of_json_are_named_by_their_path(read):
    rows = [{"body": {"height": 1.5, "weight": 70 + row}, "row": row / 2} for row in range(3)]
    table = read("\n".join(map(json.dumps, rows)), "t.jsonl")
    assert table.columns == ("body.weight", "row")  # heights are all the same
    with pytest.raises(TableError, match=r"Line 2 of t\.jsonl is not JSON"):
        read('{"a": 1}\n{"a": \n', "t.jsonl")
    with pytest.raises(TableError, match=r"holds 3 where an object"):
        read("[3]", "t.json")


# Cells that hold no number.

HOLES = "id,a,b,c\nu,1,2,x\nv,,4,y\nw,5,oops,x\nx,7,8,y\ny,9,,x\n"


def test_all_faulty_columns_and_rows_are_named_at_once(read):
    with pytest.raises(TableError) as caught:
        read(HOLES, id_column="id")
    for part in ("Row 1 (id 'v'), column 'a' is empty", "3 such cells", "1 in 'a' (row v)", "2 in 'b' (rows w, y)",
                 "--missing drop to leave out those 3 rows", "--missing mean", "--exclude"):  # fmt: skip
        assert part in str(caught.value)


def test_rows_are_dropped_or_means_are_put_and_it_is_said(read):
    dropped = read(HOLES, id_column="id", missing="drop")
    assert (dropped.ids, dropped.values.tolist(), dropped.rows) == (("u", "x"), [[1, 2], [7, 8]], (0, 3))
    assert "Left out 3 of 5 rows, as cells of theirs hold no number: rows v, w, y." in dropped.used()[0]
    with pytest.raises(TableError, match="Row v was left out, as a cell of it holds no number"):
        dropped.row("v")
    filled = read(HOLES, id_column="id", missing="mean")
    assert filled.values.tolist() == [[1, 2], [5.5, 4], [5, 14 / 3], [7, 8], [9, 14 / 3]]
    assert filled.used()[0].startswith("The column's mean stands in cells that hold no number: 1 in 'a' (row v), 2 in")
    assert read(HOLES, id_column="id", exclude=["b"], missing="drop").ids == ("u", "w", "x", "y")
    with pytest.raises(TableError, match=r"Every row has a cell without a number.*--exclude"):
        read("a,b\n1,\n,2\n3,\n,4\n", missing="drop")


# Text of few values.


def test_text_of_few_values_becomes_columns_of_0_and_1_and_is_listed(read):
    text = "kind,two,name,a\ndog,x,p,1\ncat,y,q,2\ndog,x,r,4\n,y,s,3\ncat,x,t,6\n,x,u,5\n"
    plain = read(text)
    assert plain.columns == ("a",)
    assert "Not used, as they hold text: kind, two, name. To use kind, two, type --categories onehot." in plain.used()
    table = read(text, categories="onehot")
    assert table.columns == ("a", "kind=(empty)", "kind=cat", "kind=dog", "two=y")
    assert table.values[:, 1:].tolist() == [
        [0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]
    ]  # fmt: skip
    assert "Text as columns of 0 and 1, one for each value: kind (3 values), two (2 values)." in table.used()
    assert read(text, use=["kind"], categories="onehot").columns == table.columns[1:4]
    with pytest.raises(TableError, match="type --categories onehot"):
        read(text, use=["kind"])


# Columns that should perhaps not be used as they are.


def test_equal_constant_rounding_and_wildly_scaled_columns_are_named(read):
    rows = np.random.default_rng(0).normal(size=(20, 2))
    frame = pd.DataFrame({
        "a": rows[:, 0], "b": 1000 - 3 * rows[:, 0], "c": 1e9 * rows[:, 1], "one": 7.0,
        "still": 1e6 + 1e-6 * np.arange(20) ** 2,
    })  # fmt: skip
    table = read(frame.to_csv(index=False))
    said = " ".join(table.warnings)
    assert "Columns 'a', 'b' say the same, up to scale" in said
    assert "Columns are of very different size: 'c' varies about" in said
    assert "Column 'still' varies by 0.00036 around 1e+06" in said
    assert "Not used, as they hold only one value: one." in table.used()


def test_a_sample_keeps_the_rows_that_are_asked_about(read):
    rows = "\n".join(f"p{row},{row * 37 % 101},{row * row % 53}" for row in range(200))
    table = read(f"id,a,b\n{rows}\n", id_column="id")
    few = table.sampled(20, 3, keep=[table.row("p77")])
    assert len(few.ids) == 20
    assert "p77" in few.ids
    assert few.values.tolist() == [table.values[table.row(label)].tolist() for label in few.ids]
    assert few.used()[0].startswith("A random 20 of 200 rows are used")
    assert table.sampled(0, 3) is table
