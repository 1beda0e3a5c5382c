"""Routes of the explorer for words: lists are searched, ordered and cut here, as a corpus is too long to be sent."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from starlette.responses import Response

from ..report.sheet import no_formula
from .application import AbstractApplication
from .base import RATE, STEPS
from .jobs import Jobs
from .routes import numbers_of, whole_of
from .tried import TriedList
from .words_engine import WordsEngine, WordsQuestion

AT_ONCE = 25  # sentences on a page of the list


class WordsApplication(AbstractApplication):
    """One result about words behind routes."""

    engine: WordsEngine
    content: ClassVar = {
        "": ("words.html", "text/html"), "explore.css": ("explore.css", "text/css"),
        "words.js": ("words.js", "text/javascript"), "talk.js": ("talk.js", "text/javascript"),
        "acts.js": ("acts.js", "text/javascript"),
    }  # fmt: skip
    reads: ClassVar = ("answer", "listed", "strongest")

    def __init__(self, engine: WordsEngine, jobs: Jobs, tried: TriedList) -> None:
        super().__init__(engine, jobs, tried)
        self._lowered = [text.lower() for text in engine.result.texts]

    def result(self, _: dict[str, Any]) -> dict[str, Any]:
        """The corpus and its questions."""
        result, first = self.engine.result, self.engine.first
        return {
            "title": result.title, "verdict": result.verdict, "level": result.level, "command": result.command,
            "n": self.engine.n, "tests": [one.name for one in result.lists], "words": len(result.corpus.words),
            "first": vars(first), "steps": STEPS, "rate": RATE,
        }  # fmt: skip

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The value of a question, and words to mark."""
        found = self.engine.answer(self._question(body))
        return {**vars(found.question), "value": found.value, "said": found.said, "marked": found.marked}

    def listed(self, body: dict[str, Any]) -> dict[str, Any]:
        """One page of the sentences that fit a search, in order."""
        answer = self.engine.answer(self._question(body))
        scores = answer.scores.numpy()
        rows = self._found(body, scores)
        by = rows if body.get("by") == "id" else np.abs(scores[rows])
        order = np.argsort(-by if body.get("falling") else by, kind="stable")
        pages = max(1, -(-len(rows) // AT_ONCE))
        page = max(0, min(whole_of(body, "page"), pages - 1))
        result = self.engine.result
        return {
            "count": len(rows), "pages": pages, "page": page,
            "rows": [
                {"row": row, "id": result.shown[row], "text": result.texts[row], "score": float(f"{scores[row]:.6g}")}
                for row in rows[order][page * AT_ONCE : (page + 1) * AT_ONCE].tolist()
            ],
        }  # fmt: skip

    def strongest(self, body: dict[str, Any]) -> dict[str, Any]:
        """Row numbers of the sentences that raise the value most, or lower it most."""
        scores, sign = self.engine.answer(self._question(body)).scores.numpy(), whole_of(body, "sign")
        order = np.argsort(-sign * scores, kind="stable")[: max(0, whole_of(body, "many"))]
        return {"rows": [row for row in order.tolist() if sign * scores[row] > 0]}

    def export(self, body: dict[str, Any]) -> Response:
        """Chosen sentences, or all others, as CSV."""
        answer, chosen = self.engine.answer(self._question(body)), self.engine.checked(numbers_of(body, "chosen"))
        gone, result = set(chosen), self.engine.result
        rows = [row for row in range(self.engine.n) if row not in gone] if body.get("which") == "rest" else chosen
        file = io.StringIO()
        sheet = csv.writer(file, lineterminator="\n")
        sheet.writerow(["id", "score", "text"])
        for row in rows:
            score = repr(float(answer.scores[row]))
            sheet.writerow([no_formula(result.shown[row]), score, no_formula(result.texts[row])])
        return Response(file.getvalue().encode(), media_type="text/csv; charset=utf-8")

    def _found(self, body: dict[str, Any], scores: np.ndarray) -> np.ndarray:
        """Row numbers of the sentences that fit."""
        words, sign = str(body.get("find") or "").lower(), whole_of(body, "sign")
        fits = np.ones(self.engine.n, dtype=bool) if not sign else scores * sign > 0
        if body.get("only"):
            only = np.zeros(self.engine.n, dtype=bool)
            only[[row for row in numbers_of(body, "chosen") if 0 <= row < self.engine.n]] = True
            fits &= only
        rows = np.flatnonzero(fits)
        if words:
            shown = self.engine.result.shown
            fit = [row for row in map(int, rows) if words in self._lowered[row] or words in shown[row].lower()]
            rows = np.array(fit, dtype=int)
        return rows

    def _question(self, body: dict[str, Any]) -> WordsQuestion:
        return self.engine.question(body.get("kind"), body.get("name"))

    def _about(self, question: WordsQuestion, chosen: Sequence[int]) -> dict[str, Any]:
        return {
            "kind": question.kind, "query": question.name,
            "ids": [self.engine.result.shown[row] for row in chosen], "rows": list(chosen),
        }  # fmt: skip

    def _value(self, question: WordsQuestion) -> float:
        return self.engine.answer(question).value
