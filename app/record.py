"""What one request did, for its log line and its span: ids, counts and times.

No text, key or address goes in. The HTTP layer opens a record in the request's context; whatever
runs in that context, such as the tasks, finds it by `current` and adds to it.
"""

from __future__ import annotations

import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)


@dataclass(slots=True)
class Record:
    """Times are `time.monotonic()`; None: it did not come so far."""

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    trace_id: str = ""
    began: float = field(default_factory=time.monotonic)
    error: str = ""  # the code of the error that was told
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queued: float | None = None
    prefill: float | None = None
    first_token: float | None = None
    decoded: float | None = None
    queue_s: float | None = None  # the longest wait of one of its sequences

    def submitted(self, prompt_tokens: int, now: float) -> None:
        """Sequences with so many tokens in all were handed to the engine."""
        self.prompt_tokens += prompt_tokens
        self.queued = now if self.queued is None else self.queued

    def ended(self, submitted: float, queue_s: float, prefill_s: float, decode_s: float) -> None:
        """One of its sequences, submitted then, took so long."""
        prefill = submitted + queue_s
        first = prefill + prefill_s
        self.queue_s = max(queue_s, self.queue_s or 0.0)
        self.prefill = min(prefill, self.prefill or prefill)
        self.first_token = min(first, self.first_token or first)
        self.decoded = max(first + decode_s, self.decoded or 0.0)


@dataclass(frozen=True, slots=True)
class Done:
    """What was answered."""

    method: str
    route: str
    status: int
    seconds: float


current: ContextVar[Record | None] = ContextVar("record", default=None)


def note_error(code: str) -> None:
    """The request that runs in this context was told an error of this code."""
    if record := current.get():
        record.error = code


def trace_id_of(traceparent: str) -> str:
    """The trace that a W3C traceparent header continues; empty if it is not one."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found else ""
