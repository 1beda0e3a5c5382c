"""Routes of the explorer: each reads what the page asks, and gives it to the engine."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ...errors import CrossfluenceError
from ..report.page import plane_of, shown_row, written_row
from .engine import ACTIONS, RATE, STEPS, Engine, Question, QuestionError
from .jobs import Jobs
from .routes import numbers_of, plainly, static, whole_of
from .sheet import sheet_of
from .tried import TriedList

STATIC = {
    "": ("explore.html", "text/html"), "explore.css": ("explore.css", "text/css"),
    "explore.js": ("explore.js", "text/javascript"), "map.js": ("map.js", "text/javascript"),
    "talk.js": ("talk.js", "text/javascript"),
}  # fmt: skip
MOST_SHOWN, MOST_SEARCHED = 200, 200_000  # rows whose features are sent at once; numbers in a table that is searched


class Application:
    """One result behind routes.

    Args:
        engine: That answers.
        jobs: That work in the background.
        tried: What was tried.
    """

    def __init__(self, engine: Engine, jobs: Jobs, tried: TriedList) -> None:
        self.engine, self.jobs, self.tried = engine, jobs, tried

    def routes(self) -> Starlette:
        """The application as ASGI; to be put behind a `Guard`."""
        asked = [
            ("/api/result", self.result, "GET"), ("/api/rows", self.rows, "POST"), ("/api/answer", self.answer, "POST"),
            ("/api/predict", self.predict, "POST"), ("/api/act", self.act, "POST"), ("/api/state", self.state, "GET"),
            ("/api/stop", self.stop, "POST"), ("/api/export", self.export, "POST"),
        ]  # fmt: skip
        routes = [Route(f"/{path}", static(*content)) for path, content in STATIC.items()]
        routes += [Route(path, plainly(work), methods=[method]) for path, work, method in asked]
        routes += [Route("/tried.md", self._tried_text), Route("/tried.json", self._tried_json)]
        return Starlette(routes=routes)

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

    def predict(self, body: dict[str, Any]) -> dict[str, Any]:
        """The change without some samples: the sum of scores at once, a Newton step if it is asked for."""
        question, chosen = self._question(body), self.engine.checked(numbers_of(body, "chosen"))
        found: dict[str, Any] = {"sum": self.engine.summed(question, chosen), "newton": None, "said": ""}
        if body.get("newton") is True:
            try:
                found["newton"] = self.engine.newton(question, chosen)
            except CrossfluenceError as error:
                found["said"] = str(error)
        return found

    def act(self, body: dict[str, Any]) -> dict[str, Any]:
        """Begins to train again without samples, to undo them or to amplify them."""
        question, chosen = self._question(body), self.engine.checked(numbers_of(body, "chosen"))
        action, steps, lr = body.get("action"), body.get("steps", STEPS), body.get("rate", RATE)
        if action not in ACTIONS:
            raise QuestionError(f"The action must be one of {', '.join(ACTIONS)}.")
        if type(steps) is not int or not 1 <= steps <= 10_000 or not isinstance(lr, (int, float)) or not 0 < lr <= 1:
            raise QuestionError("Needed 1 to 10000 steps, and a rate above 0 and at most 1.")
        labels = self.engine.ids
        about: dict[str, Any] = {
            "action": action, "query": labels[question.row], "first": question.first, "second": question.second,
            "ids": [labels[row] for row in chosen],
        }  # fmt: skip
        if action != "remove":
            about |= {"steps": steps, "rate": float(lr)}
        known = self.tried.found(about)
        if known is not None:
            return {"job": None, "entry": known}

        def work(tell: Callable[[int, int], None]) -> dict[str, Any]:
            if action == "remove":
                found = self.engine.remove(question, chosen, tell)
            else:
                found = self.engine.walk(str(action), question, chosen, steps, float(lr))
            entry = about | {
                "when": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                "margin": self.engine.answer(question).margin, "predicted": found.predicted, "newton": found.newton,
                "achieved": found.achieved, "said": found.said,
            }  # fmt: skip
            self.tried.add(entry)
            return entry

        job = self.jobs.start(about, work)
        if job is None:
            raise QuestionError("Too much is waiting already. Stop something, or wait.")
        return {"job": job.number, "entry": None}

    def state(self, _: dict[str, Any]) -> dict[str, Any]:
        """Jobs, and what was tried."""
        return {"jobs": self.jobs.shown(), "tried": self.tried.entries}

    def stop(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ends a job."""
        return {"stopped": self.jobs.stop(whole_of(body, "job"))}

    def export(self, body: dict[str, Any]) -> Response:
        """Chosen rows, or all others, as CSV."""
        question, chosen = self._question(body), self.engine.checked(numbers_of(body, "chosen"))
        rest = body.get("which") == "rest"
        rows = [row for row in range(self.engine.n) if row not in set(chosen)] if rest else chosen
        content = sheet_of(self.engine, question, rows)
        return Response(content, media_type="text/csv; charset=utf-8")

    def _question(self, body: dict[str, Any]) -> Question:
        return self.engine.question(whole_of(body, "row"), whole_of(body, "first"), whole_of(body, "second"))

    def _tried_text(self, _: Request) -> Response:
        return PlainTextResponse(self.tried.text(), media_type="text/markdown; charset=utf-8")

    def _tried_json(self, _: Request) -> Response:
        return JSONResponse({"title": self.tried.title, "entries": self.tried.entries})


def _rounded(values: torch.Tensor) -> list[float | None]:
    """Six figures are enough for a page; what is no number is nothing."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
