"""Kinds of corpus as people bring them: any separator, lists by path, old ends of lines, and files that are no text."""

import csv
import json
import random

import pandas as pd
import pytest
from typer.testing import CliRunner

from crossfluence.app import app
from crossfluence.app.report.sheet import own_ids
from crossfluence.app.texts import first_row_of
from crossfluence.errors import CorpusError
from crossfluence.words.corpus.vocabulary import read_corpus

SENTENCES = [f"she works at home number {word}, and he; there" for word in "abcdefghijkl"]
TABLE = pd.DataFrame({"docno": [f"D-{place}" for place in range(12)], "text": SENTENCES})


@pytest.mark.parametrize("separator", [",", ";", "|", "\t"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_tables_with_any_separator_are_the_same_corpus(separator, ending, tmp_path):
    if ending == ".tsv":
        TABLE.to_csv(tmp_path / "t.tsv", sep="\t", index=False, quoting=csv.QUOTE_ALL)
    else:
        TABLE.to_csv(tmp_path / "t.csv", sep=separator, index=False)
    corpus = read_corpus(tmp_path / f"t{ending}", min_count=1)
    assert [corpus.sentence(row)[:4] for row in range(12)] == [["she", "works", "at", "home"]] * 12
    assert own_ids(corpus) == tuple(TABLE["docno"])


def test_an_uneven_line_of_semicolons_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("id;text;year\n1;he works;2000\n2;she works\n")
    with pytest.raises(CorpusError, match=r"Line 3 of t\.csv has 2 cells, but its header has 3"):
        read_corpus(tmp_path / "t.csv", min_count=1)


def test_a_first_line_for_excel_is_no_text(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\nid;text\n7;he works\n8;she works\n")
    corpus = read_corpus(tmp_path / "t.csv", min_count=1)
    assert (corpus.ids, own_ids(corpus)) == (("3", "4"), ("7", "8"))


def test_paths_lead_into_lists_and_a_list_is_refused_with_one(tmp_path):
    rows = [{"id": place, "messages": [{"role": "user", "content": text}]} for place, text in enumerate(SENTENCES)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(CorpusError, match=r"holds a list in 'messages'.*column='messages\.0\.content'"):
        read_corpus(tmp_path / "t.jsonl", column="messages")
    corpus = read_corpus(tmp_path / "t.jsonl", column="messages.0.content", min_count=1)
    assert corpus.n == 12
    assert "role" not in corpus.words


@pytest.mark.parametrize("value", [{"en": "he works"}, ["he works"]])
def test_objects_and_lists_in_parquet_are_no_text(value, tmp_path):
    pd.DataFrame({"id": [1, 2], "text": [value, value]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(CorpusError, match=r"column='text\.(en|0)'"):
        read_corpus(tmp_path / "t.parquet", min_count=1)
    part = "en" if isinstance(value, dict) else "0"
    assert read_corpus(tmp_path / "t.parquet", column=f"text.{part}", min_count=1).words == ("he", "works")


def test_a_field_twice_in_one_object_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "he works", "text": "she works"}\n')
    with pytest.raises(CorpusError, match=r"Line 1 of t\.jsonl holds the field 'text' twice"):
        read_corpus(tmp_path / "t.jsonl", min_count=1)


@pytest.mark.parametrize("name", ["t.txt", "t.csv"])
def test_carriage_returns_end_lines_where_nothing_else_does(name, tmp_path):
    lines = SENTENCES if name == "t.txt" else ["text", *(f'"{one}"' for one in SENTENCES)]
    (tmp_path / name).write_bytes("\r".join(lines).encode())
    assert read_corpus(tmp_path / name, min_count=1).n == 12


@pytest.mark.parametrize(
    ("start", "kind"),
    [("<!DOCTYPE html><p>a", "a web page"), ("%PDF-1.4", "a PDF"), ("{\\rtf1 he works}", "a file of a word processor")],
)
def test_files_with_marks_between_their_words_are_refused(start, kind, tmp_path):
    (tmp_path / "t").write_text(start)
    with pytest.raises(CorpusError, match=f"is {kind}, and no plain text.*format='text'"):
        read_corpus(tmp_path / "t", min_count=1)


def test_tags_and_tables_that_are_read_as_text_are_named(tmp_path):
    (tmp_path / "t.txt").write_text("<p>he works</p>\n<p>she works</p>\n")
    assert "tags such as <p>" in first_row_of(read_corpus(tmp_path / "t.txt", min_count=1))[0]
    TABLE.to_csv(tmp_path / "c.txt", index=False, sep=";")
    assert "--format csv" in first_row_of(read_corpus(tmp_path / "c.txt", min_count=1))[0]
    assert read_corpus(tmp_path / "c.txt", format="csv", min_count=1).n == 12


def test_the_column_with_most_words_is_proposed(tmp_path):
    TABLE.rename(columns={"text": "Satz"}).assign(year=2000).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(CorpusError, match="Pass column='Satz'"):
        read_corpus(tmp_path / "t.csv")
    TABLE.to_csv(tmp_path / "n.csv", index=False, header=False)
    with pytest.raises(CorpusError, match="Pass column='1' or another, and pass header=False"):
        read_corpus(tmp_path / "n.csv")


def test_empty_sheets_and_rows_above_the_header_do_not_count(tmp_path):
    with pd.ExcelWriter(tmp_path / "t.xlsx") as book:
        TABLE.to_excel(book, sheet_name="texts", index=False, startrow=2)
        pd.DataFrame().to_excel(book, sheet_name="empty", index=False)
    corpus = read_corpus(tmp_path / "t.xlsx", min_count=1)
    assert corpus.n == 12
    assert corpus.ids[0] == "4"
    assert own_ids(corpus) == tuple(TABLE["docno"])


def test_a_run_that_is_refused_after_training_leaves_nothing(tmp_path):
    he, she = ["he", "him", "man", "boy"], ["she", "her", "woman", "girl"]
    work, home = ["office", "salary", "career", "business"], ["home", "family", "children", "marriage"]
    draw, lines = random.Random(0), list[str]()
    for row in range(160):
        who, place = (he, work) if draw.random() < 0.75 and row % 2 else (he if row % 2 else she, home)
        one, two, three, four = draw.choice(who), draw.choice(place), draw.choice(place), draw.choice(who)
        lines.append(f"the {one} went to the {two} with {three} and {four}")
    (tmp_path / "t.txt").write_text("\n".join(lines))
    (tmp_path / "lists.json").write_text(json.dumps({"X": he, "Y": she, "A": work, "B": home}))
    options = ["--weat", str(tmp_path / "lists.json"), "--dimensions", "4", "--min-count", "1"]
    result = CliRunner().invoke(app, ["words", str(tmp_path / "t.txt"), *options, "--out", str(tmp_path / "out.html")])
    assert result.exit_code == 2
    assert sorted(one.name for one in tmp_path.iterdir()) == ["lists.json", "t.txt"]
