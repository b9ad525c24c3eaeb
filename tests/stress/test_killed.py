"""A server that is killed under load and started again by who watches it; the client's retries."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from importlib.util import find_spec

import pytest

from gpt2_mt.client import AsyncClient, Translation
from gpt2_mt.retry import Retry
from tests.stress.processes import RESTARTED, Process
from tests.stress.report import Checks, Report
from tests.stress.traffic import SENTENCES

pytestmark = pytest.mark.stress
CALLERS, KILLS, APART_S = 8, 3, 4.0
PATIENT = Retry(attempts=1000, total_s=300, first_s=0.1, most_s=1)


def test_killed_under_load(start: Callable[..., Process], report: Report) -> None:
    server = start(under=RESTARTED)
    with report.test("kill -9 behind a supervisor") as check:
        asyncio.run(killed(server, check))
    where = "tests/app/commands/test_ray.py (`make test-ray`)"
    installed = find_spec("ray") is not None
    report.left_out("kill -9 of a replica on Ray", f"in {where}" if installed else
                    f"ray is not installed: {where}", "requests lost")  # fmt: skip


async def killed(server: Process, check: Checks) -> None:
    texts = list(SENTENCES)
    answers: list[list[Translation]] = []
    errors: list[BaseException] = []
    open_when_killed: list[int] = []
    waiting = 0
    done = asyncio.Event()

    async def caller(client: AsyncClient) -> None:
        nonlocal waiting
        while not done.is_set():
            waiting += 1
            try:
                answers.append(await client.translate(texts, "de", "en"))
            except Exception as error:
                errors.append(error)
            finally:
                waiting -= 1

    back = []
    async with AsyncClient(server.url, retry=PATIENT) as client:
        before = await client.translate(texts, "de", "en")
        callers = [asyncio.create_task(caller(client)) for _ in range(CALLERS)]
        for _ in range(KILLS):
            await asyncio.sleep(APART_S)
            pid = server.child()
            assert pid is not None
            open_when_killed.append(waiting)
            os.kill(pid, signal.SIGKILL)
            began, count = time.monotonic(), len(answers)
            while len(answers) <= count + CALLERS and time.monotonic() < began + 120:
                await asyncio.sleep(0.05)
            back.append(time.monotonic() - began)
        done.set()
        await asyncio.gather(*callers)
    wrong = sum(answer != before for answer in answers)
    check(f"{KILLS} kills under {CALLERS} callers lose no request: the client's retries",
          f"{len(answers)} answered, {len(errors)} lost; {open_when_killed} open when killed "
          f"{errors[:2] or ''}", not errors and all(open_when_killed))  # fmt: skip
    check("same answers before and after", f"{wrong} others", not wrong)
    check("each starts again and answers within a minute",
          ", ".join(f"{seconds:.1f} s" for seconds in back), max(back) < 60)  # fmt: skip
