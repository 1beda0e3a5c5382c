"""Texts, labels and questions in files as people keep them: read alike from all, or one sentence that helps."""

import gzip
import json
import lzma

import pandas as pd
import pytest

from crossfluence.app.language import glued
from crossfluence.app.records import guessed, read_labelled, read_questions, read_texts
from crossfluence.app.suspects import one_spelling, read_in_part, spelt_as
from crossfluence.app.tables import TableError
from crossfluence.errors import DataError


def written(path, name, content):
    file = path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


ROWS = [{"text": "the nurse", "n": 1}, {"text": "she\u2028said\x85so\x0b", "n": 2}]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS)
PACKED = gzip.compress(LINES.encode(), mtime=0)  # names of tests hold it, and must not follow the clock


@pytest.mark.parametrize(("name", "content"), [
    ("t.jsonl", LINES),
    ("t.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
    ("t.JSONL", LINES.replace("\n", "\r\n")),
    ("t.jsonl", LINES.encode("utf-16")),
    ("t.jsonl.gz", PACKED),
    ("t.jsonl.xz", lzma.compress(LINES.encode())),
    ("t.json", json.dumps(ROWS, indent=2)),
    ("t.json", f"\n{json.dumps(ROWS)}"),
    ("t.json", json.dumps(TEXTS)),
    ("t.jsonl", "".join(f"{json.dumps(text)}\n" for text in TEXTS)),
    ("t.csv", 'n,text\r\n1,the nurse\r\n2,"she\u2028said\x85so\x0b"\r\n'),
    ("t.csv", "n;text\n1;the nurse\n2;she\u2028said\x85so\x0b\n"),
    ("t.csv", "text\nthe nurse\nshe\u2028said\x85so\x0b\n"),
    ("t.tsv", "text\tn\nthe nurse\t1\nshe\u2028said\x85so\x0b\t2\n"),
    ("t.txt", "\n".join(TEXTS)),
])  # fmt: skip
def test_texts_are_read_from_what_programs_write(tmp_path, name, content):
    assert read_texts(written(tmp_path, name, content)) == TEXTS


@pytest.mark.parametrize("name", ["t.parquet", "t.xlsx"])
def test_texts_and_labels_are_read_from_sheets(tmp_path, name):
    frame = pd.DataFrame({"text": ["a b", "c d", "e f"], "label": [0, 1, 1]})
    frame.to_parquet(tmp_path / name) if name == "t.parquet" else frame.to_excel(tmp_path / name, index=False)
    assert read_labelled(tmp_path / name, "text", "label") == (["a b", "c d", "e f"], ["0", "1", "1"])


def test_a_cell_may_have_lines_of_its_own(tmp_path):
    assert read_texts(written(tmp_path, "t.csv", 'text,n\n"the nurse\nis late, ""she"" said",1\n')) == [
        'the nurse\nis late, "she" said'
    ]


@pytest.mark.parametrize("labels", [["1", "0"], [1, 0], [1.0, 0.0], ["1 ", " 0"], [1, "0"]])
def test_labels_are_the_same_however_they_are_written(tmp_path, labels):
    rows = [{"text": f"word {row}", "label": labels[row % 2]} for row in range(4)]
    file = written(tmp_path, "t.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    assert read_labelled(file, "text", "label")[1] == ["1", "0", "1", "0"]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("t.jsonl.gz", PACKED[:-12], "not copied to its end"),
    ("t.jsonl.gz", PACKED[:10] + b"\0" * 30, "is damaged"),
    ("t.json", "[]", "an empty list"),
    ("t.json", '[{"text": "a"}, 3]', "Line 2"),
    ("t.json", '[{"text": "a"', "begins as a list, and is no JSON"),
    ("t.csv", "text,n\n", "no rows below its header"),
    ("t.csv", "body,n\nthe nurse,1\n", r"\['body', 'n'\]; needed 'text', a text: --field NAME"),
    ("t.csv", "Text,n\nthe nurse,1\n", r"--field NAME\. Did you mean 'Text'"),
    ("t.csv", "n,text\n1,the nurse\n2\n", "Line 3"),
    ("t.jsonl", "text,n\nthe nurse,1\n", r"Line 1 .* is no JSON .*A table needs \.csv"),
    ("t.jsonl", "[" * 100_000, "no JSON"),
    ("t.jsonl", '{"a":' * 100_000, "no JSON"),
    ("t.jsonl", '{"text": null}\n', "holds null in 'text'; needed a text"),
    ("t.txt", LINES, r"holds JSON, and its name says that it is plain text\. Name it with \.jsonl"),
    ("t.txt", "", "is empty"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, content, words):
    with pytest.raises((DataError, TableError), match=words):
        read_texts(written(tmp_path, name, content))


@pytest.mark.parametrize(("label", "words"), [
    (None, "Line 2 of .* holds null in 'label'; needed a label"), ("", "holds '' in 'label'"),
    (float("nan"), "holds nan in 'label'"), (["good"], r"holds \['good'\] in 'label'"),
])  # fmt: skip
def test_a_text_without_a_label_is_named(tmp_path, label, words):
    rows = [{"text": "a b", "label": "good"}, {"text": "c d", "label": label}]
    file = written(tmp_path, "t.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match=words):
        read_labelled(file, "text", "label")


def test_queries_may_stand_alone_and_an_encoding_that_was_guessed_is_said(tmp_path):
    file = written(tmp_path, "q.txt", "ein schöner Film\nein Film\n".encode("latin-1"))
    assert read_labelled(file, "text", "label", optional=True) == (["ein schöner Film", "ein Film"], [])
    assert guessed(file, None) == ["Read q.txt as cp1252, as it is not UTF-8. If letters look wrong, save it so."]
    assert guessed(written(tmp_path, "q.txt", "schön")) == []


def test_labels_that_differ_in_capitals_are_one_also_for_queries():
    labels, remarks = one_spelling(["good", "Good", "good", "BAD", "bad", "bad"])
    assert labels == ["good"] * 3 + ["bad"] * 3
    assert remarks == ["Read as one label each: 'BAD', 'bad'; 'Good', 'good'."]
    assert spelt_as(labels, ["GOOD", "bad", "ugly"]) == ["good", "bad", "ugly"]


def test_texts_longer_than_is_read_are_counted():
    assert read_in_part(["word " * 128], ["a"]) == []
    assert "1 training texts and 0 queries are longer" in read_in_part(["word " * 129, "a"], ["a"])[0]


HE = {"prompt": "the nurse said that", "completion": " he"}


@pytest.mark.parametrize(("content", "words"), [
    ("the nurse said that {he/she} was late\n", 'holds no JSON; needed a question in each line, such as {"template"'),
    ("prompt,completion\nthe nurse, he\n", "holds no JSON"),
    (json.dumps(HE | {"agianst": " she"}), "Line 1 of .* has the field 'agianst'. Did you mean 'against'"),
    (json.dumps({"Prompt": "a", "Completion": " b"}), "Did you mean 'prompt'"),
    (json.dumps(HE | {"template": "{he/she} said"}), "of several questions; needed one in each line"),
])  # fmt: skip
def test_slips_in_questions_are_refused(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        read_questions(written(tmp_path, "ask.jsonl", content))


def test_a_question_may_stand_over_several_lines_with_fields_of_its_own(tmp_path):
    asked = read_questions(written(tmp_path, "ask.json", json.dumps(HE | {"note": "x", "template_id": 3}, indent=1)))
    assert list(asked.completions) == ["the nurse said that ->  he"]
    assert glued(asked) == []


def test_a_completion_that_continues_a_word_is_named(tmp_path):
    asked = read_questions(written(tmp_path, "ask.jsonl", json.dumps(HE | {"completion": "he"})))
    assert "continues the word 'that', so that the model reads 'thathe'" in glued(asked)[0]
