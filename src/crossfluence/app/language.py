"""The command that explains a language model: an answer it gives, or a bias of it, by the texts it was trained on."""

from __future__ import annotations

import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CrossfluenceError, DataError
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
    unfinished_beside,
)
from .output import alone
from .report.terminal import console
from .texts import is_unspaced

if TYPE_CHECKING:
    from ..language.explain import LanguageAnswer
    from ..language.files import Asked
    from ..language.loading import Loaded
    from ..language.settings import LanguageSettings
    from .forecast_language import ModelFiles

TESTS = ("crows", "stereoset", "winobias")


def language(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder that save_pretrained wrote, with or without adapters.")],
    data: Annotated[Path, typer.Argument(help="The texts it was fine-tuned on: JSONL, a table, or one a line.")],
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
    epochs: Annotated[int, typer.Option(help="Passes over the texts, of --train or of --lr.", min=1)] = 3,
    lr: Annotated[
        float, typer.Option(help="Of AdamW, falling to zero: of --train, or of the fine-tuning that there was.")
    ] = 1e-4,
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.", min=1)] = 8,
    field: Annotated[str, typer.Option(help="The field of the texts in JSONL.")] = "text",
    truncate: Annotated[int | None, typer.Option(help="Cut texts to so many tokens.", min=2)] = None,
    plan: Plan = False,
    out: Out = Path("crossfluence-language.html"),
    force: Force = False,
    seed: Seed = 0,
) -> None:
    """Find the training texts behind an answer or a bias of a language model; with --train, check them."""
    from ..language.settings import LanguageSettings
    from .forecast_language import ModelFiles
    from .records import guessed, read_texts

    sheet, unfinished = out.with_suffix(".csv"), unfinished_beside(out)
    gone = out.with_name(f"{out.stem}-removals.csv")
    with exit_on_error():
        if (ask is None) == (bias is None):
            raise DataError(
                "Got neither --ask nor --bias, or both; needed one: --ask questions.jsonl, or --bias crows."
            )
        given = _given(context)
        _refuse_unused(given, train, ask, bias)
        if unit not in {"sentence", "token"}:
            raise DataError(f"Got --unit {unit}; needed sentence or token.")
        sources = [path for path in (data, ask, held_out) if path and path.is_file()]
        again = force or plan or unfinished.is_dir()  # what is there may be of the run that goes on now
        refuse_outputs(out, sheet, sources, again)
        if train:
            refuse_output(gone, sources, again)
        settings = LanguageSettings(
            train, epochs, lr, batch_size, amount_of(remove, "--remove"), unit, truncate, seed,
            told=not train and "lr" in given,
        )  # fmt: skip
        texts = read_texts(data, field)
        others = None if held_out is None else read_texts(held_out, field)
        if train:
            settings.group(len(texts) if others else len(texts) - settings.held_out_count(len(texts)))
        asked = _asked(ask, bias, bias_data, kind)
        for remark in (*guessed(data, ask, held_out), *glued(asked)):
            console.print(remark, soft_wrap=True)
        files = ModelFiles.of(Path(model))
        if plan and files is not None:
            _refuse_long(files, texts, truncate)
            _foretell(files, texts, asked, settings)
            return
        from ..language.explain import encoded_texts, explain_language
        from ..language.loading import load, questions_for
        from .report.language import dependable, print_language

        loaded = quietly(load, model)
        questions = questions_for(loaded, asked)
        encoded_texts(loaded, texts, truncate)
        _foretell(files or ModelFiles.loaded(loaded.model, loaded.config, Path(model)), texts, asked, settings)
        if plan:
            return
        with alone(out):
            try:
                answer = explain_language(loaded, texts, questions, settings, others=others, store=unfinished)
                unfinished.mkdir(exist_ok=True)  # until all files are there, the same command goes on
                _write(answer, data.name, [out, sheet, gone])
                print_language(answer)
            except KeyboardInterrupt:
                stop_unfinished(unfinished, "computes the scores")
            except CrossfluenceError:
                if unfinished.is_dir() and not any(unfinished.iterdir()):
                    unfinished.rmdir()
                raise
            shutil.rmtree(unfinished, ignore_errors=True)
    console.print(f"Wrote {out} and {sheet}{f' and {gone}' if train else ''}.")
    exit_code(dependable(answer))


def _given(context: typer.Context) -> set[str]:
    """Options that were typed."""
    names = ("remove", "epochs", "lr", "bias_data", "kind")
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _refuse_unused(given: set[str], train: bool, ask: Path | None, bias: str | None) -> None:
    """Refuses an option that would change nothing: whoever typed it believes that it does."""
    if "remove" in given and not train:
        raise DataError("--remove is of a training, and there is none: the model is explained as it is. Add --train.")
    if "epochs" in given and not train and "lr" not in given:
        raise DataError("--epochs alone says too little of how the model was fine-tuned. Add --lr, or --train.")
    for name in sorted(given & {"bias_data", "kind"} if ask or bias not in TESTS else ()):
        option = f"--{name.replace('_', '-')}"
        raise DataError(f"{option} is of a published test; needed --bias {', '.join(TESTS[:-1])} or {TESTS[-1]}.")
    if "kind" in given and bias == "winobias":
        raise DataError("--kind is of crows and stereoset; winobias is about pronouns alone. Leave it out.")


def _write(answer: LanguageAnswer, title: str, files: list[Path]) -> None:
    from .._storage.atomic import write_atomically
    from .report.language import language_csv, language_page, removals_csv

    out, sheet, gone = files
    command = f"crossfluence {shlex.join(sys.argv[1:])}"
    write_atomically(out, language_page(answer, title=title, command=command).encode())
    write_atomically(sheet, language_csv(answer))
    if answer.settings.train:
        write_atomically(gone, removals_csv(answer))


def _asked(ask: Path | None, bias: str | None, folder: Path | None, kind: str | None) -> Asked:
    """The questions in words, before the model is loaded."""
    from ..language.files import Asked
    from ..language.readers import crows_pairs, stereoset, winobias
    from .records import read_questions

    if bias not in TESTS:
        if bias and not Path(bias).exists() and "." not in bias and "/" not in bias:
            raise DataError(f"--bias {bias} is none of {', '.join(TESTS)}, and no file.")
        return read_questions(ask or Path(str(bias)))
    where = folder or _official(bias)
    if bias == "winobias":
        return Asked(templates={bias: winobias(where, 1, "test")})
    return Asked(pairs={bias: (crows_pairs if bias == "crows" else stereoset)(where, kind)})


def glued(asked: Asked) -> list[str]:
    """Sentences about completions that begin within the last word of their prompt.

    Args:
        asked: Questions in words.

    Returns:
        One for each line of the file where a blank may have been forgotten.
    """
    found = list[str]()
    for line, record in asked.completions.values():
        last, first = (record["prompt"].split(" ")[-1], record["completion"].split(" ")[0])
        if last[-1:].isalnum() and first[:1].isalnum() and not is_unspaced(first):
            found.append(
                f"Line {line}: {record['completion']!r} continues the word {last!r}, so that the model reads "
                f"{last + first!r}. If it is a word of its own, begin it with a blank: {' ' + record['completion']!r}."
            )
    return found


def _official(bias: str) -> Path:
    import os

    folder = {"crows": "crows_pairs", "stereoset": "stereoset_editbias", "winobias": "winobias"}[bias]
    if not (root := os.environ.get("CROSSFLUENCE_DATA")):
        raise DataError(f"Where are the official files of {bias}? Type --bias-data FOLDER, or set CROSSFLUENCE_DATA.")
    return Path(root) / folder


def quietly(load: Any, model: str) -> Loaded:
    """Without the progress bars and the warnings of transformers, which are about its own coming versions."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    return load(model)


def _refuse_long(files: ModelFiles, texts: Sequence[str], truncate: int | None) -> None:
    """Refuses texts that the model cannot read, as the run itself would."""
    from ..language.settings import context_of
    from .forecast_language import Tokens

    tokens, most = Tokens.of(files, texts, truncate), context_of(files.config)
    if most is not None and tokens.longest > most and tokens.counted == tokens.texts:
        raise DataError(f"A text has {tokens.longest} tokens, the model reads {most}. Cut it: --truncate {most}.")


def _foretell(files: ModelFiles, texts: Sequence[str], asked: Asked, settings: LanguageSettings) -> None:
    """Prints the sizes of the texts, time and memory."""
    from ..language.settings import CHOSEN, RANDOM
    from .forecast_language import Tokens, Work, forecast_language

    tokens = Tokens.of(files, texts, settings.longest)
    every = [Tokens.of(files, some) for some in asked.texts.values()]
    trainings = 2 + CHOSEN * len(every) + RANDOM if settings.train else 0  # with the record, and nothing left out
    console.print(str(tokens))
    console.print(str(forecast_language(files, Work(tokens, every, trainings, settings))))
