"""When a call is made again: a full queue, a starting or stopping server, a failed connection.

An error flows in; the seconds to wait flow out, or it is raised under its name.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic

import httpx

from gpt2_mt.messages import ClientError, ConnectionFailed, Problem, TimedOut, Unavailable


@dataclass(frozen=True)
class Retry:
    """At most `attempts` in all, none begun later than `total_s` after the first.

    Between them the server's Retry-After, or else a random half to whole of `first_s`, doubled each
    time up to `most_s`.
    """

    attempts: int = 4
    total_s: float = 60
    first_s: float = 0.5
    most_s: float = 8


class Tries:
    """The attempts at one call."""

    def __init__(self, policy: Retry) -> None:
        self._policy = policy
        self._made = 0
        self._began = monotonic()

    def pause(self, error: Exception, *, final: bool = False) -> float:
        """Seconds until the next attempt after this error; raises it if there is to be none."""
        self._made += 1
        failed = named(error)
        seconds = self._seconds(failed)
        late = monotonic() - self._began + seconds > self._policy.total_s
        if final or late or self._made >= self._policy.attempts or not passing(error):
            if failed is error:
                raise failed
            raise failed from error
        return seconds

    def _seconds(self, failed: ClientError) -> float:
        if isinstance(failed, Problem) and (asked := wait_asked(failed.retry_after)) is not None:
            return asked
        doubled = self._policy.first_s * 2.0 ** min(self._made - 1, 30)
        return min(self._policy.most_s, doubled) * random.uniform(0.5, 1)


def wait_asked(header: str | None) -> float | None:
    """Seconds that a Retry-After asks for; None if there is none that can be read."""
    if header is None:
        return None
    try:
        if header.isdecimal():
            return float(int(header))
        date = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def passing(error: Exception) -> bool:
    """May the same call fare better? One that was too slow would be as slow again."""
    return isinstance(
        error,
        Unavailable
        | ConnectionFailed
        | httpx.NetworkError
        | httpx.ConnectTimeout
        | httpx.RemoteProtocolError,
    )


def named(error: Exception) -> ClientError:
    if isinstance(error, ClientError):
        return error
    kind = TimedOut if isinstance(error, httpx.TimeoutException) else ConnectionFailed
    return kind(f"{type(error).__name__}: {error}")
