"""Texts and questions in files as people keep them, and one sentence for what cannot be read."""

import gzip
import json

import pytest

from crossfluence.errors import DataError
from crossfluence.language.files import json_lines, read_asked, read_texts
from crossfluence.language.settings import context_of


def written(path, name, content):
    file = path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


ROWS = [{"text": "the nurse", "n": 1}, {"text": "she\u2028said\x85so\x0b", "n": 2}]
LINES = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS)
PACKED = gzip.compress(LINES.encode(), mtime=0)  # names of tests hold it, and must not follow the clock


@pytest.mark.parametrize(("name", "content"), [
    ("t.jsonl", LINES),
    ("t.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
    ("t.JSONL", LINES.replace("\n", "\r\n")),
    ("t.jsonl.gz", PACKED),
    ("t.json", json.dumps(ROWS, indent=2)),
    ("t.json", f"\n{json.dumps(ROWS)}"),
    ("t.csv", 'n,text\r\n1,the nurse\r\n2,"she\u2028said\x85so\x0b"\r\n'),
    ("t.tsv", "text\tn\nthe nurse\t1\nshe\u2028said\x85so\x0b\t2\n"),
])  # fmt: skip
def test_texts_are_read_from_what_programs_write(tmp_path, name, content):
    assert read_texts(written(tmp_path, name, content)) == [row["text"] for row in ROWS]


def test_a_cell_may_have_lines_of_its_own(tmp_path):
    assert read_texts(written(tmp_path, "t.csv", 'text,n\n"the nurse\nis late, ""she"" said",1\n')) == [
        'the nurse\nis late, "she" said'
    ]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("t.jsonl.gz", PACKED[:-12], "not copied to its end"),
    ("t.jsonl.gz", PACKED[:10] + b"\0" * 30, "is damaged"),
    ("t.json", "[]", "an empty list"),
    ("t.json", '[{"text": "a"}, "b"]', "Line 2"),
    ("t.json", '[{"text": "a"', "begins as a list, and is no JSON"),
    ("t.csv", "text,n\n", "no rows below its header"),
    ("t.csv", "body,n\nthe nurse,1\n", r"\['body', 'n'\]; needed 'text', a text: --field NAME"),
    ("t.csv", "n,text\n1,the nurse\n2\n", "Line 3"),
    ("t.txt", LINES.encode("utf-16"), "not UTF-8"),
    ("t.jsonl", "[" * 100_000, "no JSON"),
    ("t.jsonl", '{"a":' * 100_000, "no JSON"),
    ("t.jsonl", '{"text": null}\n', "needed 'text', a text"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, content, words):
    with pytest.raises(DataError, match=words):
        read_texts(written(tmp_path, name, content))


HE = {"prompt": "the nurse said", "completion": " he"}


@pytest.mark.parametrize(("rows", "words"), [
    ([HE, HE], "Lines 1 and 2 of .*/ask.jsonl are both the question 'the nurse said ->  he'"),
    ([HE | {"name": "a"}, HE | {"name": "a", "against": " she"}], "both the question 'a'"),
    ([{"template": "{he/she} said"}, HE | {"name": "pronouns"}], "named 'pronouns', as the question of line 1 is"),
    ([HE | {"name": "pairs"}, {"more": "a b", "less": "a c"}], "named 'pairs', as the question of line 2 is"),
    ([{"template": "he said"}], "needed a place for either of two words"),
])  # fmt: skip
def test_no_question_is_lost_behind_another_of_its_name(tmp_path, rows, words):
    file = written(tmp_path, "ask.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match=words):
        read_asked(file)


def test_the_texts_of_each_question_are_known_without_a_model(tmp_path):
    rows = [HE | {"against": " she"}, {"template": "{he/she} said {his/her}"}, {"more": "a b", "less": "a c"}]
    asked = read_asked(written(tmp_path, "ask.json", json.dumps(rows)))
    assert asked.texts == {
        "the nurse said ->  he - the nurse said ->  she": ["the nurse said he", "the nurse said she"],
        "pronouns": ["he said his", "she said her"],
        "pairs": ["a b", "a c"],
    }
    assert [line for line, _ in json_lines(tmp_path / "ask.json")] == [1, 2, 3]


def test_the_context_is_what_positions_are_left():
    assert context_of({"n_positions": 8}) == 8
    assert context_of({"text_config": {"max_position_embeddings": 16}}) == 16
    assert context_of({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}) == 512
    assert context_of({"max_position_embeddings": -1}) is None
    assert context_of({}) is None
