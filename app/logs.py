"""Log lines as text or as JSON, one each; a line of a request carries its ids.

An exception is told by its kind and where it was raised. Its message is told only where no user's
text can have come into it: in the engine, which sees ids alone, and around it.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from app.record import Done, Record, current

LogFormat = Literal["text", "json"]
_TRUSTED = ("app.engine", "app.main", "app.serve")  # loggers of exceptions without text
Raised = tuple[type[BaseException], BaseException, TracebackType | None]


def configure(level: str, kind: LogFormat) -> None:
    """All loggers write such lines to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(kind))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def formatter(kind: LogFormat) -> logging.Formatter:
    return JsonLines() if kind == "json" else TextLines()


def fields_of(record: Record, done: Done) -> dict[str, object]:
    """The members of the line that a request ends with."""
    seconds = record.queue_s
    return {
        "method": done.method,
        "route": done.route,
        "status": done.status,
        "duration_s": round(done.seconds, 6),
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "queue_s": None if seconds is None else round(seconds, 6),
        "error": record.error or None,
    }


class TextLines(logging.Formatter):
    """Time, level, logger and message; below it what was raised."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"
        if raised := _raised(record):
            line = "\n".join([line, *_stack(raised), _told(record, raised)])
        return line


class JsonLines(logging.Formatter):
    """Members: time, level, logger, message; what `extra` has under `fields`; error and stack."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := current.get():
            line["request_id"] = request.request_id
            line["trace_id"] = request.trace_id or None
        line |= getattr(record, "fields", {})
        if raised := _raised(record):
            line["error"], line["stack"] = _told(record, raised), _stack(raised)
        return json.dumps(line, ensure_ascii=False)


def _raised(record: logging.LogRecord) -> Raised | None:
    found = record.exc_info
    return found if found and found[0] is not None else None


def _told(record: logging.LogRecord, raised: Raised) -> str:
    kind, error, _ = raised
    return f"{kind.__name__}: {error}" if record.name in _TRUSTED else kind.__name__


def _stack(raised: Raised) -> list[str]:
    frames = traceback.extract_tb(raised[2])
    return [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
