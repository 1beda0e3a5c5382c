"""Acting on a question behind routes: what explorers of all kinds of results share."""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ...errors import CrossfluenceError
from .base import ACTIONS, RATE, STEPS, AbstractEngine, QuestionError
from .jobs import Jobs
from .routes import numbers_of, plainly, static, whole_of
from .tried import TriedList


class AbstractApplication(ABC):
    """One result behind routes; a kind of result says what its page asks, and what a question is.

    Args:
        engine: That answers.
        jobs: That work in the background.
        tried: What was tried.
    """

    content: ClassVar[dict[str, tuple[str, str]]]  # files of the page, and their types, by path
    reads: ClassVar[tuple[str, ...]]  # names of methods that answer what is posted to the route of their name

    def __init__(self, engine: AbstractEngine[Any, Any], jobs: Jobs, tried: TriedList) -> None:
        self.engine, self.jobs, self.tried = engine, jobs, tried

    def routes(self) -> Starlette:
        """The application as ASGI; to be put behind a `Guard`."""
        asked = dict.fromkeys(("result", "state"), "GET")
        asked |= dict.fromkeys((*self.reads, "predict", "act", "stop", "export"), "POST")
        routes = [Route(f"/{path}", static(*content)) for path, content in self.content.items()]
        routes += [Route(f"/api/{name}", plainly(getattr(self, name)), methods=[how]) for name, how in asked.items()]
        routes += [Route("/tried.md", self._tried_text), Route("/tried.json", self._tried_json)]
        return Starlette(routes=routes)

    @abstractmethod
    def result(self, _: dict[str, Any]) -> dict[str, Any]:
        """What the page shows first."""

    @abstractmethod
    def export(self, body: dict[str, Any]) -> Response:
        """Chosen rows, or all others, as CSV."""

    @abstractmethod
    def _question(self, body: dict[str, Any]) -> Any:
        """The question that a page asks."""

    @abstractmethod
    def _about(self, question: Any, chosen: Sequence[int]) -> dict[str, Any]:
        """The question and the chosen rows as the list of what was tried names them."""

    @abstractmethod
    def _value(self, question: Any) -> float:
        """The question of the model as it was trained."""

    def predict(self, body: dict[str, Any]) -> dict[str, Any]:
        """The change without some rows: the sum of scores at once, a Newton step if it is asked for."""
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
        """Begins to train again without rows, to undo them or to amplify them."""
        question, chosen = self._question(body), self.engine.checked(numbers_of(body, "chosen"))
        action, steps, lr = _settings(body)
        about: dict[str, Any] = {"action": action, **self._about(question, chosen)}
        if action != "remove":
            about |= {"steps": steps, "rate": lr}
        if (known := self.tried.found(about)) is not None:
            return {"job": None, "entry": known}

        def work(tell: Callable[[int, int], None]) -> dict[str, Any]:
            if action == "remove":
                found = self.engine.remove(question, chosen, tell)
            else:
                found = self.engine.walk(action, question, chosen, steps, lr)
            entry = about | {
                "when": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                "margin": self._value(question), "predicted": found.predicted, "newton": found.newton,
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

    def _tried_text(self, _: Request) -> Response:
        return PlainTextResponse(self.tried.text(), media_type="text/markdown; charset=utf-8")

    def _tried_json(self, _: Request) -> Response:
        return JSONResponse({"title": self.tried.title, "entries": self.tried.entries})


def _settings(body: dict[str, Any]) -> tuple[str, int, float]:
    """Action, steps and rate that a page sent."""
    action, steps, lr = body.get("action"), body.get("steps", STEPS), body.get("rate", RATE)
    if action not in ACTIONS:
        raise QuestionError(f"The action must be one of {', '.join(ACTIONS)}.")
    if type(steps) is not int or not 1 <= steps <= 10_000 or not isinstance(lr, (int, float)) or not 0 < lr <= 1:
        raise QuestionError("Needed 1 to 10000 steps, and a rate above 0 and at most 1.")
    return str(action), steps, float(lr)
