"""The load generator: Poisson arrivals, the search for the highest rate, what is late counts."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp")
from aiohttp import web

from benchmarks.client import Answer, Load, arrivals, closed_loop, open_loop, summary
from benchmarks.load import STEP, highest, table
from benchmarks.texts import WORDS, sentences


def test_arrivals_are_a_poisson_process_of_the_seed() -> None:
    times = np.array(arrivals(50, 200, seed=3))
    gaps = np.diff(times, prepend=0)
    assert (gaps > 0).all() and times[-1] < 200
    assert abs(len(times) - 10_000) < 4 * math.sqrt(10_000)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # an exponential's
    assert times.tolist() == arrivals(50, 200, seed=3) != arrivals(50, 200, seed=4)


def test_sentences_have_lengths_as_in_traffic(tmp_path: Path) -> None:
    made = sentences(2000, seed=1)
    words = [len(text.split()) for text in made]
    assert min(words) >= 2 and max(words) <= WORDS[1] + 8
    assert 10 <= np.median(words) <= 15 and np.percentile(words, 95) > 1.7 * np.median(words)
    assert made == sentences(2000, seed=1) and len(set(made)) > 1000
    file = tmp_path / "lines"
    file.write_text("one\n\ntwo\n", encoding="utf-8")
    assert set(sentences(20, 0, file)) == {"one", "two"}


def test_the_search_ends_within_a_step_of_the_limit() -> None:
    limit = 73.0

    def ask(rate: float) -> dict[str, float]:
        return {"rate": rate, "done_p95": 0.4 if rate <= limit else 2.0}

    for start in (20.0, 73.0, 300.0):
        found, trials = highest(ask, start)
        assert limit / STEP <= found <= limit and len(trials) < 20
    assert highest(lambda rate: {"rate": rate, "done_p95": 9.0}, 50.0)[0] == 0.0


def test_summary_counts_failures_as_never_ending() -> None:
    good = [Answer(0, 0.1, 0.2, 10, True)] * 9
    found = summary([*good, Answer(0, 0.0, 0.0, 0, False)], 2.0)
    assert found["failed"] == 1 and found["requests_per_s"] == 4.5 and found["tokens_per_s"] == 45
    assert found["done_p50"] == 0.2 and found["done_p95"] == math.inf and found["first_p50"] == 0.1


def test_both_loops_against_a_server() -> None:
    """Four requests at once to one that answers each after 50 ms, one at a time."""

    async def run() -> tuple[list[Answer], list[Answer], int]:
        lock, most, now = asyncio.Lock(), 0, 0

        async def answer(request: web.Request) -> web.Response:
            nonlocal most, now
            now += 1
            most = max(most, now)
            async with lock:
                await asyncio.sleep(0.05)
            now -= 1
            status = 500 if (await request.json())["text"] == "bad" else 200
            return web.json_response({"usage": {"completion_tokens": 7}}, status=status)

        app = web.Application()
        app.router.add_post("/v1/translate", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = runner.addresses[0]
        load, texts = Load("translate"), ["a", "bad", "c", "d"]
        base = f"http://{url[0]}:{url[1]}"
        opened = await open_loop(base, load, texts, [0.0] * 4)
        assert most == 4
        most = 0
        closed, seconds = await closed_loop(base, load, texts, 2)
        assert seconds > 0.19
        await runner.cleanup()
        return opened, closed, most

    opened, closed, most = asyncio.run(run())
    assert [a.ok for a in opened] == [True, False, True, True] and opened[0].tokens == 7
    assert max(a.done for a in opened) > 0.19  # the last one waited for the others
    assert most == 2 and len(closed) == 4 and sum(a.ok for a in closed) == 3


def test_a_stream_is_ok_when_it_comes_to_its_end() -> None:
    event, end = b'data: {"index":0,"text":"a"}\n\n', b"data: [DONE]\n\n"
    error = b'data: {"error":1}\n\n'
    answers = {"good": [event, end], "none": [end], "cut": [event], "error": [error, end]}

    async def run() -> list[Answer]:
        async def answer(request: web.Request) -> web.StreamResponse:
            asked = await request.json()
            assert asked["max_tokens"] == asked["min_tokens"] == 9  # a fixed length
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for part in answers[asked["prompt"]]:
                await response.write(part)
            return response

        app = web.Application()
        app.router.add_post("/v1/generate", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        load = Load("generate", tokens=9)
        found = await open_loop(f"http://{host}:{port}", load, list(answers), [0.0] * 4)
        await runner.cleanup()
        return found

    found = asyncio.run(run())
    assert [a.ok for a in found] == [True, False, False, False]
    assert [a.tokens for a in found] == [9, 0, 0, 0]


def test_the_table_tells_the_ratio() -> None:
    keys = [f"{what}_p{q}" for what in ("first", "done") for q in (50, 95, 99)]
    one = dict.fromkeys([*keys, "requests_per_s", "tokens_per_s", "failed"], 0.5)
    results = {"ours": {"highest_rate": 30.0, "trials": [{"rate": 30.0, **one}]},
               "peer": {"highest_rate": 10.0, "trials": [{"rate": 10.0, **one}]}}  # fmt: skip
    assert "our best is 3.00 times that" in table(results)
