"""Routes of the explorer: each reads what the page asks, and gives it to the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from starlette.responses import Response

from ..report.page import plane_of, shown_row, written_row
from .application import AbstractApplication
from .base import RATE, STEPS, QuestionError
from .engine import Engine, Question
from .routes import numbers_of, whole_of
from .sheet import sheet_of

MOST_SHOWN, MOST_SEARCHED = 200, 200_000  # rows whose features are sent at once; numbers in a table that is searched


class Application(AbstractApplication):
    """One clustering behind routes."""

    engine: Engine
    content: ClassVar = {
        "": ("explore.html", "text/html"), "explore.css": ("explore.css", "text/css"),
        "explore.js": ("explore.js", "text/javascript"), "map.js": ("map.js", "text/javascript"),
        "talk.js": ("talk.js", "text/javascript"), "acts.js": ("acts.js", "text/javascript"),
    }  # fmt: skip
    reads: ClassVar = ("rows", "answer")

    def result(self, _: dict[str, Any]) -> dict[str, Any]:
        """The data, its clusters and the map."""
        engine, result = self.engine, self.engine.result
        points, centres = plane_of(engine.z, result.found.model.centres.detach())
        best = engine.q.topk(2, dim=1).values
        return {
            "title": result.samples.title, "noun": result.samples.noun, "verdict": result.verdict,
            "level": result.level, "remarks": list(result.samples.remarks), "command": result.command,
            "ids": engine.ids, "clusters": engine.q.argmax(1).tolist(), "k": engine.q.shape[1],
            "margins": _rounded((best[:, 0] / best[:, 1]).log()), "x": _rounded(points[:, 0]),
            "y": _rounded(points[:, 1]), "centres": [_rounded(one) for one in centres], "query": result.query,
            "texts": self._texts(), "steps": STEPS, "rate": RATE,
        }  # fmt: skip

    def _texts(self) -> list[str]:
        """All rows as text, to be searched; none of pictures and of very large tables."""
        samples = self.engine.result.samples
        if samples.values is None or samples.values.numel() > MOST_SEARCHED:
            return []
        return [written_row(samples, row) for row in range(self.engine.n)]

    def rows(self, body: dict[str, Any]) -> dict[str, Any]:
        """Rows as they are shown: features or pictures."""
        beside, samples = whole_of(body, "beside"), self.engine.result.samples
        rows = numbers_of(body, "rows")
        if len(rows) > MOST_SHOWN or not all(0 <= row < self.engine.n for row in [*rows, beside]):
            raise QuestionError(f"Needed at most {MOST_SHOWN} row numbers from 0 to {self.engine.n - 1}.")
        found = {row: shown_row(samples, row, beside) for row in rows}
        return {
            str(row): {
                "cells": one["cells"], "text": written_row(samples, row),
                "features": [[name, f"{value:.4g}"] for name, value in one["features"]],
            }
            for row, one in found.items()
        }  # fmt: skip

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Scores of a question; the row by number, or by its id as it was typed."""
        row = self.engine.row(body["id"]) if isinstance(body.get("id"), str) else whole_of(body, "row")
        first, second = (None if body.get(name) is None else whole_of(body, name) for name in ("first", "second"))
        answer = self.engine.answer(self.engine.question(row, first, second))
        asked = answer.question
        return {
            "row": asked.row, "first": asked.first, "second": asked.second, "margin": answer.margin,
            "probability": _rounded(torch.tensor(answer.probability)), "scores": _rounded(answer.scores),
        }  # fmt: skip

    def export(self, body: dict[str, Any]) -> Response:
        """Chosen rows, or all others, as CSV."""
        question, chosen = self._question(body), self.engine.checked(numbers_of(body, "chosen"))
        rest = body.get("which") == "rest"
        rows = [row for row in range(self.engine.n) if row not in set(chosen)] if rest else chosen
        content = sheet_of(self.engine, question, rows)
        return Response(content, media_type="text/csv; charset=utf-8")

    def _question(self, body: dict[str, Any]) -> Question:
        return self.engine.question(whole_of(body, "row"), whole_of(body, "first"), whole_of(body, "second"))

    def _about(self, question: Question, chosen: Sequence[int]) -> dict[str, Any]:
        labels = self.engine.ids
        return {
            "query": labels[question.row], "first": question.first, "second": question.second,
            "ids": [labels[row] for row in chosen],
        }  # fmt: skip

    def _value(self, question: Question) -> float:
        return self.engine.answer(question).margin


def _rounded(values: torch.Tensor) -> list[float | None]:
    """Six figures are enough for a page; what is no number is nothing."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
