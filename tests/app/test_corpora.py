"""Corpora of every kind: packed, in other encodings, spreadsheets and Parquet, folders with other files in them."""

import gzip
import io
import zipfile

import pandas as pd
import pytest
from typer.testing import CliRunner

from crossfluence import app as cli
from crossfluence.app.cleaned import write_corpus
from crossfluence.app.options import amount_of
from crossfluence.app.report.sheet import no_formula
from crossfluence.app.texts import encoding_of, first_row_of, left_aside, of_scripts
from crossfluence.errors import CorpusError, DataError
from crossfluence.words.corpus.encodings import told_encoding
from crossfluence.words.corpus.vocabulary import read_corpus

SENTENCES = ["er geht ins büro", "sie geht nach hause", "er trägt den größten hut", "sie geht ins büro"]


def sentences(source, **options):
    encoding, said = encoding_of(source)
    corpus = read_corpus(source, encoding=encoding, min_count=1, **options)
    return [" ".join(corpus.sentence(row)) for row in range(corpus.n)], said, corpus


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32"])
def test_the_encoding_of_a_corpus_is_told_also_where_it_is_packed(tmp_path, encoding):
    content = "".join(f"{one}\n" for one in SENTENCES).encode(encoding)
    for name, packed in (("t.txt", content), ("t.txt.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(packed)
        found, said, _ = sentences(tmp_path / name)
        assert found == SENTENCES
        assert bool(said) == (encoding in {"latin-1", "cp1252", "utf-16-le"})


def test_an_encoding_is_told_where_a_letter_lies_on_the_edge_of_a_piece():
    content = ("ü" * 10).encode()
    assert told_encoding([content[:3], content[3:]]) == "utf-8"
    assert told_encoding([content[:3]]) == "cp1252"  # breaks off within a letter
    assert told_encoding([b"a\x81b"]) == "latin-1"
    assert told_encoding([]) == "utf-8"


def test_files_of_different_encodings_are_refused_by_name(tmp_path):
    (tmp_path / "a.txt").write_bytes("büro\n".encode())
    (tmp_path / "b.txt").write_bytes("büro\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"a\.txt is utf-8, but b\.txt is cp1252"):
        encoding_of(tmp_path)


def test_tables_of_every_format_give_the_same_corpus_with_its_fields(tmp_path):
    pytest.importorskip("openpyxl")
    frame = pd.DataFrame({"id": [f"d{row}" for row in range(4)], "text": SENTENCES, "source": list("abab")})
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.write(tmp_path / "t.csv", "t.csv")
    for ending in ("xlsx", "parquet", "csv", "jsonl", "zip"):
        found, _, corpus = sentences(tmp_path / f"t.{ending}")
        assert found == SENTENCES
        assert corpus.fields["id"] == ("d0", "d1", "d2", "d3")
        assert corpus.fields["source"] == tuple("abab")
        texts = [one.text for one in corpus.find(corpus.ids).values()]
        assert texts == SENTENCES


def test_other_files_of_a_folder_are_left_aside_by_name(tmp_path):
    for name, one in zip("ab", SENTENCES, strict=False):
        (tmp_path / f"{name}.txt").write_text(f"{one}\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("not of the corpus")
    (tmp_path / "picture").write_bytes(b"\x89PNG\0\0")
    found, _, corpus = sentences(tmp_path)
    assert found == SENTENCES[:2]
    assert left_aside(corpus) == ["Not read, as they are no text or table: README.md, picture."]
    for name in "ab":
        (tmp_path / f"{name}.txt").unlink()
    with pytest.raises(CorpusError, match=r"holds no files to read; it holds README\.md, picture, which are no text"):
        sentences(tmp_path)


def test_unspaced_text_is_refused_with_the_right_advice(tmp_path):
    (tmp_path / "zh.txt").write_text(
        "他在公司里工作了很多年然后回家了\n她在家里照顾孩子们直到晚上\n" * 9, encoding="utf-8"
    )
    _, _, corpus = sentences(tmp_path / "zh.txt")
    with pytest.raises(CorpusError, match=r"sets no blanks between words.*--tokenizer whitespace"):
        of_scripts(corpus, "words")
    (tmp_path / "cut.txt").write_text("他 在 公司 里 工作\n她 在 家 里\n" * 9, encoding="utf-8")
    assert of_scripts(sentences(tmp_path / "cut.txt", tokenizer="whitespace")[2], "whitespace") == []


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl"])
def test_a_cleaned_corpus_read_again_lacks_the_chosen_sentences_alone(tmp_path, ending):
    frame = pd.DataFrame({"id": range(4), "text": SENTENCES, "line": list("wxyz")})
    frame.to_csv(tmp_path / "t.csv", index=False)
    _, _, corpus = sentences(tmp_path / "t.csv")
    gone = {corpus.ids[1], corpus.ids[3]}
    assert write_corpus(corpus, gone, tmp_path / f"clean.{ending}") == 2
    found, _, again = sentences(tmp_path / f"clean.{ending}")
    assert found == [SENTENCES[0], SENTENCES[2]]
    if ending != "txt":
        assert again.fields["id"] == ("0", "2")
        assert again.fields["line (table)"] == ("w", "y")


def test_a_damaged_archive_is_refused_in_one_line(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("t.txt", "he works\n" * 50)
    for damaged in (file.getvalue()[:-30], b"PK\x03\x04" + file.getvalue()[9:], file.getvalue().replace(b"he", b"xx")):
        (tmp_path / "t.zip").write_bytes(damaged)
        with pytest.raises(CorpusError) as caught:
            sentences(tmp_path / "t.zip")
        assert "\n" not in str(caught.value)


def test_no_cell_of_the_scores_begins_like_a_formula():
    assert no_formula("=cmd|' /C calc'!A0") == "'=cmd|' /C calc'!A0"
    assert [no_formula(cell) for cell in ("-3.5", "+1e5", "a=b", 7)] == ["-3.5", "+1e5", "a=b", 7]


@pytest.mark.parametrize("line", [["--version"], ["-V"], ["-h"], ["words", "-h"], ["words", "--example-lists"]])
def test_short_questions_have_short_answers(line):
    result = CliRunner().invoke(cli.app, line)
    assert result.exit_code == 0
    assert result.stdout


@pytest.mark.parametrize("ending", ["csv", "tsv", "xlsx"])
def test_a_table_of_text_without_a_header_loses_no_row(tmp_path, ending):
    frame = pd.DataFrame({"a": range(4), "b": SENTENCES})
    path = tmp_path / f"t.{ending}"
    if ending == "xlsx":
        frame.to_excel(path, index=False, header=False)
    else:
        frame.to_csv(path, index=False, header=False, sep="," if ending == "csv" else "\t")
    found, _, corpus = sentences(path, header=False, column="1")
    assert found == SENTENCES
    assert corpus.fields["0"] == ("0", "1", "2", "3")
    assert corpus.ids[0] == "1"
    assert first_row_of(corpus) == []
    corpus.save(tmp_path / "kept")
    again = type(corpus).load(tmp_path / "kept")
    assert again.find([again.ids[0]])[again.ids[0]].text == SENTENCES[0]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_first_row_that_reads_like_text_is_named(tmp_path, ending):
    long = [f"{one}, sagte jemand, und dann nichts mehr" for one in SENTENCES]
    text = "".join(f'"{one}"\n' if ending == "csv" else f"{one}\n" for one in long)
    (tmp_path / f"t.{ending}").write_text(text)
    found, _, corpus = sentences(tmp_path / f"t.{ending}")
    assert len(found) == len(SENTENCES) - 1
    ((said),) = first_row_of(corpus)
    assert "'er geht ins büro" in said
    assert "type --no-header" in said
    (tmp_path / f"u.{ending}").write_text("text\n" + text)
    assert first_row_of(sentences(tmp_path / f"u.{ending}")[2]) == []


def test_which_column_holds_the_text_is_asked_with_what_to_type(tmp_path):
    (tmp_path / "t.csv").write_text("".join(f"{row},{one}\n" for row, one in enumerate(SENTENCES * 9)))
    result = CliRunner().invoke(cli.app, ["words", str(tmp_path / "t.csv"), "--plan"])
    assert result.exit_code == 2
    said = result.stderr.replace("\n", " ")
    assert "--column 'er geht ins büro' or another" in said
    assert "if these are no names but a first row, type --no-header" in said


@pytest.mark.parametrize("amount", ["0%", "100%", "0", "2.5", "x%", "nan"])
def test_an_amount_that_is_none_is_refused(amount):
    with pytest.raises(DataError, match=r"--remove .* is not a share such as 1% or a number such as 300"):
        amount_of(amount, "--remove")
    assert (amount_of("2.5%", "--remove"), amount_of("30", "--remove")) == (0.025, 30)
