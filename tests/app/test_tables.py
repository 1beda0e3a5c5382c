"""Tables of users: what is read, and one sentence with row and column for what cannot be used."""

import numpy as np
import pandas as pd
import pytest
import torch

from crossfluence.app.tables import TableError, read_table


@pytest.fixture
def read(tmp_path):
    """Writes text, bytes, an array or a frame to a file, and reads it as a table."""

    def write_and_read(content, name="t.csv", encoding="utf-8", named="utf-8", **options):
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content, allow_pickle=True)
        elif isinstance(content, pd.DataFrame):
            content.to_parquet(path)
        else:
            path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
        return read_table(path, encoding=named, **options)

    return write_and_read


def numbers(table):
    return table.values.tolist()


# What is read.


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a,b\n1,2\n4,5\n", {}),
        ("a,b\n1,2\n4,5", {}),  # no newline at the end
        ("a,b\r\n1,2\r\n4,5\r\n", {}),  # Windows
        ("a,b\n1,2\n4,5\n", {"encoding": "utf-8-sig"}),  # Excel
        ("a\tb\n1\t2\n4\t5\n", {"name": "t.tsv"}),
        ("a\tb\n1\t2\n4\t5\n", {"name": "T.TSV"}),
        ('"a","b"\n"1","2"\n"4","5"\n', {}),
        ("a, b\n1, 2\n 4 , 5\n", {}),
        ("a;b\n1;2\n4;5\n", {}),
        ("a;b\n1,0;2,0\n4;5,0\n", {}),  # a spreadsheet of Europe
        ("a\tb\n1\t2\n4\t5\n", {}),
        ('a;b;kind;one\n1;2;"x, y";7\n4;5;z;7\n', {}),
        ("a,b\r1,2\r4,5\r", {}),
        ("a,b\n\n1,2\n\n4,5\n\n", {}),
        ("a,b\n1e0,+2.0\n.4e1,5.\n", {}),
        ("a,kind,b,one\n1,x,2,7\n4,y,5,7\n", {}),
    ],
)
def test_a_text_table_is_read_as_it_was_meant(read, text, options):
    table = read(text, **options)
    assert numbers(table) == [[1, 2], [4, 5]]
    assert table.values.dtype == torch.float64
    assert table.columns == ("a", "b")
    assert table.ids == (0, 1)
    assert table.ignored == (("kind", "one") if "kind" in text else ())


def test_columns_of_text_or_one_value_are_ignored_by_name(read):
    table = read("name,size,note,one,empty\nu,1,good,7,\nv,2,see page 3,7,\nw,3,4,7,\n")
    assert table.columns == ("size",)
    assert table.ignored == ("name", "note", "one", "empty")


def test_quoted_cells_may_hold_separators_and_lines(read):
    table = read('name,"a, b"\n"x, y",1\n"two\nlines",2\n"say ""hi""",3\n', id_column="name")
    assert table.ids == ("x, y", "two\nlines", 'say "hi"')
    assert table.columns == ("a, b",)


def test_unicode_names_stay_as_they_are(read):
    table = read("Straße,größe,名前\nä,1,猫\n🐈,2,犬\n", id_column="Straße")
    assert (table.ids, table.columns, table.ignored) == (("ä", "🐈"), ("größe",), ("名前",))
    assert table.row("🐈") == 1


def test_an_array_and_a_parquet_file_are_read_too(read):
    for dtype in (np.float32, np.float64, np.int16, np.uint8, np.bool_):
        table = read(np.array([[0, 1], [1, 0], [1, 1]], dtype=dtype), "t.npy")
        assert numbers(table) == [[0, 1], [1, 0], [1, 1]]
        assert table.columns == ("0", "1")
    frame = pd.DataFrame({
        "id": [7, 8], "a": [1, 4], "text": ["u", "v"], "b": [2.0, 5.0], "lists": [[1], [2]], "yes": [True, False]
    })  # fmt: skip
    for name in ("t.parquet", "t.pq"):
        table = read(frame, name, id_column="id")
        assert (numbers(table), table.columns) == ([[1, 2, 1], [4, 5, 0]], ("a", "b", "yes"))
        assert (table.ids, table.ignored) == (("7", "8"), ("text", "lists"))


def test_standardised_columns_have_mean_0_and_deviation_1(read):
    x = read("a,b\n1,1000\n2,3000\n6,2000\n").standardised()
    assert torch.allclose(x.mean(0), torch.zeros(2, dtype=x.dtype), atol=1e-12)
    assert torch.allclose(x.square().mean(0), torch.ones(2, dtype=x.dtype))


# Ids.


def test_a_query_is_an_id_as_typed_or_a_row_number(read):
    text = "id,a\n007,1\n7,2\n12,3\n"
    named, numbered = read(text, id_column="id"), read(text)
    assert [named.row(query) for query in ("007", "7", "12")] == [0, 1, 2]
    assert named.columns == ("a",)
    assert numbered.row("2") == 2
    for table, query in ((named, "0"), (numbered, "7"), (numbered, "-1"), (numbered, "1.0"), (numbered, "")):
        with pytest.raises(TableError, match=f"No row has the id '{query}'; there are 3 ids: "):
            table.row(query)


def test_ids_that_repeat_and_columns_that_are_not_there_are_refused(read):
    with pytest.raises(TableError, match="The id 'u' stands in 2 rows of column 'id'"):
        read("id,a\nu,1\nv,2\nu,3\n", id_column="id")
    with pytest.raises(TableError, match="The id '' stands in 2 rows"):
        read("id,a\n,1\n,2\nu,3\n", id_column="id")
    with pytest.raises(TableError, match=r"has no column 'name'; its columns are 'id', 'a'"):
        read("id,a\nu,1\nv,2\n", id_column="name")
    with pytest.raises(TableError, match="no numeric column"):
        read("id\n1\n2\n", id_column="id")


# What cannot be used.


@pytest.mark.parametrize(
    ("cell", "came"),
    [("abc", "holds 'abc'"), ("", "is empty"), ("  ", "is empty"), ("nan", "holds 'nan'"), ("NA", "holds 'NA'"),
     ("N/A", "holds 'N/A'"), ("inf", "holds 'inf'"), ("-inf", "holds '-inf'"), ("1e999", "holds '1e999'"),
     ("1_000", "holds '1_000'"), ('"1,5"', "holds '1,5'"), ("1 000", "holds '1 000'"), ("½", "holds '½'")],
)  # fmt: skip
def test_a_cell_that_is_no_number_is_named_with_row_id_and_column(read, cell, came):
    text = f"id,a,size\nu,1,2\nv,3,4\nw,5,{cell}\nx,7,8\n"
    with pytest.raises(TableError, match=f"^Row 2 .id 'w'., column 'size' {came}; needed a finite number.*1 such cell"):
        read(text, id_column="id")
    with pytest.raises(TableError, match=f"^Row 2 .id 2., column 'size' {came}"):
        read(text)


def test_a_short_row_and_missing_values_of_other_formats_are_named(read):
    with pytest.raises(TableError, match=r"^Row 1 .*column 'b' is empty"):
        read("a,b\n1,2\n3\n4,5\n")
    with pytest.raises(TableError, match=r"^Row 1 .*column '0' is empty"):
        read(np.array([[1, 2.0], [np.nan, 3], [4, 5]]), "t.npy")
    with pytest.raises(TableError, match=r"^Row 2 .*column 'a' is empty"):
        read(pd.DataFrame({"a": pd.array([1, 2, None], dtype="Int64")}), "t.parquet")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "^t.csv is empty"),
        ("\n\n", "^t.csv is empty"),
        ("a,b\n", "^t.csv holds no rows"),
        ("a,b\nx,y\nu,v\n", "^t.csv has no numeric column; its columns are 'a', 'b'"),
        ("a,b\n1,2\n1,2\n", "^t.csv is constant"),
        ("a,b\n1,2\n", "^t.csv is constant"),  # one row
        ("1,2\n3,4\n", "first line of t.csv must hold column names, but it is all numbers: '1', '2'"),
        ("1,2\n", "first line of t.csv must hold column names"),
        ("1,2\n3,4\n", "type --no-header"),
        ("a,b\n1,2\n1,2,3\n", "^Cannot read t.csv: line 3 has 3 cells where the header has 2 column names"),
        ("a,b,a\n1,2,3\n4,5,6\n", "^t.csv has 2 columns named 'a'; name each otherwise"),
        ("a,b, a \n1,2,3\n4,5,6\n", "^t.csv has 2 columns named 'a'"),
        ("5,b,5\n1,2,3\n4,5,6\n", "2 columns named '5'; .* type --no-header"),
        ("id,Unnamed: 1\n4,3\n5,9\n2,2\n", "no numeric column.*'id' holds ids.*--columns"),
        ("a;b\n1,304;1\n2,500;2\n", "'1,304', which may be 1.304 or 1304"),
        ('a,b\n"1,2\n3,4\n', "^Cannot read t.csv"),
    ],
)
def test_a_table_without_numbers_says_what_is_there_instead(read, text, sentence):
    with pytest.raises(TableError, match=sentence) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_a_column_that_stands_twice_with_one_content_is_read_once(read):
    found = read("a,b,a\n1,2,1\n4,5,4\n")
    assert found.columns == ("a", "b")
    assert found.remarks == ("Read once, as they stand twice in t.csv with the same content: 'a'.",)
    assert read("a,b\n1,2\n4,5\n").remarks == ()


@pytest.mark.parametrize("name", ["adult.data", "adult.test"])
def test_files_are_read_by_the_names_that_the_uci_repository_gives_them(read, name):
    assert read("39, x, 7\n50, y, 13\n", name, header=False).values.tolist() == [[39, 7], [50, 13]]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_refused(read, encoding):
    with pytest.raises(TableError, match=r"^Cannot read t.csv: 'utf-8' codec"):
        read("ä,b\n1,2\n3,4\n", encoding=encoding)


@pytest.mark.parametrize(
    "array",
    [np.arange(6), np.zeros((2, 2, 2)), np.array(3.0), np.array([["a"]]), np.ones((2, 2)) * 1j,
     np.array([[1, "a"]], dtype=object), np.array([[None]], dtype=object)],
    ids=["1d", "3d", "0d", "text", "complex", "pickled", "pickled None"],
)  # fmt: skip
def test_an_array_of_another_form_is_refused_and_nothing_is_unpickled(read, array):
    with pytest.raises(TableError, match=r"needed numbers of shape \(n, f\)|allow_pickle=False"):
        read(array, "t.npy")


@pytest.mark.parametrize("name", ["t.npy", "t.parquet", "t.pq"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_refused_in_one_line(read, name, content):
    with pytest.raises(TableError, match=f"^Cannot read {name}: .") as caught:
        read(content, name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_of_another_kind_is_refused(tmp_path, read):
    with pytest.raises(TableError, match=r"There is no file .*gone\.csv"):
        read_table(tmp_path / "gone.csv")
    for name in ("t.xls", "t.docx", "t", "t.doc.gz", ".csv"):
        with pytest.raises(TableError, match=r"needed a file that ends in \.csv, \.tsv"):
            read("a,b\n1,2\n3,4\n", name)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(TableError, match="directory"):
        read_table(tmp_path / "folder.csv")
    with pytest.raises(TableError, match="holds no rows"):
        read(np.ones((0, 3)), "t.npy")
    with pytest.raises(TableError, match="no numeric column"):
        read(np.ones((3, 0)), "t.npy")


# What is no quantity, or hides one.

HEIGHTS = [1.5, 1.7, 1.6, 1.9, 1.4, 1.8, 1.55, 1.65, 1.75, 1.85]


def csv_of(**columns):
    rows = zip(*columns.values(), strict=True)
    return "\n".join([",".join(columns), *[",".join(map(str, row)) for row in rows]]) + "\n"


@pytest.mark.parametrize(
    ("name", "numbers", "kind"),
    [
        ("", range(10), "row numbers"),
        ("Unnamed: 0", range(10), "row numbers"),
        ("index", range(1, 11), "row numbers"),
        ("Row", [3, 1, 4, 15, 9, 2, 6, 5, 35, 8], "row numbers"),
        ("row_number", range(0, 100, 10), "row numbers"),
        ("anything", range(10), "row numbers"),
        ("anything", range(1, 11), "row numbers"),
        ("user_id", [901, 17, 22, 4, 5, 8, 1, 33, 35, 90], "ids"),
        ("customerId", [1, 1, 2, 2, 3, 3, 4, 4, 5, 5], "ids"),
        ("ID", [float(row) for row in range(7, 17)], "ids"),
    ],
)
def test_row_numbers_and_ids_are_left_out_with_a_word_and_used_when_named(read, name, numbers, kind):
    text = csv_of(**{name: numbers, "height": HEIGHTS})
    shown = name or "Unnamed: 0"
    for table in (read(text), read(pd.DataFrame({shown: numbers, "height": HEIGHTS}), "t.parquet")):
        assert table.columns == ("height",)
        assert table.left_out == {shown: kind}
        assert any(shown in sentence and kind in sentence for sentence in table.used())
    assert read(text, use=[shown, "height"]).columns == (shown, "height")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("year", range(2000, 2010)), ("age", [3, 1, 4, 15, 9, 2, 6, 5, 35, 8]), ("paid", range(0, 100, 10)),
     ("id", [0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9]), ("row", [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]), ("width", range(5, 15)),
     ("has_id", [0, 1] * 5)],
)  # fmt: skip
def test_quantities_stay(read, name, numbers):
    table = read(csv_of(**{name: numbers, "height": HEIGHTS}))
    assert table.columns == (name, "height")
    assert table.left_out == {}
    assert table.used() == [f"Columns used: {name}, height."]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [(["True", "False", "False"], [1, 0, 0]), (["TRUE", "true", "FALSE"], [1, 1, 0]), (["yes", "No", "YES"], [1, 0, 1]),
     (["y", "n", "n"], [1, 0, 0]), (["true", "0", "1"], [1, 0, 1]), (["0", "1", "0"], [0, 1, 0])],
)  # fmt: skip
def test_true_and_false_are_numbers_in_every_format(read, cells, numbers):
    for table in (read(csv_of(a=[1, 2, 4], flag=cells)), read(pd.DataFrame({"a": [1, 2, 4], "flag": cells}), "t.pq")):
        assert table.columns == ("a", "flag")
        assert table.values[:, 1].tolist() == numbers
    frame = pd.DataFrame({"a": [1, 2, 4], "flag": [bool(number) for number in numbers]})
    assert read(frame, "t.parquet").values[:, 1].tolist() == numbers


def test_a_missing_truth_is_named_in_every_format(read):
    for flags in (["yes", "", "no"], ["True", "NA", "False"]):
        with pytest.raises(TableError, match=r"^Row 1 .*column 'flag' .*; needed true or false.*--columns"):
            read(csv_of(a=[1, 2, 4], flag=flags))
    for kind in ("boolean", object):
        with pytest.raises(TableError, match=r"^Row 1 .*column 'flag' is empty; needed"):
            read(pd.DataFrame({"a": [1, 2, 4], "flag": pd.array([True, None, False], dtype=kind)}), "t.parquet")
    assert read(csv_of(a=[1, 2, 4], flag=["yes", "", "no"]), use=["a"]).columns == ("a",)
    assert read(csv_of(a=[1, 2, 4], answer=["yes", "maybe", "no"])).ignored == ("answer",)


def test_a_cell_that_flattens_its_column_is_named_with_row_and_column(read):
    names = [f"p{row}" for row in range(10)]
    for far in ("1e12", "-9999", "1e300"):
        cells = ["0.1", "0.2", far, "0.4", "-0.3", "0.2", "0.15", "0.3", "-0.1", "0"]
        table = read(csv_of(name=names, height=HEIGHTS, b=cells, c=[*cells[3:], *cells[:3]]), id_column="name")
        assert [sentence.partition(" so")[0] for sentence in table.warnings] == [
            f"Row 2 (id 'p2'), column 'b' holds {float(far):g},", f"Row 9 (id 'p9'), column 'c' holds {float(far):g},",
        ]  # fmt: skip
        x = table.standardised()
        assert x.isfinite().all()
        assert x[2, 1].abs() == pytest.approx(3, abs=1e-3)  # one of ten: sqrt(n - 1)
    many = ["-999", "-999", "-999", *map(str, HEIGHTS[:7])]
    (sentence,) = read(csv_of(height=HEIGHTS, b=many)).warnings
    assert sentence.startswith("Row 0 (id 0), column 'b' holds -999 (and 2 more cells of that column)")


def test_long_tails_rare_values_and_truths_are_no_outliers(read):
    generator = np.random.default_rng(0)
    columns = {
        "normal": generator.normal(size=300), "skewed": generator.lognormal(size=300),
        "rare": (generator.random(300) < 0.02) * 255.0, "one": np.eye(300)[7], "counts": generator.poisson(0.2, 300),
        "flag": generator.random(300) < 0.01,
        "two groups": np.where(np.arange(300) % 2, generator.normal(size=300), 1000 + generator.normal(size=300)),
    }  # fmt: skip
    assert read(pd.DataFrame(columns), "t.parquet").warnings == ()


def test_a_first_row_that_was_taken_for_a_header_is_a_warning(read):
    text = "".join(f"p{row},{row / 7:.3f},{(row * 37) % 11}\n" for row in range(10))
    table = read(text)
    (sentence,) = table.warnings
    assert sentence.startswith("The first line of t.csv was taken for column names, but '0.000', '0' in it look like")
    assert "--no-header" in sentence
    assert len(table.ids) == 9
    whole = read(text, header=False)
    assert (len(whole.ids), whole.columns, whole.ignored, whole.warnings) == (10, ("1", "2"), ("0",), ())
    assert read(text, header=False, id_column="0").ids[:2] == ("p0", "p1")
    assert read("1,2\n4,5\n", header=False).values.tolist() == [[1, 2], [4, 5]]


def test_other_encodings_are_read_when_named(read):
    for encoding in ("latin-1", "utf-16", "cp1252"):
        table = read("name,größe\nJürgen,1\nÉva,2\n", encoding=encoding, named=encoding, id_column="name")
        assert (table.ids, table.columns) == (("Jürgen", "Éva"), ("größe",))
    with pytest.raises(TableError, match="There is no encoding 'latin-99'"):
        read("a,b\n1,2\n3,4\n", named="latin-99")
    with pytest.raises(TableError, match="--encoding latin-1"):
        read("ä,b\n1,2\n3,4\n", encoding="latin-1")


def test_columns_asked_for_must_be_there_and_hold_numbers(read):
    text = "name,a,b\nu,1,5\nv,2,4\n"
    assert read(text, use=["b"]).columns == ("b",)
    with pytest.raises(TableError, match="no column 'c'; its columns are 'name', 'a', 'b'"):
        read(text, use=["c"])
    with pytest.raises(TableError, match=r"Column 'name' of t\.csv holds no numbers"):
        read(text, use=["name", "a"])


def test_a_named_index_of_a_saved_frame_is_a_column(read):
    frame = pd.DataFrame({"a": [1, 2, 4]}, index=pd.Index(["u", "v", "w"], name="who"))
    assert read(frame, "t.parquet", id_column="who").ids == ("u", "v", "w")
