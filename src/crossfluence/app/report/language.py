"""The page, the table and the terminal's lines about a language model and the texts behind its answers."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup
from rich.table import Table as RichTable

from .page import template, versions
from .reliability import Reliability, Removed, judged, removed_together
from .terminal import console

if TYPE_CHECKING:
    from ...language.explain import Explained, LanguageAnswer

LISTED, SHOWN = 20, 400  # texts of each kind, and characters of each


def reliability_of(answer: LanguageAnswer, explained: Explained) -> Reliability:
    """A judgement of the scores for one question, by their verdict and by training again.

    Args:
        answer: All of it.
        explained: One question.

    Returns:
        Level, reasons and advice.
    """
    groups = [Removed(one.name, one.predicted, None, one.achieved, not one.by_scores) for one in explained.removals]
    said = removed_together(groups, "the answer", " nats") if groups else []
    verdict = answer.scores.verdict if not groups else None  # training again is the better judge
    advice = [] if answer.settings.train else ["--train, which fine-tunes with stated settings and checks the answer"]
    return judged(said, verdict=verdict, advice=advice)


def dependable(answer: LanguageAnswer) -> bool:
    """True if the scores of all questions can be relied on at least in their order."""
    return all(reliability_of(answer, each).dependable for each in answer.questions)


def print_language(answer: LanguageAnswer) -> None:
    """Each question: how far its scores can be relied on, the answer, the strongest texts, and what removing did."""
    for each in answer.questions:
        console.print(f"\n{reliability_of(answer, each)}", soft_wrap=True)
        console.print(f"{each.name}: {each.value:.4f} nats{_interval(each)}.", soft_wrap=True)
        for effect, words in (("raises", "Raise it most"), ("lowers", "Lower it most")):
            listed = [
                f"“{_short(answer.texts[row], 60)}” ({value:+.4f})" for row, value in _top(answer, each, effect, 3)
            ]
            console.print(f"{words}: {'; '.join(listed) or 'none'}.", soft_wrap=True)
        if each.removals:
            console.print(_table(each))
    if answer.perplexity is not None:
        console.print(f"\n{perplexity_of(answer)}", soft_wrap=True)


def perplexity_of(answer: LanguageAnswer) -> str:
    """A sentence about the perplexity of held-out texts; empty if there are none."""
    found = answer.perplexity
    if found is None:
        return ""
    before = f", before fine-tuning {found.before:.2f}" if found.before == found.before else ""
    whose = "left out of the training" if answer.held_out else "of their own file"
    return f"Perplexity of {found.texts} texts {whose}: {found.after:.2f}{before}."


def removals_csv(answer: LanguageAnswer) -> bytes:
    """One row for each question and group of texts that was removed.

    Args:
        answer: All of it.

    Returns:
        UTF-8.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["question", "removed", "texts", "predicted", "achieved", "perplexity before", "perplexity after"])
    assert answer.perplexity is not None
    for each in answer.questions:
        for one in each.removals:
            values = [one.predicted, one.achieved, answer.perplexity.after, one.perplexity]
            writer.writerow([each.name, one.name, one.count, *(f"{value:.6g}" for value in values)])
    return out.getvalue().encode()


def language_csv(answer: LanguageAnswer) -> bytes:
    """One row for each text, or for each token if they were asked for; the strongest of the first question first.

    Args:
        answer: All of it.

    Returns:
        UTF-8.
    """
    scores, out = answer.tokens or answer.scores, io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    place = ["text", "position", "token"] if answer.tokens else ["text"]
    writer.writerow([*place, *scores.objectives, "content"])
    order = scores.values[:, 0].abs().argsort(descending=True, stable=True).tolist()
    for row in order:
        label: Any = scores.ids[row]
        values = [f"{value:.6g}" for value in scores.values[row].tolist()]
        if answer.tokens:
            text, position = label
            writer.writerow([text + 1, position, answer.pieces[text][position], *values, answer.texts[text]])
        else:
            writer.writerow([label + 1, *values, answer.texts[label]])
    return out.getvalue().encode()


def language_page(answer: LanguageAnswer, *, title: str, command: str) -> str:
    """One HTML file with everything in it; it requests nothing from the network.

    Args:
        answer: All of it.
        title: What the texts are called.
        command: The command line that made it.

    Returns:
        The text of the page.
    """
    return template("language.html").render(
        a=answer, title=title, command=command, settings=asdict(answer.settings), versions=versions(),
        report=answer.scores.report, perplexity=perplexity_of(answer),
        questions=[
            {
                "explained": each, "verdict": reliability_of(answer, each), "interval": _interval(each),
                "raises": _listed(answer, each, "raises"), "lowers": _listed(answer, each, "lowers"),
            }
            for each in answer.questions
        ],
    )  # fmt: skip


def _listed(answer: LanguageAnswer, each: Explained, effect: Literal["raises", "lowers"]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"text {row + 1}", "score": value, "text": _shaded(answer, each, row),
            "whole": answer.texts[row] if len(answer.texts[row]) > SHOWN else "",
        }
        for row, value in _top(answer, each, effect, LISTED)
    ]  # fmt: skip


def _shaded(answer: LanguageAnswer, each: Explained, row: int) -> Markup | str:
    """A text; with the tokens shaded by their scores, if there are any."""
    if answer.tokens is None:
        return _short(answer.texts[row], SHOWN)
    column = answer.tokens.objectives.index(each.name)
    values = {
        label[1]: float(answer.tokens.values[place, column])
        for place, label in enumerate(answer.tokens.ids)
        if isinstance(label, tuple) and label[0] == row
    }
    most = max(map(abs, values.values()), default=0.0) or 1.0
    parts = [
        Markup('<span style="background: rgba({}, {:.2f})" title="{:+.4g}">{}</span>').format(
            "192, 57, 43" if values.get(place, 0.0) > 0 else "44, 95, 138", abs(values.get(place, 0.0)) / most,
            values.get(place, 0.0), piece,
        )
        for place, piece in enumerate(answer.pieces[row][:SHOWN])
    ]  # fmt: skip
    return Markup(" ").join(parts)


def _top(answer: LanguageAnswer, each: Explained, effect: Any, k: int) -> list[tuple[int, float]]:
    return answer.scores.top(k, each.name, effect=effect)  # pyright: ignore[reportReturnType]  # ids are rows


def _interval(each: Explained) -> str:
    if each.value.low != each.value.low:
        return ""
    share = f"; the first is preferred in {100 * each.share:.1f} % of the items"
    return f" (95 % interval {each.value.low:.4f} to {each.value.high:.4f}{share})"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _table(each: Explained) -> RichTable:
    table = RichTable(title=f"Change of {each.name} when texts are removed and the model is trained again, in nats")
    for column in ("removed together", "predicted", "achieved", "perplexity"):
        table.add_column(column, justify="left" if column.startswith("removed") else "right")
    for one in each.removals:
        table.add_row(one.name, f"{one.predicted:+.4f}", f"{one.achieved:+.4f}", f"{one.perplexity:.3f}")
    return table
