"""The bridge from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from app.engine.request import Event, Failed, Finished, Request, Timing, Token
from app.errors import DeadlineExceeded, EngineFailed, QueueFull
from app.record import Record, current
from app.tasks.job import Deadline, Job, slowest, unheard

TIMING = Timing(0.1, 0.2, 0.3)
REQUEST = Request((1, 2), 4, unheard, frozenset({0}))


class Ticket:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Engine:
    """Plays scripts, one for each sequence, in a thread of its own."""

    def __init__(self, *scripts: Sequence[Event]) -> None:
        self.scripts = scripts
        self.tickets: list[Ticket] = []
        self.requests: list[Request] = []

    def submit(self, requests: Sequence[Request], begun: bool = False) -> list[Ticket]:
        self.requests = list(requests)
        self.tickets = [Ticket() for _ in requests]
        threading.Thread(target=self._play).start()
        return self.tickets

    def _play(self) -> None:
        for request, script in zip(self.requests, self.scripts, strict=True):
            for event in script:
                request.listener(event)


async def collect(job: Job) -> list[tuple[int, Event]]:
    with job:
        return [event async for event in job.events()]


def run(engine: Engine, count: int, seconds: float = 5.0, tokens: bool = False):
    async def main() -> list[tuple[int, Event]]:
        requests = [REQUEST] * count
        return await collect(Job(engine, requests, Deadline.after(seconds), tokens=tokens))

    return asyncio.run(main())


@pytest.mark.parametrize("tokens", [False, True])
def test_all_events_arrive_in_the_order_of_each_sequence(tokens: bool) -> None:
    script = [*(Token(i, 0.0) for i in range(100)), Finished("stop", TIMING)]
    events = run(Engine(script, script), 2, tokens=tokens)
    for i in range(2):
        assert [event for j, event in events if j == i] == script


def test_what_is_submitted_later_belongs_to_the_same_job() -> None:
    engine = Engine([Finished("stop", TIMING)])

    async def main() -> list[Request]:
        requests = []
        for _ in range(2):
            with Job(engine, [REQUEST], Deadline.after(5)) as job:
                requests += engine.requests
                job.add([REQUEST])
                requests += engine.requests
        return requests

    first, second, third, fourth = (request.job for request in asyncio.run(main()))
    assert first is second and third is fourth and first is not third and None not in (first, third)


def test_the_record_dates_each_submission_from_its_own_time() -> None:
    record, engine = Record(), Engine([Finished("stop", Timing(0.0, 0.0, 1.0))])

    async def main() -> None:
        current.set(record)
        with Job(engine, [REQUEST], Deadline.after(5)) as job:
            await job.arrived()
            first = record.decoded
            await asyncio.sleep(0.05)
            job.add([REQUEST])
            await job.arrived()
            assert first and record.decoded and record.decoded - first >= 0.05

    asyncio.run(main())
    assert record.prompt_tokens == 4


def test_a_failure_cancels_the_others() -> None:
    engine = Engine([Failed(EngineFailed("broken"))], [])
    with pytest.raises(EngineFailed):
        run(engine, 2)
    assert [ticket.cancelled for ticket in engine.tickets] == [False, True]


def test_the_deadline_cancels_and_names_the_seconds() -> None:
    engine = Engine([Token(1, 0.0)])
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"timeout_s=0\.1"):
        run(engine, 1, seconds=0.1)
    assert time.monotonic() - began < 2
    assert engine.tickets[0].cancelled
    assert engine.requests[0].deadline == pytest.approx(began + 0.1, abs=0.5)


def test_a_deadline_noticed_by_the_engine_reads_the_same() -> None:
    with pytest.raises(DeadlineExceeded, match="timeout_s=5"):
        run(Engine([Failed(DeadlineExceeded("in the queue"))]), 1)


def test_cancelling_the_task_cancels_the_sequences() -> None:
    engine = Engine([], [])

    async def main() -> None:
        task = asyncio.create_task(collect(Job(engine, [REQUEST] * 2, Deadline.after(60))))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert all(ticket.cancelled for ticket in engine.tickets)


def test_a_refused_submission_is_raised_at_once() -> None:
    class Full:
        def submit(self, requests: Sequence[Request], begun: bool = False) -> list[Ticket]:
            raise QueueFull("full", retry_after_s=3)

    async def main() -> None:
        Job(Full(), [REQUEST], Deadline.after(1))

    with pytest.raises(QueueFull):
        asyncio.run(main())


def test_nothing_to_do_is_done() -> None:
    assert run(Engine(), 0) == []


def test_slowest() -> None:
    assert slowest([TIMING, Timing(0.0, 0.0, 0.7), TIMING]) == Timing(0.0, 0.0, 0.7)
    assert slowest([]) == Timing(0.0, 0.0, 0.0)
