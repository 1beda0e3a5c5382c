"""Routes of JSON and of files of the package, and numbers out of what a page sends."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib.resources import files
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import CrossfluenceError
from .base import QuestionError


def static(name: str, kind: str) -> Callable[[Request], Response]:
    """A route that sends a file of the package."""
    content = (files("crossfluence.app.explore") / "static" / name).read_bytes()

    def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def plainly(work: Callable[[dict[str, Any]], Any]) -> Callable[[Request], Any]:
    """A route that reads JSON, works in a thread, and answers in JSON; 400 and a sentence for what cannot be."""

    @wraps(work)
    async def answer(request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        try:
            body = await request.json() if request.method == "POST" else {}
        except ValueError as error:
            raise HTTPException(400, "Needed JSON.") from error
        try:
            if not isinstance(body, dict):
                raise QuestionError("Needed a JSON object.")
            found = await run_in_threadpool(work, body)
        except CrossfluenceError as error:
            return JSONResponse({"said": str(error)}, status_code=400)
        return found if isinstance(found, Response) else JSONResponse(found)

    return answer


def whole_of(body: dict[str, Any], name: str) -> int:
    """A whole number that a page sent."""
    value = body.get(name)
    if type(value) is not int:
        raise QuestionError(f"Needed a whole number for {name!r}.")
    return value


def numbers_of(body: dict[str, Any], name: str) -> list[int]:
    """Row numbers that a page sent."""
    values = body.get(name)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise QuestionError(f"Needed a list of row numbers for {name!r}.")
    return values
