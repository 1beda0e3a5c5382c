"""A fine-tuned model of transformers, the texts it was trained on, and questions about it, read from files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from crossfluence.errors import DataError, import_optional

from .files import Asked, read_asked
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
    def config(self) -> dict[str, Any]:
        """Of the model."""
        found: Any = getattr(self.model, "config", None)
        return {} if found is None else found.to_dict()

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
    return questions_of(read_asked(path), tokenizer)


def questions_of(asked: Asked, tokenizer: Any) -> dict[str, Question]:
    """Questions about a model, from questions in words.

    Args:
        asked: Of a file, or of a published test.
        tokenizer: Of the model.

    Returns:
        Questions by name.

    Raises:
        ObjectiveError: If two texts that are compared are the same to the model.
    """
    found = dict[str, Question]()
    for name, (line, record) in asked.completions.items():
        question = log_probability(record["prompt"], record["completion"], tokenizer=tokenizer)
        if "against" in record:
            one, other = (completed(record["prompt"], record[each], tokenizer) for each in ("completion", "against"))
            refuse_equal(one, other, f"completions in line {line} of {asked.source}")
            question = contrast(question, log_probability(record["prompt"], record["against"], tokenizer=tokenizer))
        found[name] = question
    found |= {name: pronoun_preference(some, tokenizer=tokenizer) for name, some in asked.templates.items()}
    return found | {name: pair_preference(some, tokenizer=tokenizer) for name, some in asked.pairs.items()}
