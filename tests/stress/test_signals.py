"""SIGTERM and SIGHUP while requests run."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from app.bundle import Bundle
from app.settings import DEFAULT_BUNDLE
from tests.stress.bundles import altered_model, copy, link
from tests.stress.processes import Process
from tests.stress.report import Checks, Report
from tests.stress.traffic import (
    SENTENCES,
    Reply,
    closed_loop,
    post,
    quiet,
    session,
    translate,
    work,
)  # fmt: skip

pytestmark = pytest.mark.stress
CALLERS, LOAD_S, DRAIN_S, EARLY_S = 16, 8.0, 120, 1.0


def test_the_end_under_load(start: Callable[..., Process], report: Report) -> None:
    server = start(drain_s=DRAIN_S, max_items=8, slots=8)  # of a document 8 paragraphs at a time
    with report.test("SIGTERM") as check:
        asyncio.run(end(server, check))
        status = server.ended(10)
        check("the process has ended, no error in its log", f"status {status}",
              status in (0, -signal.SIGTERM) and not trouble(server))  # fmt: skip


def trouble(server: Process) -> bool:
    return "Traceback" in server.errors or " ERROR " in server.errors


async def end(server: Process, check: Checks) -> None:
    replies: list[Reply] = []
    gone = asyncio.Event()
    async with session(server.url, fresh=True) as client:
        before = await quiet(client, work())
        load = closed_loop(client, work(), CALLERS, lambda: not gone.is_set(), replies)
        asking = asyncio.create_task(load)
        await asyncio.sleep(LOAD_S)
        server.send(signal.SIGTERM)
        told = time.monotonic()
        await asyncio.to_thread(server.ended, DRAIN_S + 10)
        drained = time.monotonic() - told
        gone.set()
        await asking
    accepted = [r for r in replies if r.begun < told - EARLY_S]
    open_then = sum(r.begun + r.seconds > told for r in accepted)
    cut = [(r.call.name, r.status) for r in accepted if not r.expected]
    wrong = sum(r.answer != before[r.call.name] for r in replies if r.expected)
    check(
        f"what was asked {EARLY_S:g} s before the signal or earlier is answered whole and right",
        f"{len(accepted)}, of them {open_then} open at the signal: {len(cut)} not; {wrong} wrong "
        f"{cut[:3] or ''}",
        not cut and not wrong and open_then > 0,
    )
    later = [r for r in replies if r.begun >= told - EARLY_S]
    kinds = Counter(
        "answered" if r.expected else "503" if r.busy else "refused" if not r.status else "broken"
        for r in later
    )
    check(
        "what came later is answered, or gets 503 with Retry-After or no connection",
        ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        not kinds["broken"] and kinds["503"] > 0,
    )
    check(f"ends within drain_s = {DRAIN_S} s", f"{drained:.1f} s", drained < DRAIN_S)


def test_reloads_under_load(
    start: Callable[..., Process], report: Report, tmp_path: Path, int8_bundle: Bundle
) -> None:
    path = tmp_path / "bundle"
    folders = {
        "old": copy(DEFAULT_BUNDLE, tmp_path / "old", name="old"),
        "new": copy(int8_bundle.path, tmp_path / "new", name="new"),
        "bad": copy(DEFAULT_BUNDLE, tmp_path / "bad", name="bad"),
    }
    altered_model(folders["bad"])
    link(path, folders["old"])
    server = start(bundle=path, slots=8)
    with report.test("SIGHUP") as check:
        asyncio.run(reloads(server, path, folders, check))


async def reloads(
    server: Process, path: Path, folders: dict[str, Path], check: Checks
) -> None:
    calls = [translate(list(SENTENCES[:2])), translate(SENTENCES[0], "fr", stream=True)]
    calls += [post(f"seed {i}", "/v1/generate", prompt="The", max_tokens=16, seed=i)
              for i in range(4)]  # fmt: skip
    replies: list[Reply] = []
    results = []
    async with session(server.url) as client:
        before = await quiet(client, calls)
        done = asyncio.Event()
        load = closed_loop(client, calls, CALLERS, lambda: not done.is_set(), replies)
        asking = asyncio.create_task(load)
        for name in ("new", "bad", "old", "new", "old"):
            await asyncio.sleep(LOAD_S / 4)
            link(path, folders[name])
            result = "failed" if name == "bad" else "replaced"
            key = f'reloads_total{{result="{result}"}}'
            count = server.metric(key)
            server.send(signal.SIGHUP)
            took = await asyncio.to_thread(
                server.wait, lambda key=key, count=count: server.metric(key) > count, 60
            )
            results.append((name, took))
        await asyncio.sleep(LOAD_S / 4)
        done.set()
        await asking
    told = ", ".join(f"{name} {took:.1f} s" for name, took in results)
    check("five reloads, the second of a bad bundle", told, max(t for _, t in results) < 60)
    failed = [(r.call.name, r.status) for r in replies if not r.expected]
    check("no request fails", f"{len(failed)} of {len(replies)} {failed[:3] or ''}", not failed)
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for reply in replies:
        answers[reply.call.name, model_of(reply)].add(reply.answer)
    models = Counter(map(model_of, replies))
    alone = all(len(found) == 1 for found in answers.values())
    same = all(answers[name, "old"] == {answer} for name, answer in before.items())
    other = all(answers[name, "old"] != answers[name, "new"] for name in before)
    check(
        "each answer is that of the one bundle that it names",
        ", ".join(f"{count} by {name}" for name, count in sorted(models.items())),
        alone and same and other and set(models) == {"old", "new"},
    )


def model_of(reply: Reply) -> str:
    """The bundle that an answer or the end of a stream names."""
    return next((name for name in ("old", "new") if f'"model":"{name}"' in reply.text), "none")
