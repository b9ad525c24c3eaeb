"""When the client asks again, and when it does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from gpt2_mt.client import (
    Client,
    ConnectionFailed,
    Retry,
    TimedOut,
    Unavailable,
)
from gpt2_mt.messages import Chunk
from gpt2_mt.retry import wait_asked
from tests.gpt2_mt.answers import EVENT, Answers, busy, giving, ok


def test_the_servers_wish_is_waited_for(waits: list[float]) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    answers = (busy(503, "3"), busy(429, soon), busy(503, "0"), ok())
    with Client(transport=giving(*answers)) as client:
        assert len(client.languages()) == 1
    assert waits[0] == 3 and 17 < waits[1] <= 20 and waits[2] == 0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("", None), ("soon", None), ("-1", None), ("1.5", None), ("²", None),
     ("9" * 5000, None), ("120", 120), ("Fri, 31 Dec 1999 23:59:59 GMT", 0),
     ("Fri, 31 Dec 1999 23:59:59 -0000", 0)],
)  # fmt: skip
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert wait_asked(header) == seconds


def test_without_a_wish_pauses_double(waits: list[float]) -> None:
    policy = Retry(attempts=6, first_s=1, most_s=4)
    answers: Answers = [
        busy(), httpx.ConnectError("refused"), httpx.ReadError("reset"),
        httpx.RemoteProtocolError("went away"), httpx.ConnectTimeout("late"), ok(),
    ]  # fmt: skip
    with Client(transport=giving(*answers), retry=policy) as client:
        assert len(client.languages()) == 1
    for wait, whole in zip(waits, [1, 2, 4, 4, 4], strict=True):
        assert whole / 2 <= wait <= whole


def test_attempts_and_time_are_bounded(waits: list[float]) -> None:
    with (
        Client(transport=giving(*[busy() for _ in range(4)])) as client,
        pytest.raises(Unavailable),
    ):
        client.languages()
    assert len(waits) == 3
    with Client(transport=giving(busy(503, "61"))) as client, pytest.raises(Unavailable):
        client.languages()
    refused = [httpx.ConnectError("refused") for _ in range(2)]
    with (
        Client(transport=giving(*refused), retry=Retry(attempts=2)) as client,
        pytest.raises(ConnectionFailed, match="refused") as caught,
    ):
        client.languages()
    assert isinstance(caught.value.__cause__, httpx.ConnectError) and len(waits) == 4


@pytest.mark.parametrize("failed", [httpx.ReadTimeout("late"), httpx.PoolTimeout("late")])
def test_what_was_too_slow_is_not_asked_again(failed: Exception, waits: list[float]) -> None:
    with Client(transport=giving(failed)) as client, pytest.raises(TimedOut):
        client.translate("a", "de")
    assert waits == []


def test_a_stream_is_retried_before_its_first_event_only(waits: list[float]) -> None:
    whole = httpx.Response(200, text=f": a comment\n\n{EVENT}data: [DONE]\n\n")
    answers: Answers = [busy(503, "1"), httpx.ConnectError("no"), httpx.Response(200), whole]
    with Client(transport=giving(*answers)) as client:
        assert list(client.stream("a")) == [Chunk(0, "a", None)]
    assert len(waits) == 3
    with Client(transport=giving(httpx.Response(200, text=EVENT))) as client:
        chunks = client.stream("a")
        assert next(chunks).text == "a"
        with pytest.raises(ConnectionFailed, match="broke off"):
            next(chunks)
    told = 'data: {"error":{"status":503,"code":"not_ready","detail":"bye","request_id":"x"}}\n\n'
    with (
        Client(transport=giving(httpx.Response(200, text=told))) as client,
        pytest.raises(Unavailable, match="503 not_ready: bye"),
    ):
        next(client.stream("a"))
    assert len(waits) == 3
