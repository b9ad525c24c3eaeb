"""The outermost layer of the application, as plain ASGI.

For every request: an id (the client's X-Request-ID if it is a sane one), the whole body read under
the limits before anything else runs, metrics under the route's template, Server-Timing, one log
line without the client's address or text, and an error instead of a traceback for what nobody
caught. A client that went away is counted as 499. What the server cuts off at its end is told so.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dialects import Dialects
from app.api.state import State, shutting_down
from app.errors import AppError, BodyTooLarge, RequestTimeout
from app.logs import fields_of
from app.record import Done, Record, current, trace_id_of
from app.tracing import Tracing

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_GONE = 499
log = logging.getLogger("app.http")


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


class RequestContext:
    def __init__(
        self,
        app: ASGIApp,
        state: State,
        max_body_bytes: int,
        body_timeout_s: float,
        paths: frozenset[str],
        uploads: Mapping[str, int],
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._state = state
        self._metrics = state.metrics
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._uploads = uploads  # limits of bodies by path, where others hold
        self._paths = paths  # to name a request that was refused before it was routed
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self._state.dialects)
        record = exchange.record
        token, span = current.set(record), None
        if self._tracing:
            span = self._tracing.begin(record, Headers(scope=scope), scope["path"])
        self._metrics.requests_in_flight.inc()
        try:
            await self._answer(exchange, scope, receive)
        finally:
            for lease in scope["state"].pop("leases", ()):
                lease.close()
            self._metrics.requests_in_flight.dec()
            done = self._done(exchange, scope)
            self._tell(record, done)
            if self._tracing and span:
                self._tracing.end(span, record, done)
            current.reset(token)

    async def _answer(self, exchange: _Exchange, scope: Scope, receive: Receive) -> None:
        try:
            limit = self._uploads.get(scope["path"], self._max_body_bytes)
            body = await _read(scope, receive, limit, self._body_timeout_s)
            await self._app(scope, _replay(body, receive), exchange.send)
        except (ClientGone, ClientDisconnect):
            return
        except asyncio.CancelledError:  # by the server, whose time to shut down is up
            if not self._state.draining:
                raise
            await exchange.fail(shutting_down(), receive)
        except AppError as error:
            await exchange.fail(error, receive)
        except Exception:
            log.exception("request %s failed", exchange.record.request_id)
            await exchange.fail(AppError("an unexpected error"), receive)

    def _done(self, exchange: _Exchange, scope: Scope) -> Done:
        path = scope["path"] if scope["path"] in self._paths else "unmatched"
        route = getattr(scope.get("route"), "path", path)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        status = exchange.status if exchange.complete else _CLIENT_GONE
        return Done(method, str(route), status, time.monotonic() - exchange.record.began)

    def _tell(self, record: Record, done: Done) -> None:
        self._metrics.requests.labels(done.route, done.method, str(done.status)).inc()
        self._metrics.request_duration.labels(done.route).observe(done.seconds)
        if record.error:
            self._metrics.request_errors.labels(done.route, record.error).inc()
        log.info(
            "%s %s %d %.3f s %s",
            *(done.method, done.route, done.status, done.seconds, record.request_id),
            extra={"fields": fields_of(record, done)},
        )


class _Exchange:
    """One request and what of its answer has been sent."""

    def __init__(self, scope: Scope, send: Send, dialects: Dialects) -> None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.record = record = Record()
        if _REQUEST_ID.fullmatch(given):
            record.request_id = given
        record.trace_id = trace_id_of(headers.get("traceparent", ""))
        scope.setdefault("state", {})["request_id"] = record.request_id
        self.status = 0
        self.complete = False
        self._scope = scope
        self._send = send
        self._dialects = dialects

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.record.request_id
            parts = [headers["Server-Timing"]] if "Server-Timing" in headers else []
            parts.append(f"total;dur={(time.monotonic() - self.record.began) * 1000:.1f}")
            headers["Server-Timing"] = ", ".join(parts)
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.complete = True

    async def fail(self, error: AppError, receive: Receive) -> None:
        if not self.status:  # else the answer has begun and can only be broken off
            # the rest of a body that is late must not be taken for the next request
            headers = {"Connection": "close"} if isinstance(error, RequestTimeout) else None
            answer = self._dialects.answer(error, self._scope, headers=headers)
            await answer(self._scope, receive, self.send)


async def _read(scope: Scope, receive: Receive, limit: int, timeout_s: float) -> bytes:
    """The whole body; refused as soon as it is known to be over the limit, or late."""
    error = BodyTooLarge(f"the body may have at most {limit} bytes")
    announced = Headers(scope=scope).get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > limit:
        raise error
    try:
        async with asyncio.timeout(timeout_s):
            return await _receive(receive, limit, error)
    except TimeoutError:
        raise RequestTimeout(f"the body did not arrive within {timeout_s:g} s") from None


async def _receive(receive: Receive, limit: int, error: BodyTooLarge) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise error
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then what the server has to say."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
