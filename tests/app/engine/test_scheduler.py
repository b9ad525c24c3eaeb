"""The scheduler over a fake decoder: the same answers at any load, one end each, no slot lost."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from app.engine.request import Beam, Failed, Finished, Request, Sampling
from app.engine.sequence import Sequence
from app.errors import DeadlineExceeded
from tests.app.engine.driver import Driver, answer, mixed, one_by_one, run_all
from tests.fakes import FakeDecoder, RunFailed, ignore


def test_together_equals_one_by_one() -> None:
    requests = mixed(64)
    expected = one_by_one(requests)
    hypotheses = [run_all([one], slots=one.slots).hypotheses()[0] for one in requests]
    for slots in (3, 16):
        driver = run_all(requests, slots=slots)
        assert driver.answers() == expected  # Token equality is ids and logprobs, bit by bit
        assert driver.hypotheses() == hypotheses
        rows = [report.decode_rows for report in driver.reports if report.decode_rows]
        assert sum(rows) / len(rows) > slots * 0.6
    assert {reason for _, reason in expected} == {"stop", "length"}


def test_max_tokens_and_capacity_bound_the_output() -> None:
    wordy = Request((5, 6), 7, ignore, frozenset())
    assert [len(tokens) for tokens, _ in run_all([wordy]).answers()] == [7]
    full = Request(tuple(range(1, 61)), 1000, ignore, frozenset())
    tokens, reason = run_all([full]).answers()[0]
    assert (len(tokens), reason) == (4, "length")  # capacity 64
    single = Request(tuple(range(1, 64)), 1000, ignore, frozenset())
    assert len(run_all([single]).answers()[0][0]) == 1


def test_end_ids_stop_and_are_not_told() -> None:
    free = run_all([Request((3, 4, 5), 10, ignore, frozenset())]).answers()[0][0]
    end = frozenset({free[4].id})
    first = next(i for i, token in enumerate(free) if token.id in end)
    stopped = run_all([Request((3, 4, 5), 10, ignore, end)]).answers()[0]
    assert stopped == (free[:first], "stop")


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(no_repeat_ngram=2, min_tokens=9, presence_penalty=1.0, logprobs=2)],
)
def test_what_is_forced_is_as_if_it_had_been_chosen(count: int, sampling: Sampling) -> None:
    """Given what it would say itself, a request goes on in the same way."""
    for i in range(1, 20):
        free = Request((i, 8), 12, ignore, frozenset({0, 1}), sampling)
        tokens, reason = run_all([free]).answers()[0]
        start = tuple(token.id for token in tokens[: min(count, len(tokens) - 1)])
        forced, end = run_all([replace(free, forced=start)]).answers()[0]
        assert [(t.id, t.logprob) for t in forced[: len(start)]] == [(t, 0.0) for t in start]
        assert (forced[len(start) :], end) == (tokens[len(start) :], reason)


def test_cancel_waiting_and_running() -> None:
    driver = Driver(FakeDecoder(slots=2))
    long = [driver.add(Request((7, i), 50, ignore, frozenset())) for i in range(1, 5)]
    driver.step()
    driver.scheduler.cancel(long[0])
    driver.scheduler.cancel(long[3])
    driver.scheduler.cancel(long[3])
    driver.run()
    answers = driver.answers()
    assert [reason for _, reason in answers] == ["cancelled", "length", "length", "cancelled"]
    assert [len(tokens) for tokens, _ in answers] == [1, 50, 50, 0]
    driver.scheduler.cancel(long[1])
    assert driver.scheduler.idle, "cancelling what has ended does nothing"


def test_deadlines_hold_for_waiting_and_running() -> None:
    driver = Driver(FakeDecoder(slots=1))
    driver.add(Request((7, 8), 50, ignore, frozenset(), deadline=5.0))
    driver.add(Request((7, 8), 50, ignore, frozenset(), deadline=3.0))
    driver.add(Request((7, 8), 50, ignore, frozenset(), deadline=500.0))
    driver.run()
    running, waiting, in_time = driver.answers()
    assert (len(running[0]), running[1]) == (4, "deadline_exceeded")
    assert waiting == ([], "deadline_exceeded")
    assert (len(in_time[0]), in_time[1]) == (50, "length")
    error = list(driver.events.values())[0][-1]
    assert isinstance(error, Failed) and isinstance(error.error, DeadlineExceeded)


def test_timing_and_figures() -> None:
    driver = Driver(FakeDecoder(slots=1))
    driver.add(Request((7, 8), 4, ignore, frozenset()))
    driver.add(Request((7, 8), 4, ignore, frozenset()))
    driver.run()
    first, second = (told[-1] for told in driver.events.values())
    assert isinstance(first, Finished) and isinstance(second, Finished)
    assert (first.timing.queue_s, first.timing.prefill_s, first.timing.decode_s) == (1.0, 0.0, 3.0)
    assert second.timing.queue_s == 5.0
    assert [r.queue_times for r in driver.reports if r.queue_times] == [[1.0], [5.0]]
    assert [r.first_token_times for r in driver.reports if r.first_token_times] == [[1.0], [5.0]]
    assert sum((r.token_intervals for r in driver.reports), []) == [1.0] * 6


def test_a_beam_waits_until_all_of_its_slots_are_free() -> None:
    driver = Driver(FakeDecoder(slots=4))
    first = driver.add(Request((7, 8), 6, ignore, frozenset()))
    wide = driver.add(Request((7, 8), 3, ignore, frozenset(), beam=Beam(4)))
    later = driver.add(Request((7, 9), 2, ignore, frozenset()))
    driver.step()
    assert (driver.scheduler.active, driver.scheduler.waiting) == (1, 2), "none passes it by"
    while driver.scheduler.waiting == 2:
        driver.step()
    assert driver.events[first] and not driver.events[later]
    assert driver.scheduler.active == 4
    driver.run()
    assert driver.answers() == one_by_one([first.request, wide.request, later.request])


def test_slots_are_reserved_before_they_are_used() -> None:
    """A prompt is one row; the others of a beam must not be given away."""
    driver = Driver(FakeDecoder(slots=6), max_prefill_tokens=4)
    requests = [Request((i, 8), 9, ignore, frozenset(), beam=Beam(3)) for i in range(1, 5)]
    for one in requests:
        driver.add(one)
    driver.add(Request((9, 9), 9, ignore, frozenset()))
    driver.step()
    assert (driver.scheduler.active, driver.scheduler.waiting) == (6, 3)
    driver.run()
    assert max(report.decode_rows for report in driver.reports) == 6


def test_cancelling_a_beam_frees_all_of_its_slots() -> None:
    driver = Driver(FakeDecoder(slots=8))
    beams = [
        driver.add(Request((7, i), 40, ignore, frozenset(), beam=Beam(3))) for i in range(1, 5)
    ]
    for _ in range(6):
        driver.step()
    driver.scheduler.cancel(beams[0])
    driver.scheduler.check()
    assert driver.scheduler.active == 3
    driver.run()
    expected = one_by_one([one.request for one in beams])
    assert driver.answers() == [([], "cancelled"), *expected[1:]]


@pytest.mark.parametrize("seed", range(6))
def test_fuzz(seed: int) -> None:
    """Arrivals, cancels, deadlines and failures in any order: one end each, true answers."""
    rng = random.Random(seed)
    trouble = 0.03 if seed % 2 else 0.0

    def hook(phase: str, call: int) -> None:
        if rng.random() < trouble:
            raise RunFailed

    driver = Driver(FakeDecoder(slots=rng.choice([3, 5, 8]), hook=hook))
    requests = mixed(120, seed)
    added: list[tuple[Sequence, Request]] = []
    for one in requests:
        deadline = driver.now + rng.randrange(1, 200) if rng.random() < 0.2 else None
        one = replace(one, deadline=deadline)
        added.append((driver.add(one), one))
        for _ in range(rng.randrange(0, 9)):
            driver.step()
            if rng.random() < 0.05:
                driver.scheduler.cancel(rng.choice(added)[0])
    driver.run()
    for (sequence, _), wanted in zip(added, one_by_one(requests), strict=True):
        got = answer(driver.events[sequence])
        if got[1] in ("stop", "length"):
            assert got == wanted
        else:
            assert got[0] == wanted[0][: len(got[0])]
    reasons = {answer(told)[1] for told in driver.events.values()}
    assert reasons >= {"stop", "length", "cancelled"}


def test_a_thousand_cancellations_leave_no_slot_in_use() -> None:
    rng = random.Random(0)
    driver = Driver(FakeDecoder(slots=8))
    live: list[Sequence] = []
    for one in mixed(2000):
        live.append(driver.add(one))
        for _ in range(rng.randrange(3)):
            driver.step()
        if rng.random() < 0.9:
            driver.scheduler.cancel(live.pop(rng.randrange(len(live))))
            driver.scheduler.check()
    while len(live) > 0:
        driver.scheduler.cancel(live.pop())
        driver.step()
    assert driver.scheduler.active == driver.scheduler.waiting == 0 and driver.scheduler.idle
    reasons = [answer(told)[1] for told in driver.events.values()]
    assert reasons.count("cancelled") > 1000 and reasons.count("length") > 100
