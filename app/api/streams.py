"""What is made, as server-sent events: JSON objects, an error as the last one, then `[DONE]`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.middleware import log
from app.engine.request import Timing
from app.errors import AppError
from app.record import note_error

Events = AsyncIterator[Mapping[str, Any]]


class Running(Protocol):
    def close(self) -> None: ...


class EventStream(StreamingResponse):
    """`events` tell what `stream` makes; however it ends, the stream's slots are freed.

    `failed` makes the event of an error. With `done`, what ends well ends with `[DONE]`.
    """

    def __init__(
        self,
        stream: Running,
        events: Events,
        failed: Callable[[AppError], Any],
        request_id: str,
        *,
        done: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._stream = stream
        sent = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
        lines = _lines(events, failed, request_id, done)
        super().__init__(lines, 200, sent, "text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


async def _lines(
    events: Events, failed: Callable[[AppError], Any], request_id: str, done: bool
) -> AsyncIterator[str]:
    try:
        async for event in events:
            yield _line(event)
        if done:
            yield "data: [DONE]\n\n"
    except AppError as error:
        note_error(error.code)
        yield _line(failed(error))
    except Exception:
        log.exception("request %s failed", request_id)
        note_error(AppError.code)
        yield _line(failed(AppError("an unexpected error")))


def _line(data: Any) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def server_timing(timing: Timing) -> str:
    parts = {"queue": timing.queue_s, "prefill": timing.prefill_s, "decode": timing.decode_s}
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts.items())
