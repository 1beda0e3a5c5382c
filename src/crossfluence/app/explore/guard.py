"""Requests that are let through: those to this machine by name, from pages of this server, that know its token."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Of every answer: nothing is asked of another host, and the address with the token is told to none."""

MOST_BYTES = 4_000_000  # of a request


class Guard:
    """An ASGI application around another, which sees only requests that may come in.

    The name of the host is checked, so that a page of another site cannot reach this one by a name that it lets point
    here; so is the page that asks, and a token that stands first in the path.

    Args:
        inner: The application.
        hosts: Such as "127.0.0.1:8000".
        token: First part of every path.
    """

    def __init__(self, inner: Any, hosts: Collection[str], token: str) -> None:
        self._inner, self._hosts, self._token = inner, frozenset(hosts), token

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        refusal = self.refusal(scope)
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sent(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        if refusal is None:
            await self._inner({**scope, "path": scope["path"][len(self._token) + 1 :]}, receive, sent)
            return
        status, said = refusal
        plain = [(b"content-type", b"text/plain; charset=utf-8")]
        await sent({"type": "http.response.start", "status": status, "headers": plain})
        await send({"type": "http.response.body", "body": said.encode()})

    def refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        """Status and reason of a refusal; nothing if a request may come in.

        Args:
            scope: Of ASGI.

        Returns:
            Such as 403.
        """
        headers = _once(scope["headers"])
        if headers is None or headers.get("host") not in self._hosts:
            return 403, "This server answers to the address that it printed, and to no other name.\n"
        origin = headers.get("origin")
        if origin is not None and origin not in {f"http://{host}" for host in self._hosts}:
            return 403, "This server answers to its own pages only.\n"
        if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            return 403, "This server answers to its own pages only.\n"
        token = scope["path"].partition("/")[2].partition("/")[0]
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self._token.encode()):
            return 403, "The address lacks the token that this server printed.\n"
        if scope["method"] == "POST":
            return _refused_content(headers)
        return None


def _refused_content(headers: dict[str, str]) -> tuple[int, str] | None:
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return 415, "Needed JSON.\n"
    length = headers.get("content-length", "")
    if not length.isdecimal():
        return 411, "Needed the length of the request.\n"
    return (413, "The request is too long.\n") if int(length) > MOST_BYTES else None


def _once(headers: list[tuple[bytes, bytes]]) -> dict[str, str] | None:
    """Headers by name; nothing if a host or an origin comes twice."""
    names = [name for name, _ in headers]
    if any(names.count(name) > 1 for name in (b"host", b"origin")):
        return None
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
