"""A thousand clients that go away: in a stream, in their own body, before the answer."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from tests.stress.processes import Process
from tests.stress.report import Checks, Report
from tests.stress.traffic import LONG, SENTENCES, quiet, session, work

pytestmark = pytest.mark.stress
CLIENTS, WARM, TOGETHER = 1000, 300, 40
MEMORY_MB, IDLE_S = 16.0, 10.0
Body = dict[str, Any]
WAYS: dict[str, tuple[str, Body]] = {
    "generate stream": ("/v1/generate", {"prompt": "Once", "max_tokens": 200, "stream": True}),
    "translate stream": ("/v1/translate", {"text": LONG, "target": "de", "stream": True}),
    "body": ("/v1/translate", {"text": LONG, "target": "fr"}),
    "answer": ("/v1/translate", {"text": list(SENTENCES) * 3, "target": "de"}),
}


async def vanish(port: int, way: str, rng: random.Random) -> None:
    """One client, which closes its connection, or breaks it off."""
    path, body = WAYS[way]
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode())
        writer.write(content[: len(content) // 2] if way == "body" else content)
        await writer.drain()
        if "stream" in way:
            await reader.readuntil(b"data: ")
        await asyncio.sleep(rng.uniform(0.0, 0.2))
    finally:
        if rng.random() < 0.5:
            writer.transport.abort()
        writer.close()


async def crowd(port: int, count: int, seed: int) -> None:
    room, rng = asyncio.Semaphore(TOGETHER), random.Random(seed)

    async def one(way: str) -> None:
        async with room:
            await vanish(port, way, rng)

    ways = [way for _ in range(count // len(WAYS)) for way in WAYS]
    rng.shuffle(ways)
    await asyncio.gather(*map(one, ways))


def test_clients_that_vanish(start: Callable[..., Process], report: Report) -> None:
    server = start()
    with report.test("vanishing clients") as check:
        asyncio.run(vanishing(server, check))


async def vanishing(server: Process, check: Checks) -> None:
    async with session(server.url) as client:
        before = await quiet(client, work())
    await crowd(server.port, WARM, 1)
    assert server.wait(server.idle, IDLE_S) < IDLE_S
    memory, files, metrics = server.resident(), server.descriptors(), server.metrics()
    await crowd(server.port, CLIENTS, 2)
    idle = server.wait(server.idle, IDLE_S)
    check(f"queue empty, no slot used, nothing in flight within {IDLE_S:g} s",
          f"after {idle:.2f} s", idle < IDLE_S)  # fmt: skip
    new = {k: v - metrics.get(k, 0) for k, v in server.metrics().items()}
    gone = sum(v for k, v in new.items() if k.startswith("http_requests_total") and '"499"' in k)
    cancelled = new['sequences_total{finish_reason="cancelled"}']
    check("most are counted as gone (499), their sequences cancelled",
          f"{gone:.0f} of {CLIENTS}; {cancelled:.0f} sequences",
          gone >= 0.8 * CLIENTS and cancelled > 0)  # fmt: skip
    grown = server.resident() - memory
    check(f"resident memory within {MEMORY_MB:g} MB of that after the first {WARM}",
          f"{grown:+.1f} MB of {memory:.0f}", grown <= MEMORY_MB)  # fmt: skip
    server.wait(lambda: server.descriptors() <= files, IDLE_S)
    check("file descriptors as before", f"{server.descriptors()}, before {files}",
          server.descriptors() <= files)  # fmt: skip
    async with session(server.url) as client:
        after = await quiet(client, work())
    failed = "Traceback" in server.errors or " ERROR " in server.errors
    check("same answers after it, no error in the log",
          "same" if after == before else "others", after == before and not failed)  # fmt: skip
