"""Routes of the explorer for words: lists are searched, ordered and cut here, as a corpus is too long to be sent."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ...errors import CrossfluenceError
from ..report.sheet import no_formula
from .engine import ACTIONS, RATE, STEPS, QuestionError
from .jobs import Jobs
from .routes import numbers_of, plainly, static, whole_of
from .tried import TriedList
from .words_engine import WordsEngine, WordsQuestion

STATIC = {
    "": ("words.html", "text/html"), "explore.css": ("explore.css", "text/css"),
    "words.js": ("words.js", "text/javascript"), "talk.js": ("talk.js", "text/javascript"),
}  # fmt: skip
AT_ONCE = 25  # sentences on a page of the list


class WordsApplication:
    """One result about words behind routes.

    Args:
        engine: That answers.
        jobs: That work in the background.
        tried: What was tried.
    """

    def __init__(self, engine: WordsEngine, jobs: Jobs, tried: TriedList) -> None:
        self.engine, self.jobs, self.tried = engine, jobs, tried
        self._lowered = [text.lower() for text in engine.result.texts]

    def routes(self) -> Starlette:
        """The application as ASGI; to be put behind a `Guard`."""
        asked = [
            ("/api/result", self.result, "GET"), ("/api/list", self.listed, "POST"),
            ("/api/answer", self.answer, "POST"), ("/api/strongest", self.strongest, "POST"),
            ("/api/predict", self.predict, "POST"), ("/api/act", self.act, "POST"), ("/api/state", self.state, "GET"),
            ("/api/stop", self.stop, "POST"), ("/api/export", self.export, "POST"),
        ]  # fmt: skip
        routes = [Route(f"/{path}", static(*content)) for path, content in STATIC.items()]
        routes += [Route(path, plainly(work), methods=[method]) for path, work, method in asked]
        routes += [Route("/tried.md", self._tried_text), Route("/tried.json", self._tried_json)]
        return Starlette(routes=routes)

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

    def predict(self, body: dict[str, Any]) -> dict[str, Any]:
        """The change without some sentences: the sum of scores at once, a Newton step if it is asked for."""
        question, chosen = self._question(body), self.engine.checked(numbers_of(body, "chosen"))
        found: dict[str, Any] = {"sum": self.engine.summed(question, chosen), "newton": None, "said": ""}
        if body.get("newton") is True:
            try:
                found["newton"] = self.engine.newton(question, chosen)
                found["said"] = "" if found["newton"] is not None else "every step goes astray."
            except CrossfluenceError as error:
                found["said"] = str(error)
        return found

    def act(self, body: dict[str, Any]) -> dict[str, Any]:
        """Begins to train again without sentences, to undo them or to amplify them."""
        question, chosen = self._question(body), self.engine.checked(numbers_of(body, "chosen"))
        action, steps, lr = body.get("action"), body.get("steps", STEPS), body.get("rate", RATE)
        if action not in ACTIONS:
            raise QuestionError(f"The action must be one of {', '.join(ACTIONS)}.")
        if type(steps) is not int or not 1 <= steps <= 10_000 or not isinstance(lr, (int, float)) or not 0 < lr <= 1:
            raise QuestionError("Needed 1 to 10000 steps, and a rate above 0 and at most 1.")
        about: dict[str, Any] = {
            "action": action, "kind": question.kind, "query": question.name,
            "ids": [self.engine.result.shown[row] for row in chosen], "rows": chosen,
        }  # fmt: skip
        if action != "remove":
            about |= {"steps": steps, "rate": float(lr)}
        if (known := self.tried.found(about)) is not None:
            return {"job": None, "entry": known}

        def work(tell: Callable[[int, int], None]) -> dict[str, Any]:
            if action == "remove":
                found = self.engine.remove(question, chosen, tell)
            else:
                found = self.engine.walk(str(action), question, chosen, steps, float(lr))
            entry = about | {
                "when": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                "margin": self.engine.answer(question).value, "predicted": found.predicted, "newton": found.newton,
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

    def _tried_text(self, _: Request) -> Response:
        return PlainTextResponse(self.tried.text(), media_type="text/markdown; charset=utf-8")

    def _tried_json(self, _: Request) -> Response:
        return JSONResponse({"title": self.tried.title, "entries": self.tried.entries})
