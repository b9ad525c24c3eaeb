"""Around the HTTP proxy of Ray Serve: what it says by itself is told as the server tells it.

A replica that dies takes its answers with it, and while an application ends the proxy knows no
route: both become 503 with Retry-After, in the form of the route's API. A stream that had begun
ends with an event that tells the error. What a replica answered goes through as it is.
"""

from __future__ import annotations

import asyncio
import json
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import NotReady

if TYPE_CHECKING:
    from app.api.dialects import Dialects

_OF_RAY = "/-/"  # its own health and routes
_REPLICA_SAYS = "server-timing"  # in every answer of the application and in none of the proxy
log = logging.getLogger("app.edge")


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxies are to put around themselves."""
    return [Middleware(Edge)]


class Edge:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OF_RAY):
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, Headers(scope=scope).get("x-request-id", ""))
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            log.exception("the proxy failed")
        if not answer.complete:
            await self._tell(answer, scope, receive, send)

    async def _tell(self, answer: _Answer, scope: Scope, receive: Receive, send: Send) -> None:
        error = NotReady("no replica answers now", retry_after_s=1)
        scope.setdefault("state", {})["request_id"] = answer.request_id
        dialects = await asyncio.to_thread(_dialects)
        told = dialects.answer(error, scope)
        if not answer.started:
            told.headers["X-Request-ID"] = answer.request_id
            await told(scope, receive, send)
        elif answer.streams:
            event: Any = json.loads(bytes(told.body))
            if "problem" in told.headers["content-type"]:
                event = {"error": event}
            body = f"data: {json.dumps(event)}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": False})


@cache
def _dialects() -> Dialects:
    """Of all routes; imported when first needed, so that a proxy starts in time."""
    from app.api.dialects import Dialects
    from app.main import APIS

    dialects = Dialects()
    for apis in APIS.values():
        for api in apis:
            dialects.speak(api.router, api.tell)
    return dialects


class _Answer:
    """What of a replica's answer has been sent; what the proxy says by itself is dropped."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.started = self.complete = self.streams = False
        self.request_id = request_id
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            self.request_id = headers.get("x-request-id", self.request_id)
            headers["X-Request-ID"] = self.request_id  # once: the proxy adds its own
            self.started = _REPLICA_SAYS in headers
            self.streams = headers.get("content-type", "").startswith("text/event-stream")
        if self.started:
            await self._send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self.complete = True
