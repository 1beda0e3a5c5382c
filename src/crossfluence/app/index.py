"""The commands that build an index of a language model's training texts, ask it, and say what is in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import DataError, ResultFileError
from .options import EXIT_CODES, AsJson, Force, exit_code, exit_on_error, refuse_output, stop
from .output import print_json
from .report.reliability import Reliability, judged
from .report.terminal import console

if TYPE_CHECKING:
    from .._index.index import Index
    from .._results.scores import Scores

DTYPES = ("float32", "float16", "int8", "int4", "sign")
SHOWN = 60  # characters of a text in the terminal
BATCH = 8
UNRECOGNISED = (
    "Warning: {} could not be recognised as the texts that the index was built from, in their order; or it was built "
    "with another --batch-size, or with --truncate. The numbers of texts are right, what stands beside them may not be."
)
INSTEAD = "crossfluence language MODEL TEXTS --ask QUESTIONS --lr RATE, which counts how the model was fine-tuned"

index = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
    help="Keep the training texts' gradients on disk, so that questions need the model alone.",
)  # fmt: skip
Folder = Annotated[Path, typer.Argument(help="Of the index.")]


@index.command(epilog=EXIT_CODES)
def build(
    model: Annotated[str, typer.Argument(help="A folder that save_pretrained wrote, with or without adapters.")],
    data: Annotated[Path, typer.Argument(help="The texts it was fine-tuned on: JSONL, a table, or one a line.")],
    folder: Annotated[Path, typer.Argument(help="Of the index; made if it is not there. Stopped, it goes on.")],
    dtype: Annotated[str, typer.Option(help="Stored numbers: float32, float16, int8, int4 or sign.")] = "float16",
    tolerance: Annotated[
        float | None, typer.Option(help="Share of the scores that may be left out; default: .05, 0 for float32.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.", min=1)] = BATCH,
    field: Annotated[str, typer.Option(help="The field of the texts in JSONL.")] = "text",
    truncate: Annotated[int | None, typer.Option(help="Cut texts to so many tokens.", min=2)] = None,
) -> None:
    """Fit to the texts, and write each one's gradient; run again after a stop, it goes on where it was."""
    from .. import EKFAC, Index, Risk, batches
    from ..language.explain import encoded_texts
    from .records import guessed, read_texts

    with exit_on_error():
        if dtype not in DTYPES:
            raise DataError(f"Got --dtype {dtype}; needed one of {', '.join(DTYPES)}.")
        if tolerance is not None and not 0 <= tolerance < 1:
            raise DataError(f"Got --tolerance {tolerance:g}; needed a share, at least 0 and below 1.")
        texts = read_texts(data, field)
        for remark in guessed(data):
            typer.echo(remark, err=True)
        loaded = _loaded(model)
        rows = batches(encoded_texts(loaded, texts, truncate), size=batch_size)
        risk = Risk(loaded.model, loaded.loss, rows, ids=range(1, len(texts) + 1), params=loaded.params)
        try:
            made = Index.build(risk, EKFAC(), folder, dtype=cast("Any", dtype), tolerance=tolerance)
        except KeyboardInterrupt:
            stop(f"The files that are whole are kept in {folder}; the same command goes on from there.")
        _print_info(made)


@index.command(epilog=EXIT_CODES)
def ask(
    folder: Folder,
    model: Annotated[str, typer.Argument(help="The model that the index was built for; its texts are not needed.")],
    questions: Annotated[
        Path, typer.Argument(help="JSONL with prompt and completion (and against), or template, or more and less.")
    ],
    k: Annotated[int, typer.Option("--top", help="Texts to list that raise, and that lower, each answer.", min=1)] = 3,
    share: Annotated[
        float | None, typer.Option(help="Look for the strongest only, and read this share of the index for it.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--texts", help="The texts, to be printed; else their numbers are.")
    ] = None,
    field: Annotated[str, typer.Option(help="The field of the texts in JSONL.")] = "text",
    out: Annotated[Path, typer.Option(help="The scores to write, as .csv.")] = Path("crossfluence-index.csv"),
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Find the texts behind the answers of a model in its index."""
    from .. import Index
    from .._storage.atomic import write_atomically
    from ..language.loading import questions_for
    from .language import glued
    from .records import guessed, read_questions, read_texts

    with exit_on_error():
        if share is not None and not 0 < share <= 1:
            raise DataError(f"Got --share {share:g}; needed a share above 0, and at most 1.")
        _refuse_out(out, folder)
        refuse_output(out, [path for path in (data, questions) if path and path.is_file()], force)
        Index.open(folder)  # before the model is loaded: a folder that is no index is said at once
        words = read_questions(questions)
        loaded = _loaded(model)
        opened = Index.open(folder, loaded.model)
        asked = questions_for(loaded, words)
        for remark in (*guessed(questions, data), *glued(words)):
            typer.echo(remark, err=True)
        texts = None if data is None else _matching(read_texts(data, field), opened, data)
        if texts is not None and not _recognised(texts, loaded, opened):
            typer.echo(UNRECOGNISED.format(data), err=True)

        def objective(net: Any) -> dict[str, Any]:
            return {name: question(net) for name, question in asked.items()}

        scores = opened.scores(objective) if share is None else opened.search(objective, k, share=share)
        answer = _Answer(scores, texts, k)
        write_atomically(out, answer.table())
    if as_json:
        print_json(answer.content())
    else:
        answer.print()
        console.print(f"Wrote {out}.")
    exit_code(answer.reliability.dependable)


@index.command(epilog=EXIT_CODES)
def info(folder: Folder, as_json: AsJson = False) -> None:
    """Print what an index holds: samples, sizes, the fit, and how near its scores are to those of full gradients."""
    from .. import Index

    with exit_on_error():
        opened = Index.open(folder)
        if as_json:
            print_json(opened.info())
        else:
            _print_info(opened)


@dataclass(frozen=True, eq=False)
class _Answer:
    """Scores of some questions, and texts to print with them.

    Attributes:
        scores: Of all texts, or of the strongest.
        texts: By number, the first 1; `None` where only numbers are printed.
        k: Texts to list.
    """

    scores: Scores
    texts: Sequence[str] | None
    k: int

    @property
    def reliability(self) -> Reliability:
        """The verdict in the command line's words."""
        return judged([], verdict=self.scores.verdict, advice=[INSTEAD])

    def print(self) -> None:
        """The verdict, then each question with its strongest texts."""
        console.print(f"{self.reliability}", soft_wrap=True)
        for note in self._notes:
            console.print(note, soft_wrap=True)
        for name, value in zip(self.scores.objectives, self._values, strict=True):
            console.print(f"\n{name}: {value:.4f}.", soft_wrap=True)
            for effect, words in (("raises", "Raise it most"), ("lowers", "Lower it most")):
                listed = [f"{self._shown(label)} ({score:+.4g})" for label, score in self._top(name, effect)]
                console.print(f"{words}: {'; '.join(listed) or 'none'}.", soft_wrap=True)

    def content(self) -> dict[str, Any]:
        """The same for a program."""
        questions = {
            name: {"value": value, **{effect: self._top(name, effect) for effect in ("raises", "lowers")}}
            for name, value in zip(self.scores.objectives, self._values, strict=True)
        }
        return {"level": self.reliability.level, "verdict": str(self.reliability), "notes": self._notes,
                "questions": questions}  # fmt: skip

    def table(self) -> bytes:
        """One row for each text, the strongest of the first question first."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["text", *self.scores.objectives, *(["content"] if self.texts else [])])
        for row in self.scores.values[:, 0].abs().argsort(descending=True, stable=True).tolist():
            label: Any = self.scores.ids[row]
            content = [self.texts[label - 1]] if self.texts else []
            writer.writerow([label, *(f"{value:.6g}" for value in self.scores.values[row].tolist()), *content])
        return out.getvalue().encode()

    @property
    def _values(self) -> Sequence[float]:
        return () if self.scores.report is None else self.scores.report.values

    @property
    def _notes(self) -> Sequence[str]:
        return () if self.scores.report is None else self.scores.report.notes

    def _top(self, name: str, effect: Any) -> list[tuple[Any, float]]:
        return self.scores.top(self.k, name, effect=effect)

    def _shown(self, label: Any) -> str:
        if self.texts is None:
            return f"text {label}"
        text = self.texts[label - 1]
        return f"“{text if len(text) <= SHOWN else f'{text[:SHOWN]}…'}”"


def _loaded(model: str) -> Any:
    from ..language.loading import load
    from .language import quietly

    return quietly(load, model)


def _matching(texts: Sequence[str], opened: Index, data: Path) -> Sequence[str]:
    """The texts, if they can be those of the index: its numbers are 1 to their count."""
    if opened.ids != tuple(range(1, len(texts) + 1)):
        raise DataError(
            f"{data} holds {len(texts):,} texts; the index holds {len(opened.ids):,} samples, the first called "
            f"{opened.ids[0]!r}. Give the texts that it was built from, or leave --texts out."
        )
    return texts


def _recognised(texts: Sequence[str], loaded: Any, opened: Index) -> bool:
    """True if an index was built from these texts in this order, as far as its content hash can tell."""
    from .. import Risk, batches
    from ..language.explain import encoded_texts

    try:
        rows = batches(encoded_texts(loaded, texts, None), size=BATCH)
    except DataError:  # longer than the model reads: cut when the index was built
        return False
    return Risk(loaded.model, loaded.loss, rows, params=loaded.params).signature == opened.info()["signature"]


def _refuse_out(out: Path, folder: Path) -> None:
    """Refuses to write scores over a file of the index."""
    if out.suffix.lower() != ".csv":
        raise ResultFileError(f"--out {out} must end in .csv.")
    if folder.resolve() in out.resolve().parents:
        raise ResultFileError(f"--out {out} lies in the folder of the index. Choose another --out.")


def _print_info(opened: Index) -> None:
    for name, value in opened.info().items():
        shown = f"{value:,}" if isinstance(value, int) else "not known" if value is None else str(value)
        console.print(f"{name}: {shown}", soft_wrap=True)
