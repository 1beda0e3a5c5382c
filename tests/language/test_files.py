"""Questions in files, and one sentence for what cannot be read."""

import json

import pytest

from crossfluence.errors import DataError
from crossfluence.language.files import json_lines, read_asked
from crossfluence.language.settings import context_of


def written(path, name, content):
    file = path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


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
