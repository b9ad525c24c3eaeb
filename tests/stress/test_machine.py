"""A machine that misbehaves: no room for logs, a clock that jumps by hours."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from app.access import Key, digest_of
from tests.stress.processes import Process
from tests.stress.report import Checks, Report
from tests.stress.traffic import (
    SENTENCES,
    Reply,
    ask,
    closed_loop,
    post,
    quiet,
    session,
    translate,
    work,
)  # fmt: skip

pytestmark = pytest.mark.stress
FULL = Path("/dev/full")
LOAD_S, MEMORY_MB = 10.0, 16.0
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
JUMPS = ("+5h", "-9h", "+3d", "-30d", "+0")  # beside the true time
JUMP_S, RATE = 3.0, 4


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_full_disk_for_logs(report: Report) -> None:
    with (
        report.test("no room for logs") as check,
        Process(FULL, log_level="debug", log_format="json") as server,
    ):
        asyncio.run(full(server, check))


async def full(server: Process, check: Checks) -> None:
    replies: list[Reply] = []
    async with session(server.url) as client:
        before = await quiet(client, work())
        half = time.monotonic() + LOAD_S
        await closed_loop(client, work(), 4, lambda: time.monotonic() < half, replies)
        memory = server.resident()
        end = time.monotonic() + LOAD_S
        await closed_loop(client, work(), 4, lambda: time.monotonic() < end, replies)
    failed = [(r.call.name, r.status) for r in replies if not r.expected]
    wrong = sum(r.answer != before[r.call.name] for r in replies if r.expected)
    check("stderr is /dev/full, every line is refused: requests are answered as before",
          f"{len(replies)} answered, {len(failed)} failed, {wrong} wrong {failed[:3] or ''}",
          not failed and not wrong)  # fmt: skip
    grown = server.resident() - memory
    check(f"lines do not pile up: memory within {MEMORY_MB:g} MB", f"{grown:+.1f} MB",
          grown <= MEMORY_MB)  # fmt: skip


def test_clock_that_jumps(start: Callable[..., Process], report: Report, tmp_path: Path) -> None:
    if not FAKETIME:
        report.left_out("a clock that jumps", "libfaketime is not installed")
        pytest.skip("libfaketime is not installed: apt-get install faketime")
    keys, clock = tmp_path / "keys.txt", tmp_path / "clock"
    clock.write_text("+0\n")
    found = [Key("free", digest_of("free")), Key("slow", digest_of("slow"), RATE)]
    keys.write_text("".join(f"{key}\n" for key in found))
    fake = {
        "LD_PRELOAD": str(FAKETIME[0]), "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
    }  # fmt: skip
    server = start(environment=fake, api_keys=keys, default_timeout_s=60)
    with report.test("a clock that jumps") as check:
        asyncio.run(jumping(server, clock, check))


async def jumping(server: Process, clock: Path, check: Checks) -> None:
    replies: list[Reply] = []
    limited: list[Reply] = []
    seen = []
    calls = [translate(list(SENTENCES[:3])), translate(SENTENCES[3], "fr", stream=True)]
    free, slow = ({"Authorization": f"Bearer {name}"} for name in ("free", "slow"))
    async with session(server.url) as plain, session(server.url) as client:
        client.headers.update(free)
        before = await quiet(client, calls)
        begun, measured = time.monotonic(), server.metrics()
        end = begun + JUMP_S * len(JUMPS)
        load = closed_loop(client, calls, 4, lambda: time.monotonic() < end, replies)
        asking = asyncio.create_task(load)
        for jump in JUMPS:
            clock.write_text(f"{jump}\n")
            stamp = await ask(client, post("stamp", "/v1/completions", prompt="a"))
            seen.append(json.loads(stamp.data)["created"] - time.time())
            limited += [await ask(plain, calls[0], slow) for _ in range(RATE)]
            await asyncio.sleep(JUMP_S)
        await asking
    elapsed = time.monotonic() - begun
    days = ", ".join(f"{seconds / 86400:+.2f}" for seconds in seen)
    check("the server's clock jumps (days beside the true time)", days,
          max(seen) > 2 * 86400 and min(seen) < -29 * 86400)  # fmt: skip
    wrong = [r.call.name for r in replies if not r.expected or r.answer != before[r.call.name]]
    check("no request meets a deadline, answers are those of before",
          f"{len(replies)} answered, {len(wrong)} wrong", bool(replies) and not wrong)  # fmt: skip
    statuses = Counter(reply.status for reply in limited)
    most = RATE + int(elapsed * RATE / 60) + 1
    check(f"a key of {RATE} a minute gets at most {most} through in {elapsed:.0f} s",
          f"{statuses[200]} of {len(limited)}", RATE <= statuses[200] <= most
          and set(statuses) == {200, 429})  # fmt: skip
    times(measured, server.metrics(), elapsed, check)
    dates = set(re.findall(r"^(\d{4}-\d\d-\d\d) ", server.errors, re.M))
    check("log lines tell the clock's time", f"{len(dates)} days", len(dates) > 1)


def times(
    before: dict[str, float], after: dict[str, float], elapsed: float, check: Checks
) -> None:
    """What was measured of sequences lies within the time that has passed."""
    told, held = [], True
    for name in ("queue_time", "time_to_first_token", "inter_token_latency"):
        count, total = (
            after[f"{name}_seconds_{part}"] - before.get(f"{name}_seconds_{part}", 0.0)
            for part in ("count", "sum")
        )
        told.append(f"{name} {1000 * total / max(count, 1):.1f} ms")
        held = held and count > 0 and 0 <= total <= count * elapsed
    check("mean times in the metrics are positive and under the run's", ", ".join(told), held)
