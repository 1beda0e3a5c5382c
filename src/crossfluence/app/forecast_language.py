"""Estimates of the time and memory of explaining a language model, from its files and the texts, without loading it."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..language.settings import ADAPTERS, TOKENIZERS, LanguageSettings
from .forecast import LIBRARIES, Forecast, beside_others, seconds_of

WEIGHTS = "*.safetensors"
TABLES = re.compile(r"embed|wte|wpe|position|shared\.weight")  # matrices of which rows are looked up
COUNTED = 2_000  # texts whose tokens are counted; the rest is taken to be like them
PER_WORD = 1.4  # tokens, where the tokenizer's files are not understood
TRIAL_SECONDS, TRIAL_TOKENS = 0.05, 256
AT_ONCE = 32  # texts of a question in a batch
SCORES, TRAINING = 3.0, 1.2  # passes over the texts: for scores, and in each epoch
ROOTS, PRODUCTS, PILOT = 7.0, 9.0, 320  # for Horizon, and for each question, of so many texts
ASKED = 4.0  # passes over the texts of a question: its gradient, value, interval and shares
REACHED = 0.65  # of a trial's speed, in a run, whose products are smaller and of many shapes
CALLS = 1.5e-3  # seconds for each layer and batch, however small
STARTED, LOADING = 4.0, 3e-9  # seconds for PyTorch and transformers, and for each byte of weights
COPIES, ROWS, ADDED = 4, 3, 0.1  # of the parameters; of each text's gradients; GiB of transformers
MOST, FEW, ROOM = 2**28, 4, 2.0  # numbers in the roots of Horizon, roots at least, and what is held of them
BASIS, STEPS, FEWEST_STEPS = 2**30, 20, 4  # numbers in its subspace, and products, at most and at least


@dataclass(frozen=True)
class ModelFiles:
    """Sizes of a model, out of its files.

    Attributes:
        config: Of the model (of adapters, that of their base).
        shapes: Of all parameters.
        trained: Of those that fine-tuning moved: of adapters, theirs alone.
        bytes: Of the files.
        folders: Of the adapters, if there are some, and of the model.
    """

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    trained: dict[str, tuple[int, ...]]
    bytes: int
    folders: tuple[Path, ...]

    @classmethod
    def of(cls, path: Path) -> ModelFiles | None:
        """The sizes of a model.

        Args:
            path: A folder that `save_pretrained` wrote.

        Returns:
            None where these files are not there, or are not those of a language model: it has to be loaded to know.
        """
        adapters = _object(path / ADAPTERS)
        base = path if adapters is None else Path(str(adapters.get("base_model_name_or_path")))
        config, own = _object(base / "config.json"), _shapes(path)
        whole = own if adapters is None else {**_shapes(base), **own}
        words = any(any(folder.glob(name)) for folder in (path, base) for name in TOKENIZERS)
        lacking = config is None or not own or not words or (adapters is not None and len(whole) == len(own))
        if lacking or not _is_language_model(config or {}):
            return None
        size = sum(file.stat().st_size for folder in {base, path} for file in folder.glob(WEIGHTS))
        return cls(config or {}, whole, own, size, (path, base))

    @classmethod
    def loaded(cls, model: Any, config: dict[str, Any], path: Path) -> ModelFiles:
        """The same of a model that had to be loaded.

        Args:
            model: With its parameters.
            config: Of the model.
            path: Where its tokenizer may lie.

        Returns:
            Its sizes.
        """
        shapes = {name: tuple(part.shape) for name, part in model.named_parameters()}
        adapters = {name: shape for name, shape in shapes.items() if "lora" in name}
        return cls(config, shapes, adapters or shapes, 4 * _count(shapes), (path,))

    @property
    def masked(self) -> bool:
        """True if the model fills in hidden words."""
        return any("MaskedLM" in name for name in self.config.get("architectures") or ())

    @property
    def matrices(self) -> int:
        """Numbers that every token is multiplied by; a table that is the head, too, once."""
        flat = {name: shape for name, shape in self.shapes.items() if len(shape) == 2}
        tables = [math.prod(shape) for name, shape in flat.items() if TABLES.search(name)]
        tied = max(tables, default=0) if self.config.get("tie_word_embeddings", True) else 0
        return tied + sum(math.prod(shape) for name, shape in flat.items() if not TABLES.search(name))

    def number(self, *names: str) -> int:
        """A number of the configuration, by the names that kinds of models have for it; 0 if there is none."""
        inside = self.config.get("text_config", self.config)
        return next((inside[name] for name in names if isinstance(inside.get(name), int)), 0)

    @property
    def layers(self) -> int:
        """How many."""
        return self.number("num_hidden_layers", "n_layer", "num_layers") or 12

    @property
    def width(self) -> int:
        """Of a hidden state."""
        return self.number("hidden_size", "n_embd", "d_model") or 768

    @property
    def words(self) -> int:
        """Of the vocabulary."""
        return self.number("vocab_size") or 32_000


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters, out of the beginnings of the files of weights; none if one is damaged."""
    found = dict[str, tuple[int, ...]]()
    for file in sorted(folder.glob(WEIGHTS)):
        with file.open("rb") as begun:
            size = int.from_bytes(begun.read(8), "little")
            try:
                header = json.loads(begun.read(size)) if 0 < size < file.stat().st_size else {}
            except ValueError:
                return {}
        header.pop("__metadata__", None)
        if 8 + size + max((each["data_offsets"][1] for each in header.values()), default=0) != file.stat().st_size:
            return {}
        found |= {name: tuple(each["shape"]) for name, each in header.items()}
    return found


def _is_language_model(config: dict[str, Any]) -> bool:
    """True for a causal or masked one; others are refused when they are loaded."""
    kinds = config.get("architectures") or ()
    return any(word in kind for kind in kinds for word in ("CausalLM", "MaskedLM", "LMHead"))


def _count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def _object(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Tokens:
    """The sizes of some texts.

    Attributes:
        texts: How many.
        total: Tokens of all of them.
        longest: Tokens of the longest, to which all are padded.
        counted: Texts of which this was counted.
    """

    texts: int
    total: int
    longest: int
    counted: int

    @property
    def padded(self) -> int:
        """Tokens with padding."""
        return self.texts * self.longest

    def __str__(self) -> str:
        about = "" if self.counted == self.texts else "about "
        return f"{self.texts:,} texts, {about}{self.total:,} tokens."

    @classmethod
    def of(cls, files: ModelFiles, texts: Sequence[str], most: int | None = None) -> Tokens:
        """Counts, or for many texts extrapolates from the first.

        Args:
            files: Of the model; its tokenizer lies beside it.
            texts: Not empty.
            most: Tokens to which they are cut.

        Returns:
            Their sizes.
        """
        some, most = texts[:COUNTED], most or sys.maxsize
        lengths = [min(length, most) for length in _lengths(files, some)]
        share = sum(map(len, some)) / max(1, sum(map(len, texts)))
        ratio = max(map(len, texts)) / max(1, *map(len, some))  # the longest may be a later one
        return cls(len(texts), round(sum(lengths) / share), min(round(max(lengths) * ratio), most), len(some))


def _lengths(files: ModelFiles, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, by the files of the tokenizer; without such, from the number of words."""
    from tokenizers import Tokenizer

    found = next((folder / "tokenizer.json" for folder in files.folders
                  if (folder / "tokenizer.json").is_file()), None)  # fmt: skip
    if found is None:
        return [max(2, round(PER_WORD * len(text.split()))) for text in texts]
    words = Tokenizer.from_file(str(found))
    words.no_padding()
    words.no_truncation()
    return [len(each.ids) for each in words.encode_batch(list(texts))]


@dataclass(frozen=True)
class Work:
    """The work of a run of `crossfluence language`.

    Attributes:
        tokens: Of the training texts.
        asked: Of the texts of each question.
        trainings: With all texts and without some; 0 if the model is not trained.
        settings: Of the run.
    """

    tokens: Tokens
    asked: list[Tokens]
    trainings: int
    settings: LanguageSettings


def forecast_language(files: ModelFiles, work: Work) -> Forecast:
    """Estimates the time and memory of `explain_language` on this machine.

    Args:
        files: Of the model.
        work: What is to be done.

    Returns:
        Passes over the texts, as many as runs on small models took, times the products of one, by a trial here and
        now.
    """
    speed, texts = REACHED * speed_of(files.width), work.tokens.texts
    once = _pass(files, work.tokens, work.settings.batch_size, speed)
    trained = work.trainings * work.settings.epochs * TRAINING * once
    answer = (ROOTS + len(work.asked) * PRODUCTS * min(1.0, PILOT / texts)) * once
    answer += (1 + (work.settings.unit == "token")) * SCORES * once
    times = [each.longest if files.masked else 1 for each in work.asked]  # a masked model reads once for each word
    reading = sum(n * _pass(files, each, AT_ONCE, speed) for n, each in zip(times, work.asked, strict=True))
    reading *= ASKED + work.trainings / 3
    seconds = STARTED + files.bytes * LOADING + trained + answer + reading
    return Forecast(seconds * beside_others(1), _memory(files, work))


def _pass(files: ModelFiles, tokens: Tokens, batch: int, speed: float) -> float:
    """Seconds to go forward and backward through some texts."""
    backward = 1 if len(files.trained) < len(files.shapes) else 2  # of adapters, only what lies behind them
    attention = 2 * files.layers * tokens.longest * files.width
    products = (1 + backward) * 2 * (files.matrices + attention) * tokens.padded
    return products / speed + CALLS * files.layers * -(-tokens.texts // batch)


def speed_of(width: int) -> float:
    """Multiplications and additions a second, in products as wide as those of a layer.

    Args:
        width: Of a hidden state.

    Returns:
        By a trial here and now.
    """
    states = np.full((TRIAL_TOKENS, width), 0.1, np.float32)
    layer = np.full((width, 4 * width), 0.1, np.float32)
    return 2 * states.size * 4 * width / seconds_of(lambda: states @ layer, least=TRIAL_SECONDS)


def _memory(files: ModelFiles, work: Work) -> float:
    """GiB at the peak."""
    batch, trained = work.settings.batch_size, _count(files.trained)
    rows = ROWS * batch * trained  # gradients of single texts
    states = batch * work.tokens.longest * (16 * files.layers * files.width + 6 * files.words)
    subspace = trained * max(FEWEST_STEPS, min(STEPS, BASIS // trained))
    kept = ROOM * (min(4 * work.tokens.texts * trained, MOST) if trained <= MOST // FEW else subspace)
    return LIBRARIES + ADDED + (COPIES * _count(files.shapes) + rows + states + kept) * 4 / 2**30
