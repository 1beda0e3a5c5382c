"""A fine-tuned model of transformers, the texts it was trained on, and questions about it, read from files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from crossfluence.errors import DataError, import_optional

from .losses import causal_loss, masked_loss
from .pairs import pair_preference, pronoun_preference
from .questions import Question, contrast, log_probability
from .scoring import Kind, completed, kind_of, refuse_equal

FEATURE = "Explaining a language model"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model with its tokenizer.

    Attributes:
        model: In evaluation mode.
        tokenizer: Of the model.
        params: Which parameters fine-tuning moved: of adapters, theirs alone.
    """

    model: nn.Module
    tokenizer: Any
    params: str

    @property
    def kind(self) -> Kind:
        """The kind of model: causal, masked or sequence to sequence."""
        return kind_of(self.model)

    @property
    def loss(self) -> Any:
        """The loss that its kind is trained with on plain texts."""
        if self.kind == "seq2seq":
            raise DataError("An encoder-decoder is not trained on plain texts. Use crossfluence.language in Python.")
        return masked_loss(self.tokenizer) if self.kind == "masked" else causal_loss()


def load(path: str | Path) -> Loaded:
    """A causal or masked model, from a folder of the Hugging Face kind or by its name, with or without adapters.

    Args:
        path: What `save_pretrained` wrote, or a name.

    Returns:
        The model in evaluation mode, with its tokenizer.

    Raises:
        DataError: If it cannot be loaded.
    """
    tr = import_optional("transformers", FEATURE, "language")
    adapters = (Path(path) / "adapter_config.json").is_file()
    try:
        base = _base_of(Path(path)) if adapters else path
        config = tr.AutoConfig.from_pretrained(base)
        masked = any("MaskedLM" in name for name in config.architectures or ())
        auto = tr.AutoModelForMaskedLM if masked else tr.AutoModelForCausalLM
        model = auto.from_pretrained(base)
        if adapters:
            model = _with_adapters(model, path, base)
        own = path if (Path(path) / "tokenizer_config.json").is_file() or not adapters else base
        tokenizer = tr.AutoTokenizer.from_pretrained(own)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0][:200]
        raise DataError(
            f"No model could be loaded from {path}: {first} Needed a folder that model.save_pretrained(folder) and "
            f"tokenizer.save_pretrained(folder) wrote, or a name while there is a network."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # told apart by the attention mask
    return Loaded(model.eval(), tokenizer, "*lora*" if adapters else "*")


def _with_adapters(model: nn.Module, path: str | Path, base: str | Path) -> nn.Module:
    peft = import_optional("peft", "A model with adapters", "language")
    try:
        return peft.PeftModel.from_pretrained(model, path, is_trainable=True)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"The adapters in {path} do not fit their base {base}, as its layers have other sizes or names; needed the "
            f"model that they were trained on: base_model_name_or_path in {path}/adapter_config.json."
        ) from error


def _base_of(folder: Path) -> str:
    base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
    if not base:
        raise DataError(f"{folder}/adapter_config.json names no base model; needed base_model_name_or_path.")
    return base


def read_texts(path: Path, field: str = "text") -> list[str]:
    """The texts of a file: JSONL with a field, or one a line.

    Args:
        path: `.jsonl`, or plain text.
        field: Of each object.

    Returns:
        In order.

    Raises:
        DataError: If there is no such file or field, or no text.
    """
    rows = _lines(path)
    if not path.name.removesuffix(".gz").endswith(("jsonl", "json")):
        return [row for _, row in rows]
    texts = []
    for line, row in rows:
        record = _object(path, line, row)
        if not isinstance(record.get(field), str):
            raise DataError(
                f"Line {line} of {path} has the fields {list(record)}; needed {field!r}, a text: --field NAME."
            )
        texts.append(record[field])
    return texts


def read_questions(path: Path, tokenizer: Any) -> dict[str, Question]:
    """Questions of a file, one a line.

    `{"prompt": ..., "completion": ...}`, with `"against"` for a contrast; `{"template": "... {he/she} ..."}` and
    `{"more": ..., "less": ...}`, all of which make up one question each. `"name"` names a question.

    Args:
        path: JSONL.
        tokenizer: Of the model.

    Returns:
        Questions by name.

    Raises:
        DataError: If a line is none of these.
    """
    found: dict[str, Question] = {}
    templates, pairs = list[str](), list[tuple[str, str]]()
    for line, row in _lines(path):
        record = _object(path, line, row)
        _refuse_other_values(path, line, record)
        if "template" in record:
            templates.append(record["template"])
        elif {"more", "less"} <= set(record):
            pairs.append((record["more"], record["less"]))
        elif {"prompt", "completion"} <= set(record):
            question = log_probability(record["prompt"], record["completion"], tokenizer=tokenizer)
            if "against" in record:
                one, other = (
                    completed(record["prompt"], record[name], tokenizer) for name in ("completion", "against")
                )
                refuse_equal(one, other, f"completions in line {line} of {path}")
                question = contrast(question, log_probability(record["prompt"], record["against"], tokenizer=tokenizer))
            found[str(record.get("name", question.name))] = question
        else:
            raise DataError(
                f"Line {line} of {path} has the fields {list(record)}; needed prompt and completion (and against), "
                f"template, or more and less."
            )
    if templates:
        found["pronouns"] = pronoun_preference(templates, tokenizer=tokenizer)
    if pairs:
        found["pairs"] = pair_preference(pairs, tokenizer=tokenizer)
    return found


def json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file.

    Args:
        path: One object a line; gzipped or not.

    Returns:
        Line numbers from 1, and objects.
    """
    return [(line, _object(path, line, row)) for line, row in _lines(path)]


def _refuse_other_values(path: Path, line: int, record: dict[str, Any]) -> None:
    for name in ("prompt", "completion", "against", "template", "more", "less"):
        if not isinstance(record.get(name, ""), str):
            raise DataError(f"Line {line} of {path} has {name}: {record[name]!r}; needed a text.")


def _lines(path: Path) -> list[tuple[int, str]]:
    import gzip

    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}.") from error
    rows = [(number, row) for number, row in enumerate(text.splitlines(), 1) if row.strip()]
    if not rows:
        raise DataError(f"{path} is empty; needed a text or an object in each line.")
    return rows


def _object(path: Path, line: int, row: str) -> dict[str, Any]:
    try:
        record = json.loads(row)
    except json.JSONDecodeError as error:
        raise DataError(f"Line {line} of {path} is no JSON: {error}.") from error
    if not isinstance(record, dict):
        raise DataError(
            f"Line {line} of {path} holds {type(record).__name__}; needed an object such as {{'text': ...}}."
        )
    return record
