"""How the scheduler reads prompts: alike ones together, long ones in chunks, none passed over."""

from __future__ import annotations

import pytest

from app.engine.request import Request
from app.engine.sequence import Sequence
from tests.app.engine.driver import Driver, mixed, one_by_one, request
from tests.fakes import FakeDecoder, ignore


def test_prefill_runs_are_bounded_and_hold_similar_lengths() -> None:
    driver = Driver(FakeDecoder(slots=32), max_prefill_tokens=150, chunk=64)
    lengths: list[list[int]] = []
    original = driver.decoder.prefill

    def prefill(first: int, prompts: list[tuple[int, ...]], start: int) -> object:
        lengths.append([len(prompt) for prompt in prompts])
        return original(first, prompts, start)

    driver.decoder.prefill = prefill  # type: ignore[assignment, method-assign]
    for size in (40, 8, 39, 8, 8, 41, 8, 60, 9, 40):
        driver.add(Request((7,) * size, 5, ignore, frozenset()))
    driver.run()
    # Each run is the oldest and those near to it, a step each.
    assert lengths == [[40, 40, 39], [8, 8, 8, 8, 9], [41], [60]]


def test_a_prompt_over_the_prefill_budget_runs_alone() -> None:
    driver = Driver(FakeDecoder(slots=4), max_prefill_tokens=10, chunk=64)
    for size in (5, 30, 5):
        driver.add(request([9] * size, 3))
    driver.run()
    assert [report.prefill_runs for report in driver.reports if report.prefill_runs][1] == [30]


def test_the_oldest_is_never_passed_over() -> None:
    driver = Driver(FakeDecoder(slots=2), chunk=64)
    odd = driver.add(request([9] * 60, 3))
    for _ in range(30):
        driver.add(request([9] * 4, 3))
    driver.step()
    assert driver.events[odd], "an odd length waits for nobody"


def test_decoding_waits_for_so_many_prompt_tokens() -> None:
    """Prefill steps of 100 tokens: three of them pass 256, then those that run go on."""
    driver = Driver(FakeDecoder(slots=64), max_prefill_tokens=100, chunk=64)
    for _ in range(30):
        driver.add(Request((7,) * 20, 30, ignore, frozenset()))
    kinds = [bool(driver.step().decode_rows) for _ in range(8)]
    assert kinds == [False, False, False, True] * 2


def test_long_prompts_are_read_in_chunks_and_others_go_on() -> None:
    driver = Driver(FakeDecoder(slots=4), chunk=16)
    short = driver.add(Request((7, 8), 30, ignore, frozenset()))
    driver.step()
    driver.scheduler._read = 10**6  # no patience is left: a decode step comes next
    long = [driver.add(request([9, i] * 30, 3)) for i in (1, 2)]  # 60 tokens
    third = driver.add(request([5] * 4, 3))
    phases = []
    while not all(driver.events[one] for one in (*long, third)):
        driver.scheduler._read += 256  # after each run
        driver.step()
        phases.append(driver.decoder.calls[-1])
    assert [rows for phase, rows in phases if phase == "prefill"] == [2, 1]
    assert [phase for phase, _ in phases].count("chunk") == 6
    assert len(driver.events[short]) > 7, "a decode step between any two"
    driver.run()
    requests = [one.request for one in driver.events]
    assert driver.answers() == one_by_one(requests)
    assert {run for r in driver.reports for run in r.prefill_runs} == {2, 4, 12, 16, 32}


def test_a_prompt_that_is_read_in_part_can_be_cancelled_and_give_way() -> None:
    driver = Driver(FakeDecoder(slots=1), chunk=16)
    one = request([9] * 60, 3)
    waiting = driver.scheduler.enqueue(Sequence(one, 64, 0.0, "bulk", batch=True))
    driver.events[waiting] = []
    driver.step()
    driver.step()
    assert waiting.read == 32
    first = driver.add(request([8] * 40, 3))
    driver.step()
    assert (first.read, waiting.rows) == (16, [])
    driver.scheduler.cancel(first)
    driver.run()
    assert [reason for _, reason in driver.answers()][1] == "cancelled"
    assert driver.answers()[0] == one_by_one([one])[0]


@pytest.mark.parametrize("chunk", [2, 10, 64])
def test_chunks_change_no_answer(chunk: int) -> None:
    requests = mixed(30, seed=9)
    expected = one_by_one(requests)
    driver = Driver(FakeDecoder(), chunk=chunk)
    for one in requests:
        driver.add(one)
    driver.run()
    assert driver.answers() == expected
