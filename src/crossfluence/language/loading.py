"""A fine-tuned model of transformers, the texts it was trained on, and questions about it, read from files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from crossfluence.errors import CrossfluenceError, DataError, import_optional

from .files import Asked, read_asked
from .losses import causal_loss, masked_loss
from .pairs import pair_preference, pronoun_preference
from .questions import Question, contrast, log_probability
from .scoring import Kind, completed, kind_of, refuse_equal
from .settings import ADAPTERS, TOKENIZERS, context_of

FEATURE = "Explaining a language model"
ENCODER_DECODER = "An encoder-decoder is not trained on plain texts. Use crossfluence.language in Python."


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model with its tokenizer.

    Attributes:
        model: In evaluation mode.
        tokenizer: Of the model.
        params: Which parameters fine-tuning moved: of adapters, theirs alone.
        folder: Where the model lies; a name, if it is not on this machine.
    """

    model: nn.Module
    tokenizer: Any
    params: str
    folder: Path = Path()

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
            raise DataError(ENCODER_DECODER)
        return masked_loss(self.tokenizer) if self.kind == "masked" else causal_loss()


def load(path: str | Path) -> Loaded:
    """A causal or masked model, from a folder of the Hugging Face kind or by its name, with or without adapters.

    Args:
        path: What `save_pretrained` wrote, or a name.

    Returns:
        The model in evaluation mode, with its tokenizer.

    Raises:
        DataError: If it cannot be loaded.
        CrossfluenceError: If a package is missing.
    """
    tr = import_optional("transformers", FEATURE, "language")
    folder = Path(path)
    _refuse_other_folders(folder, str(path))
    adapters = (folder / ADAPTERS).is_file()
    base = _base_of(folder) if adapters else path
    try:
        config = tr.AutoConfig.from_pretrained(base)
        if getattr(config, "is_encoder_decoder", False):
            raise DataError(ENCODER_DECODER)
        masked = any("MaskedLM" in name for name in config.architectures or ())
        auto = tr.AutoModelForMaskedLM if masked else tr.AutoModelForCausalLM
        model, loading = auto.from_pretrained(base, output_loading_info=True)
        _refuse_random(base, config, loading)
        if adapters:
            model = _with_adapters(model, path, base)
        own = path if (folder / "tokenizer_config.json").is_file() or not adapters else base
        tokenizer = tr.AutoTokenizer.from_pretrained(own)
    except CrossfluenceError:
        raise
    except Exception as error:  # of transformers, safetensors, tokenizers, huggingface_hub: each has its own
        first = str(error).strip().partition("\n")[0][:200]
        raise DataError(
            f"No model could be loaded from {path}: {first.rstrip(' .:;,')}. Needed a folder that "
            f"model.save_pretrained(folder) and tokenizer.save_pretrained(folder) wrote, or a name while there is a "
            f"network."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # told apart by the attention mask
    return Loaded(model.eval(), tokenizer, "*lora*" if adapters else "*", folder)


def _refuse_other_folders(folder: Path, typed: str) -> None:
    """Says what to type for a file, for a folder of checkpoints, and for one without a tokenizer."""
    if folder.is_file():
        raise DataError(f"{folder} is a file; needed the folder of the model: {folder.parent}.")
    if not folder.is_dir():
        if typed.startswith((".", "~")) or typed.endswith("/") or folder.is_absolute() or len(folder.parts) > 2:
            raise DataError(f"There is no folder {typed}. Needed one that model.save_pretrained(folder) wrote.")
        return  # a name
    if not (folder / "config.json").is_file() and not (folder / ADAPTERS).is_file():
        kept = sorted(folder.glob("checkpoint-*"), key=lambda each: (len(each.name), each.name))
        one = f"It holds checkpoints: type {kept[-1]}." if kept else "Type model.save_pretrained(folder)."
        raise DataError(f"{folder} has no config.json, so it holds no model. {one}")
    if not (folder / ADAPTERS).is_file() and not any(any(folder.glob(name)) for name in TOKENIZERS):
        raise DataError(f"{folder} has no tokenizer. Type tokenizer.save_pretrained({str(folder)!r}).")


def _refuse_random(base: str | Path, config: Any, loading: Any) -> None:
    """Refuses a model whose files lack a part of a language model, which would be drawn at random."""
    missing = sorted(loading.get("missing_keys", ()))
    if missing:
        kind = (config.architectures or [config.model_type])[0]
        raise DataError(
            f"{base} holds a {kind}, which lacks {missing[0]} and with it the head of a language model; needed a "
            f"causal or a masked one. Classifiers and encoders: crossfluence.language in Python."
        )


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
    base = json.loads((folder / ADAPTERS).read_text()).get("base_model_name_or_path")
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


def questions_for(loaded: Loaded, asked: Asked) -> dict[str, Question]:
    """Questions that a model can read.

    Args:
        loaded: The model.
        asked: Of a file, or of a published test.

    Returns:
        Questions by name.

    Raises:
        DataError: If a text of theirs is longer than the model reads, or a word asked about is none that it knows.
        ObjectiveError: If two texts that are compared are the same to the model.
    """
    tokenizer, most = loaded.tokenizer, context_of(loaded.config)
    for text in [text for texts in asked.texts.values() for text in texts]:
        if most is not None and (count := len(tokenizer(text)["input_ids"])) > most:
            raise DataError(
                f"A question asks about a text of {count} tokens, {text[:60]!r}; the model reads {most}. Shorten it."
            )
    for word in _asked_about(asked):
        if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False)["input_ids"]:
            raise DataError(
                f"The tokenizer does not know {word!r}, and has {tokenizer.unk_token!r} for it as for any other such "
                f"word; needed words that the model can tell apart."
            )
    return questions_of(asked, tokenizer)


def _asked_about(asked: Asked) -> list[str]:
    """Completions, and the words of templates."""
    found = [record[each] for _, record in asked.completions.values() for each in ("completion", "against")
             if each in record]  # fmt: skip
    return found + [word for some in asked.templates.values() for each in some for word in (*each.first, *each.second)]


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
