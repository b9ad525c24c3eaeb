"""An HTTP client for load: arrivals that do not wait for answers, or so many callers that do.

Texts and a way to ask (`translate`, or `generate` streamed) flow in; an `Answer` for each request
flows out, its times measured from the moment that it should have been sent, so that a client that
falls behind does not flatter the server. One event loop, kept light: it shares the server's cores.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from benchmarks.tables import percentile

Posted = tuple[str, bytes]  # path, body
TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds from the planned arrival to the first event and to the end; tokens generated."""

    planned: float
    first: float
    done: float
    tokens: int
    ok: bool


@dataclass(frozen=True)
class Load:
    """What is asked: `translate` from English to `target`, or `generate` of just `tokens`."""

    kind: str
    target: str = "de"
    tokens: int = 64

    def request(self, text: str) -> Posted:
        body: dict[str, Any]
        if self.kind == "translate":
            path, body = "/v1/translate", {"text": text, "source": "en", "target": self.target}
        else:
            path = "/v1/generate"
            body = {"prompt": text, "max_tokens": self.tokens, "min_tokens": self.tokens,
                    "stream": True}  # fmt: skip
        return path, json.dumps(body).encode()


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process: gaps are exponential, so requests come in clusters."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds * 1.5) + 50))
    return [float(t) for t in times[times < seconds]]


async def ask(
    session: aiohttp.ClientSession, load: Load, request: Posted, planned: float, begin: float
) -> Answer:
    """One request; an error is an answer that is not ok, and so is a stream that breaks off."""
    path, body = request
    first, tokens, ok = 0.0, 0, False
    try:
        async with session.post(path, data=body) as response:
            if response.content_type == "text/event-stream":
                failed = False
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        first = first or time.perf_counter()
                        failed = failed or b'"error"' in line
                    ended = line.startswith(b"data: [DONE]")
                    ok = not failed and (ok or (ended and first > 0))
                tokens = load.tokens if ok else 0  # an event may tell several
            else:
                data = await response.read()
                ok = response.status == 200
                tokens = json.loads(data)["usage"]["completion_tokens"] if ok else 0
    except (aiohttp.ClientError, TimeoutError):
        ok = False
    done = time.perf_counter()
    return Answer(planned, (first or done) - begin - planned, done - begin - planned, tokens, ok)


def session(url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url, timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0),
        headers={"Content-Type": "application/json"},
    )  # fmt: skip


async def open_loop(
    url: str, load: Load, texts: Sequence[str], times: Sequence[float]
) -> list[Answer]:
    """Send each text at its time, whatever has become of those before."""
    requests = [load.request(text) for text in texts]
    async with session(url) as client:
        begin, tasks = time.perf_counter(), []
        for planned, request in zip(times, requests, strict=True):
            wait = begin + planned - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(ask(client, load, request, planned, begin)))
        return list(await asyncio.gather(*tasks))


async def closed_loop(
    url: str, load: Load, texts: Sequence[str], clients: int
) -> tuple[list[Answer], float]:
    """So many callers, each with its next text as soon as it is answered; and the seconds."""
    waiting = iter([load.request(text) for text in texts])
    answers: list[Answer] = []

    async def caller(client: aiohttp.ClientSession, begin: float) -> None:
        for request in waiting:
            planned = time.perf_counter() - begin
            answers.append(await ask(client, load, request, planned, begin))

    async with session(url) as client:
        begin = time.perf_counter()
        await asyncio.gather(*(caller(client, begin) for _ in range(clients)))
        return answers, time.perf_counter() - begin


def summary(answers: Sequence[Answer], seconds: float) -> dict[str, float]:
    """Throughput and percentiles; a failed request counts as one that never ended."""
    failed = sum(not answer.ok for answer in answers)
    never = float("inf")
    found: dict[str, float] = {
        "requests": len(answers), "failed": failed,
        "requests_per_s": (len(answers) - failed) / seconds,
        "tokens_per_s": sum(answer.tokens for answer in answers) / seconds,
    }  # fmt: skip
    for name, values in (
        ("first", [a.first if a.ok else never for a in answers]),
        ("done", [a.done if a.ok else never for a in answers]),
    ):
        found |= {f"{name}_p{q}": percentile(values, q) for q in (50, 95, 99)}
    return found
