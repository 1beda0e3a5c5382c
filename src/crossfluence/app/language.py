"""The command that explains a language model: an answer it gives, or a bias of it, by the texts it was trained on."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError
from .options import (
    Force,
    Out,
    Plan,
    Seed,
    amount_of,
    exit_code,
    exit_on_error,
    refuse_output,
    refuse_outputs,
    stop_unfinished,
)
from .output import alone
from .report.terminal import console

if TYPE_CHECKING:
    from ..language.explain import LanguageAnswer
    from ..language.loading import Loaded
    from ..language.questions import Question

TESTS = ("crows", "stereoset", "winobias")
GROUPS = 4  # removed for each question: by scores and by words, of both signs
PASSES = {"answer": 6, "training": 3}  # passes over the data, in units of one with gradients


def language(
    model: Annotated[str, typer.Argument(help="A folder that save_pretrained wrote, with or without adapters.")],
    data: Annotated[Path, typer.Argument(help="The texts it was fine-tuned on: JSONL, or one a line.")],
    ask: Annotated[
        Path | None, typer.Option(help="Questions: JSONL with prompt and completion (and against), or template.")
    ] = None,
    bias: Annotated[
        str | None, typer.Option(help="crows, stereoset or winobias, or a JSONL file of templates or pairs.")
    ] = None,
    bias_data: Annotated[
        Path | None, typer.Option(help="The official files of --bias; default: its folder in CROSSFLUENCE_DATA.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only pairs about this, such as gender.")] = None,
    unit: Annotated[str, typer.Option(help="sentence, or token: scores of single tokens, too.")] = "sentence",
    train: Annotated[
        bool, typer.Option("--train", help="Fine-tune on the texts first, so that the answer can be checked.")
    ] = False,
    remove: Annotated[str, typer.Option(help="With --train, texts to remove together: 1%, or a number.")] = "1%",
    held_out: Annotated[
        Path | None, typer.Option(help="Texts for the perplexity; default, with --train: a twentieth of the texts.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="With --train: passes over the texts.", min=1)] = 3,
    lr: Annotated[float, typer.Option(help="With --train: learning rate of AdamW, falling to zero.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.", min=1)] = 8,
    field: Annotated[str, typer.Option(help="The field of the texts in JSONL.")] = "text",
    truncate: Annotated[int | None, typer.Option(help="Cut texts to so many tokens.", min=2)] = None,
    plan: Plan = False,
    out: Out = Path("crossfluence-language.html"),
    force: Force = False,
    seed: Seed = 0,
) -> None:
    """Find the training texts behind an answer or a bias of a language model; with --train, check them."""
    from ..language.explain import LanguageSettings, encoded_texts, explain_language
    from ..language.loading import load, read_texts
    from .report.language import dependable, print_language

    sheet, unfinished = out.with_suffix(".csv"), out.with_name(f"{out.name}.unfinished")
    gone = out.with_name(f"{out.stem}-removals.csv")
    with exit_on_error():
        if (ask is None) == (bias is None):
            raise DataError(
                "Got neither --ask nor --bias, or both; needed one: --ask questions.jsonl, or --bias crows."
            )
        if unit not in {"sentence", "token"}:
            raise DataError(f"Got --unit {unit}; needed sentence or token.")
        sources = [path for path in (data, ask, held_out) if path and path.is_file()]
        refuse_outputs(out, sheet, sources, force or plan)
        if train:
            refuse_output(gone, sources, force or plan)
        settings = LanguageSettings(train, epochs, lr, batch_size, amount_of(remove, "--remove"), unit, truncate, seed)
        texts = read_texts(data, field)
        others = None if held_out is None else read_texts(held_out, field)
        if train:
            settings.group(len(texts) if others else len(texts) - len(settings.held_out(len(texts))))
        loaded = quietly(load, model)
        questions = _questions(loaded, ask, bias, bias_data, kind)
        encoded = encoded_texts(loaded, texts, truncate)
        console.print(f"{len(texts):,} texts, {int(encoded['attention_mask'].sum()):,} tokens.")
        console.print(_forecast(loaded, encoded, settings, len(questions)))
        if plan:
            return
        with alone(out):
            try:
                answer = explain_language(loaded, texts, questions, settings, others=others, store=unfinished)
                _write(answer, data.name, [out, sheet, gone])
                print_language(answer)
            except KeyboardInterrupt:
                stop_unfinished(unfinished, "computes the scores")
            shutil.rmtree(unfinished, ignore_errors=True)
    console.print(f"Wrote {out} and {sheet}{f' and {gone}' if train else ''}.")
    exit_code(dependable(answer))


def _write(answer: LanguageAnswer, title: str, files: list[Path]) -> None:
    from .._storage.atomic import write_atomically
    from .report.language import language_csv, language_page, removals_csv

    out, sheet, gone = files
    command = f"crossfluence {shlex.join(sys.argv[1:])}"
    write_atomically(out, language_page(answer, title=title, command=command).encode())
    write_atomically(sheet, language_csv(answer))
    if answer.settings.train:
        write_atomically(gone, removals_csv(answer))


def _questions(
    loaded: Loaded, ask: Path | None, bias: str | None, folder: Path | None, kind: str | None
) -> dict[str, Question]:
    from ..language.loading import read_questions
    from ..language.pairs import pair_preference, pronoun_preference
    from ..language.readers import crows_pairs, stereoset, winobias

    if ask is not None:
        return read_questions(ask, loaded.tokenizer)
    if bias not in TESTS:
        assert bias is not None
        return read_questions(Path(bias), loaded.tokenizer)
    where = folder or _official(bias)
    if bias == "winobias":
        templates = winobias(where, 1, "test")
        return {"winobias": pronoun_preference(templates, tokenizer=loaded.tokenizer)}
    reader = crows_pairs if bias == "crows" else stereoset
    return {bias: pair_preference(reader(where, kind), tokenizer=loaded.tokenizer)}


def _official(bias: str) -> Path:
    import os

    folder = {"crows": "crows_pairs", "stereoset": "stereoset_editbias", "winobias": "winobias"}[bias]
    if not (root := os.environ.get("CROSSFLUENCE_DATA")):
        raise DataError(f"Where are the official files of {bias}? Type --bias-data FOLDER, or set CROSSFLUENCE_DATA.")
    return Path(root) / folder


def quietly(load: Any, model: str) -> Loaded:
    """Without the progress bars of transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load(model)


def _forecast(loaded: Loaded, encoded: dict[str, Any], settings: Any, questions: int) -> str:
    """Estimates the time from one batch."""
    from ..language.removals import RANDOM

    few = {name: column[: settings.batch_size] for name, column in encoded.items()}
    started = time.perf_counter()
    loaded.loss.losses(loaded.model, few).sum().backward()
    loaded.model.zero_grad(set_to_none=True)
    each = (time.perf_counter() - started) * len(encoded["input_ids"]) / len(few["input_ids"])
    trainings = (3 + GROUPS * questions + RANDOM) if settings.train else 0  # with the record, and nothing left out
    seconds = each * (PASSES["answer"] + questions * 2 + trainings * settings.epochs * PASSES["training"])
    return f"About {seconds:.0f} s." if seconds < 120 else f"About {seconds / 60:.0f} min."
