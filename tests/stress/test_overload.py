"""Twice the arrivals that can be answered: the bound of the queue holds latency, others get 503."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from benchmarks.client import arrivals
from benchmarks.tables import percentile
from benchmarks.texts import sentences
from tests.stress.processes import Process
from tests.stress.report import Checks, Report
from tests.stress.traffic import Call, Reply, closed_loop, open_loop, quiet, session, translate

pytestmark = pytest.mark.stress
SLOTS, QUEUE = 32, 32
WARM_S, WINDOW_S, WINDOWS, OVERLOAD_S = 5.0, 6.0, 3, 60.0
REFUSED_S = 0.1
PROBE = Call("live", "/health/live", None)


def test_overload(start: Callable[..., Process], report: Report) -> None:
    server = start(slots=SLOTS, max_queue=QUEUE)
    calls = [translate(text) for text in dict.fromkeys(sentences(64, seed=5))]
    with report.test("overload") as check:
        asyncio.run(overload(server, calls, check))


async def overload(server: Process, calls: list[Call], check: Checks) -> None:
    async with session(server.url) as client:
        before = await quiet(client, calls)
        rate = await capacity(client, calls)
        times = arrivals(2 * rate, OVERLOAD_S, seed=6)
        rng, end = random.Random(7), time.monotonic() + OVERLOAD_S
        probes: list[Reply] = []
        sent, _ = await asyncio.gather(
            open_loop(client, [rng.choice(calls) for _ in times], times),
            closed_loop(client, [PROBE], 1, lambda: time.monotonic() < end, probes, pause_s=0.1),
        )
        idle = server.wait(server.idle, 10)
        after = await quiet(client, calls)
    told = [reply for _, reply in sent]
    others = Counter(r.status for r in told if not (r.expected or r.busy))
    check(
        f"arrivals at twice the capacity ({rate:.0f}/s, 32 callers): answered, or 503 with "
        "Retry-After; none hangs",
        f"{len(told)} sent, {sum(r.expected for r in told)} answered, "
        f"{sum(r.busy for r in told)} refused, others {dict(others) or 'none'}, slowest "
        f"{max(r.seconds for r in told):.1f} s",
        not others and any(r.busy for r in told),
    )
    latency([(at, r) for at, r in sent if r.expected], check)
    refused = percentile([r.seconds for r in told if r.busy], 95)
    bound = max(REFUSED_S, 3 * percentile([probe.seconds for probe in probes], 95))
    check(
        f"refused within {bound * 1000:.0f} ms (p95; 100, or 3 times a probe's meanwhile)",
        f"{refused * 1000:.0f} ms",
        refused <= bound,
    )
    wrong = sum(r.answer != before[r.call.name] for r in told if r.expected)
    check("answers are those of a quiet server", f"{wrong} others", not wrong)
    check("idle after it, same answers", f"after {idle:.1f} s", idle < 10 and after == before)


async def capacity(client: Any, calls: list[Call]) -> float:
    """Answers a second of as many callers as there are slots, in the best window."""
    replies: list[Reply] = []
    begin = time.monotonic() + WARM_S
    end = begin + WINDOW_S * WINDOWS
    await closed_loop(client, calls, SLOTS, lambda: time.monotonic() < end, replies)
    assert all(reply.expected for reply in replies)
    windows = Counter(int((r.begun + r.seconds - begin) // WINDOW_S) for r in replies)
    return max(windows[i] for i in range(WINDOWS)) / WINDOW_S


def latency(admitted: list[tuple[float, Reply]], check: Checks) -> None:
    third = OVERLOAD_S / 3
    p95 = [
        percentile([r.seconds for at, r in admitted if low <= at < low + third], 95)
        for low in (0, third, 2 * third)
    ]
    check(
        "p95 of the admitted is flat: last third at most 1.5 times the first",
        " / ".join(f"{value:.2f}" for value in p95) + " s",
        p95[2] <= 1.5 * p95[0],
    )
    rate = len(admitted) / OVERLOAD_S
    bound = 2 * (QUEUE + SLOTS) / rate
    check(
        f"p95 within twice (queue + slots) / answers a second = {bound:.2f} s",
        f"{max(p95):.2f} s at {rate:.0f} answers/s",
        max(p95) <= bound,
    )
