"""A small language model with its texts and questions in a folder, for the commands about language models."""

import json

import torch
from language_models import WORDS, llama, tokenizer

QUESTIONS = [
    {"prompt": "the nurse said that", "completion": " he", "against": " she", "name": "he or she"},
    {"template": "the doctor said that {he/she} was late"}, {"template": "the nurse said that {he/she} was late"},
]  # fmt: skip


def write_model(path):
    """Writes `model`, `texts.jsonl` and `ask.jsonl`."""
    llama().float().save_pretrained(path / "model")
    tokenizer().save_pretrained(path / "model")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(5, len(WORDS), (12, 6), generator=generator).tolist()
    lines(path / "texts.jsonl", [{"text": " ".join(WORDS[word] for word in row)} for row in rows])
    lines(path / "ask.jsonl", QUESTIONS)


def lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
