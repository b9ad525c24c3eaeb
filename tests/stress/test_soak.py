"""Mixed traffic over every API for minutes: memory levels off, answers stay what they are."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("aiohttp")

from tests.stress.processes import Process
from tests.stress.report import Checks, Report
from tests.stress.test_vanishing import crowd
from tests.stress.traffic import Reply, closed_loop, mistakes, quiet, session, work

pytestmark = pytest.mark.stress
MINUTES = float(os.environ.get("STRESS_SOAK_MINUTES", "10"))
WARM = 0.3  # of the time
CALLERS, PAUSE_S, LEAVE_S, SAMPLE_S = 4, 0.05, 5.0, 1.0
SLOPE_MB, LAST_SLOPE_MB = 2.0, 0.5  # a minute, after warming up and in the last half
Samples = list[tuple[float, float]]  # minutes, MB


def test_soak(start: Callable[..., Process], report: Report) -> None:
    server = start()
    with report.test(f"soak of {MINUTES:g} minutes") as check:
        asyncio.run(soak(server, check))


async def soak(server: Process, check: Checks) -> None:
    replies: list[Reply] = []
    samples: Samples = []
    began = time.monotonic()
    end = began + 60 * MINUTES

    async def leave() -> None:
        seed = 0
        while time.monotonic() < end:
            seed += 1
            await crowd(server.port, 8, seed)
            await asyncio.sleep(LEAVE_S)

    async def sample() -> None:
        while time.monotonic() < end:
            samples.append(((time.monotonic() - began) / 60, server.resident()))
            await asyncio.sleep(SAMPLE_S)

    async with session(server.url) as client:
        before = await quiet(client, work())
        calls = work() * 2 + mistakes()
        load = closed_loop(
            client, calls, CALLERS, lambda: time.monotonic() < end, replies, PAUSE_S
        )
        await asyncio.gather(load, leave(), sample())
    judge(replies, before, check)
    growth(samples, check)
    idle = server.wait(server.idle, 10)
    failed = "Traceback" in server.errors or " ERROR " in server.errors
    check("idle after it, no error in the log", f"after {idle:.1f} s", idle < 10 and not failed)


def judge(replies: list[Reply], before: dict[str, str], check: Checks) -> None:
    others = Counter((r.call.name, r.status) for r in replies if not r.expected)
    statuses = Counter(r.status for r in replies)
    told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    check("no error but those that were asked for", f"{told}; {dict(others) or 'no other'}",
          not others)  # fmt: skip
    wrong = {r.call.name for r in replies if r.call.name in before and r.expected
             and r.answer != before[r.call.name]}  # fmt: skip
    check("the same answers all along", f"{sorted(wrong) or 'no other'}", not wrong)


def growth(samples: Samples, check: Checks) -> None:
    for start, bound, what in (
        (WARM, SLOPE_MB, f"after the first {WARM:.0%}"),
        (0.5, LAST_SLOPE_MB, "in the last half"),
    ):
        found = slope([one for one in samples if one[0] >= start * MINUTES])
        check(
            f"resident memory grows by less than {bound:g} MB a minute {what}",
            f"{found:+.2f} MB/min, {samples[0][1]:.0f} to {samples[-1][1]:.0f} MB",
            found < bound,
        )


def slope(samples: Samples) -> float:
    """MB a minute, by least squares."""
    minutes, megabytes = np.array(samples).T
    return float(np.polyfit(minutes, megabytes, 1)[0])
