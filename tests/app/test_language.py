"""The command `language`: an answer first, files beside it, exit codes, and one sentence for each kind of bad input."""

import csv
import io
import re

import pytest
import torch
from language_models import bert, gpt2, llama, tokenizer
from small_model import lines, write_model
from typer.testing import CliRunner

from crossfluence.app import app

pytestmark = [
    pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path)
    return tmp_path


def table(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def run(*arguments):
    return CliRunner().invoke(app, ["language", *map(str, arguments)])


def test_texts_are_listed_for_each_question_with_files_beside(folder):
    found = run("model", "texts.jsonl", "--ask", "ask.jsonl")
    assert found.exit_code in {0, 3}, found.output
    assert re.search(r"(?m)^These scores (can|cannot) be relied on", found.output)
    assert "he or she:" in found.output
    assert "pronouns:" in found.output
    assert "95 % interval" in found.output
    rows = table(folder / "crossfluence-language.csv")
    assert sorted(int(row["text"]) for row in rows) == list(range(1, 13))
    sizes = [abs(float(row["he or she"])) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    page = (folder / "crossfluence-language.html").read_text()
    assert "he or she" in page
    assert "http" not in page.split("<body>")[1]


def test_scores_of_tokens_stand_in_the_table_and_shade_the_page(folder):
    run("model", "texts.jsonl", "--ask", "ask.jsonl", "--out", "texts.html")
    found = run("model", "texts.jsonl", "--ask", "ask.jsonl", "--unit", "token", "--out", "tokens.html")
    assert found.exit_code in {0, 3}, found.output
    whole = {row["text"]: float(row["pronouns"]) for row in table(folder / "texts.csv")}
    rows = table(folder / "tokens.csv")
    assert all(row["content"].split()[int(row["position"])] == row["token"] for row in rows)
    for text, value in whole.items():
        parts = sum(float(row["pronouns"]) for row in rows if row["text"] == text)
        assert parts == pytest.approx(value, rel=1e-3, abs=1e-6 * max(map(abs, whole.values())))
    assert "rgba(" in (folder / "tokens.html").read_text()


def test_training_first_checks_the_answer_by_training_again(folder):
    found = run("model", "texts.jsonl", "--ask", "ask.jsonl", "--train", "--epochs", 2, "--lr", 0.01, "--remove", 2,
                "--batch-size", 4)  # fmt: skip
    assert found.exit_code in {0, 3}, found.output
    assert "that raise it most" in found.output
    assert "2 random, 1" in found.output
    assert "trained again" in (folder / "crossfluence-language.html").read_text()


def test_a_bias_is_asked_by_official_files_and_by_one_s_own(folder, monkeypatch):
    lines(folder / "own.jsonl", [{"more": "the nurse is late", "less": "the doctor is late"}] * 2)
    assert run("model", "texts.jsonl", "--bias", "own.jsonl").exit_code in {0, 3}
    official = folder / "crows_pairs"
    official.mkdir()
    (official / "crows_pairs_anonymized.csv").write_text(
        ",sent_more,sent_less,stereo_antistereo,bias_type\n0,she was late,he was late,stereo,gender\n"
    )
    monkeypatch.setenv("CROSSFLUENCE_DATA", str(folder))
    found = run("model", "texts.jsonl", "--bias", "crows", "--kind", "gender", "--force")
    assert found.exit_code in {0, 3}, found.output
    assert "crows:" in found.output


def test_a_masked_model_and_plain_text_are_read(folder):
    bert().float().save_pretrained("masked")
    tokenizer(masked=True).save_pretrained("masked")
    (folder / "plain.txt").write_text("the nurse said that she was late\nthe doctor is early\n\nhe was late\n")
    found = run("masked", "plain.txt", "--ask", "ask.jsonl", "--unit", "token")
    assert found.exit_code in {0, 3}, found.output
    assert "3 texts" in found.output


def adapters_of(model, base):
    from peft import LoraConfig, get_peft_model

    found = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for part in found.parameters():
            part.add_(0.1 if part.requires_grad else 0.0)
    found.peft_config["default"].base_model_name_or_path = str(base)
    return found


def test_adapters_are_explained_alone(folder):
    from transformers import AutoModelForCausalLM

    adapters_of(AutoModelForCausalLM.from_pretrained("model"), folder / "model").save_pretrained("adapters")
    found = run("adapters", "texts.jsonl", "--ask", "ask.jsonl")
    assert found.exit_code in {0, 3}, found.output


def test_a_plan_writes_nothing(folder):
    found = run("model", "texts.jsonl", "--ask", "ask.jsonl", "--plan")
    assert found.exit_code == 0
    assert re.search(r"About \d+ s\.", found.output)
    assert not list(folder.glob("crossfluence-language*"))


@pytest.mark.parametrize(("arguments", "words"), [
    (["model", "texts.jsonl"], "--ask questions.jsonl"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--unit", "word"], "sentence or token"),
    (["missing", "texts.jsonl", "--ask", "ask.jsonl"], "No model could be loaded from missing"),
    (["model", "missing.jsonl", "--ask", "ask.jsonl"], "no file missing.jsonl"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--field", "body"], "--field"),
    (["model", "empty.txt", "--ask", "ask.jsonl"], "is empty"),
    (["model", "long.txt", "--ask", "ask.jsonl"], "--truncate 10"),
    (["model", "texts.jsonl", "--ask", "same.jsonl"], "zero whatever the model"),
    (["model", "texts.jsonl", "--ask", "alike.jsonl"], "line 1 of alike.jsonl are equal"),
    (["model", "texts.jsonl", "--ask", "number.jsonl"], "prompt: 3; needed a text"),
    (["adapters", "texts.jsonl", "--ask", "ask.jsonl"], "The adapters in adapters do not fit their base model"),
    (["nobody/no-such-model", "texts.jsonl", "--ask", "ask.jsonl"], "a name while there is a network"),
    (["model", "texts.jsonl", "--ask", "wrong.jsonl"], "needed prompt and completion"),
    (["model", "texts.jsonl", "--ask", "broken.jsonl"], "no JSON"),
    (["model", "texts.jsonl", "--bias", "crows"], "--bias-data"),
    (["other", "texts.jsonl", "--ask", "ask.jsonl"], "the tokenizer is not the"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--train", "--remove", "99"], "99 of 12"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--out", "page.txt"], ".html"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_nothing_is_written(folder, arguments, words, monkeypatch):
    monkeypatch.delenv("CROSSFLUENCE_DATA", raising=False)
    (folder / "empty.txt").write_text("\n")
    (folder / "long.txt").write_text("the nurse " * 8 + "\n")
    lines(folder / "same.jsonl", [{"prompt": "the nurse", "completion": " he", "against": " he"}])
    lines(folder / "alike.jsonl", [{"prompt": "the nurse", "completion": " he", "against": "  he"}])
    lines(folder / "number.jsonl", [{"prompt": 3, "completion": " he"}])
    adapters_of(llama(num_key_value_heads=2, head_dim=4).float(), base="model").save_pretrained("adapters")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lines(folder / "wrong.jsonl", [{"question": "who?"}])
    (folder / "broken.jsonl").write_text("{\n")
    gpt2(vocab_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=1).float().save_pretrained("other")
    tokenizer().save_pretrained("other")
    found = run(*arguments)
    assert found.exit_code == 2, found.output
    assert words in " ".join(found.output.split())
    assert "Traceback" not in found.output
    assert not list(folder.glob("*.html")) + list(folder.glob("*.csv"))
