"""The scheduler over a fake decoder: same answers at any load, and no failure leaks a slot."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from app.engine.request import (
    Beam,
    Event,
    Failed,
    Finished,
    Hypothesis,
    Request,
    Sampling,
    Token,
)
from app.engine.scheduler import Scheduler
from app.engine.sequence import Sequence, StepReport
from app.errors import DeadlineExceeded, EngineFailed
from tests.fakes import FakeDecoder, RunFailed

END = frozenset({0})


def ignore(event: Event) -> None:
    pass


def request(
    prompt: list[int], max_tokens: int = 20, sampling: Sampling | None = None,
    deadline: float | None = None,
) -> Request:
    return Request(tuple(prompt), max_tokens, ignore, END, sampling or Sampling(), deadline)


def mixed(count: int, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    options = [
        Sampling(),
        Sampling(0.8, seed=11),
        Sampling(1.2, top_k=10, seed=12),
        Sampling(1.0, top_p=0.8, repetition_penalty=1.2, seed=13),
        Sampling(repetition_penalty=1.4),
        Sampling(0.9, min_p=0.05, presence_penalty=0.5, frequency_penalty=0.2, min_tokens=6),
        Sampling(logit_bias=((0, -3.0), (7, 2.0)), no_repeat_ngram=2, logprobs=3),
        Beam(3, best=3),
        Beam(2, 0.6, early_stopping=False),
    ]
    requests = []
    for i in range(count):
        prompt = [rng.randrange(1, 96) for _ in range(rng.randrange(1, 40))]
        one, option = request(prompt, rng.randrange(1, 40)), options[i % len(options)]
        if rng.random() < 0.2:
            one = replace(one, forced=(5, 6, 7), max_tokens=one.max_tokens + 3)
        if isinstance(option, Beam):
            requests.append(replace(one, beam=option, sampling=Sampling(no_repeat_ngram=3)))
        else:
            requests.append(replace(one, sampling=option))
    return requests


class Driver:
    """Runs a scheduler step by step, checks it after each, and keeps every sequence's events."""

    def __init__(
        self, decoder: FakeDecoder, max_prefill_tokens: int = 128, chunk: int = 16
    ) -> None:
        self.now = 0.0
        self.decoder = decoder
        self.scheduler = Scheduler(
            decoder, max_prefill_tokens=max_prefill_tokens, chunk=chunk, clock=lambda: self.now
        )
        self.events: dict[Sequence, list[Event]] = {}
        self.reports: list[StepReport] = []

    def add(self, one: Request) -> Sequence:
        sequence = self.scheduler.add(one)
        self.events[sequence] = []
        return sequence

    def step(self) -> StepReport:
        self.now += 1.0
        report = self.scheduler.step()
        self.scheduler.check()
        for sequence, event in report.events:
            told = self.events[sequence]
            assert not told or isinstance(told[-1], Token), "an event after the end"
            told.append(event)
        self.reports.append(report)
        return report

    def run(self, limit: int = 5000) -> None:
        while not self.scheduler.idle:
            self.step()
            assert len(self.reports) < limit, "the scheduler does not come to an end"
        assert self.scheduler.active == self.scheduler.waiting == 0
        for told in self.events.values():
            assert isinstance(told[-1], Finished | Failed)

    def answers(self) -> list[tuple[list[Token], str]]:
        return [answer(told) for told in self.events.values()]

    def hypotheses(self) -> list[tuple[Hypothesis, ...]]:
        ends = [told[-1] for told in self.events.values()]
        return [end.hypotheses if isinstance(end, Finished) else () for end in ends]


def answer(told: list[Event]) -> tuple[list[Token], str]:
    tokens = [event for event in told if isinstance(event, Token)]
    end = told[-1]
    if isinstance(end, Finished):
        return tokens, end.reason
    assert isinstance(end, Failed)
    return tokens, end.error.code


def run_all(
    requests: list[Request],
    hook: Callable[[str, int], None] | None = None,
    poison: Callable[[list[int]], bool] | None = None,
    slots: int = 8,
) -> Driver:
    driver = Driver(FakeDecoder(slots=slots, hook=hook, poison=poison))
    for one in requests:
        driver.add(one)
    driver.run()
    return driver


def one_by_one(requests: list[Request]) -> list[tuple[list[Token], str]]:
    return [run_all([one], slots=one.slots).answers()[0] for one in requests]


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


def test_prefill_runs_are_bounded_and_hold_similar_lengths() -> None:
    driver = Driver(FakeDecoder(slots=32), max_prefill_tokens=150, chunk=64)
    lengths: list[list[int]] = []
    original = driver.decoder.prefill

    def prefill(first: int, prompts: list[tuple[int, ...]]) -> object:
        lengths.append([len(prompt) for prompt in prompts])
        return original(first, prompts)

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


def test_a_chunk_that_fails_twice_fails_its_request_alone() -> None:
    requests = mixed(20, seed=5)
    requests[6] = request([95] * 40)
    driver = run_all(requests, poison=lambda history: history[:20] == [95] * 20)
    expected = one_by_one(requests)
    expected[6] = ([], "engine_failed")
    assert driver.answers() == expected
    phases = [phase for r in driver.reports for phase, _ in r.failures]
    assert phases[:2] == ["chunk", "chunk"] or "decode" in phases


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


def test_a_short_job_does_not_wait_for_a_long_one() -> None:
    driver = Driver(FakeDecoder(slots=2))
    for _ in range(100):
        one = driver.scheduler.enqueue(Sequence(request([9] * 4, 5), 64, 0.0, "big"))
        driver.events[one] = []
    driver.step()
    small = driver.add(request([8] * 4, 2))
    steps = 0
    while not any(isinstance(e, Finished) for e in driver.events[small]):
        driver.step()
        steps += 1
    assert steps < 15
    assert driver.scheduler.waiting > 80


def bulk(driver: Driver, count: int, slots: int = 1) -> list[Sequence]:
    rng = random.Random(9)
    capacity = driver.decoder.capacity
    added = []
    for _ in range(count):
        prompt = [rng.randrange(1, 96) for _ in range(rng.randrange(4, 20))]
        one = request(prompt, rng.randrange(20, 40))
        if slots > 1:
            one = replace(one, beam=Beam(slots))
        added.append(Sequence(one, capacity, driver.now, "bulk", batch=True))
        driver.events[driver.scheduler.enqueue(added[-1])] = []
    return added


@pytest.mark.parametrize(("slots", "beam"), [(8, 1), (32, 1), (32, 4)])
def test_the_first_token_comes_within_three_steps_while_a_thousand_strings_run(
    slots: int, beam: int
) -> None:
    """Idle it takes one. A batch sequence that gave way and started again is as any other."""
    driver = Driver(FakeDecoder(slots=slots))
    jobs = bulk(driver, 1000, beam)
    rng = random.Random(4)
    asked: list[Sequence] = []
    waited: list[int] = []
    while len(driver.reports) < 250:
        for _ in range(rng.randrange(2, 12)):
            driver.step()
        asked.append(driver.add(request([rng.randrange(1, 96) for _ in range(9)], 6)))
        steps = 0
        while asked[-1].first_at is None:
            driver.step()
            steps += 1
        waited.append(steps)
    assert len(waited) > 20 and max(waited) <= 3
    preempted = sum(report.preempted for report in driver.reports)
    assert 0 < preempted <= len(asked)
    known = [one for one in jobs if one.admitted_at is not None]
    for one in set(jobs) - set(known):
        driver.scheduler.cancel(one)
    driver.run()
    some = [one for one in known if one.gave_way] + known[:10] + asked[:10]
    assert [answer(driver.events[one]) for one in some] == one_by_one([s.request for s in some])
    assert all(one.attempts <= 1 for one in driver.events)


def test_the_interactive_do_not_starve_the_batch() -> None:
    """As many as there is room for, all the time: every batch sequence comes to its end."""
    driver = Driver(FakeDecoder(slots=4))
    jobs = bulk(driver, 20)
    while not all(one.ended for one in jobs):
        while driver.scheduler.waiting < 30:
            driver.add(request([7, 8, 9], 30))
        driver.step()
        assert len(driver.reports) < 1500
    tokens = [len(driver.events[one]) for one in jobs]
    others = sum(map(len, driver.events.values())) - sum(tokens)
    assert 0.15 < sum(tokens) / others < 0.6, "about one token for three"


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


def fail_at(*calls: int) -> Callable[[str, int], None]:
    def hook(phase: str, call: int) -> None:
        if call in calls:
            raise RunFailed(f"{phase} call {call}")

    return hook


def test_one_failure_at_any_call_changes_no_answer() -> None:
    requests = mixed(12, seed=3)
    undisturbed = run_all(requests, slots=4)
    expected = undisturbed.answers()
    calls = undisturbed.decoder.calls
    assert {phase for phase, _ in calls} == {"prefill", "chunk", "decode", "move"}
    for call in range(1, len(calls) + 1):
        driver = run_all(requests, hook=fail_at(call), slots=4)
        assert driver.answers() == expected, f"a failure of call {call}, {calls[call - 1]}"
        assert sum(len(report.failures) for report in driver.reports) == 1
        if calls[call - 1][0] == "decode":
            assert len(driver.decoder.calls) == len(calls) + 1, "the run was only repeated"


def test_a_row_blamed_once_starts_again_before_those_that_wait() -> None:
    requests = [Request((i + 1, 40), 15, ignore, frozenset()) for i in range(9)]
    driver = run_all(requests, hook=fail_at(4, 5))  # a decode run of 8 rows, and its repetition
    assert driver.decoder.calls[3:9] == [("decode", n) for n in (8, 8, 4, 6, 7, 7)]
    assert driver.answers() == one_by_one(requests)
    assert [len(report.failures) for report in driver.reports if report.failures] == [2]
    ended = [s for r in driver.reports for s, event in r.events if isinstance(event, Finished)]
    blamed, waiting = list(driver.events)[7:]
    assert ended.index(blamed) < ended.index(waiting)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_random_failures_leave_only_true_answers(share: float) -> None:
    requests = mixed(24, seed=4)
    expected = one_by_one(requests)
    for seed in range(15):
        rng = random.Random(seed)

        def hook(phase: str, call: int, rng: random.Random = rng) -> None:
            if rng.random() < share:
                raise RunFailed

        for got, wanted in zip(run_all(requests, hook=hook).answers(), expected, strict=True):
            if got[1] == "engine_failed":
                assert got[0] == wanted[0][: len(got[0])], "told tokens are never taken back"
            else:
                assert got == wanted


def test_a_poisoned_prompt_fails_alone() -> None:
    requests = mixed(20, seed=5)
    requests[6] = request([95, 95, 3, 4])
    driver = run_all(requests, poison=lambda history: history[:2] == [95, 95])
    expected = one_by_one(requests)
    expected[6] = ([], "engine_failed")
    assert driver.answers() == expected
    error = driver.events[list(driver.events)[6]][-1]
    assert isinstance(error, Failed) and isinstance(error.error, EngineFailed)
    assert "poison" not in error.error.detail, "internals do not leak"


@pytest.mark.parametrize("guilty", [[0], [3], [7], [1, 4, 5]])
def test_a_row_that_breaks_decoding_fails_alone(guilty: list[int]) -> None:
    requests = [
        Request((i + 1, 40 + i), 15, ignore, frozenset(), Sampling(0.9, seed=i)) for i in range(8)
    ]
    expected = one_by_one(requests)

    def poison(history: list[int]) -> bool:
        return len(history) >= 9 and history[0] - 1 in guilty

    driver = run_all(requests, poison=poison)
    for i in guilty:
        expected[i] = (expected[i][0][:7], "engine_failed")  # 2 of prompt, the 7th is not read
    assert driver.answers() == expected


def test_logits_that_are_not_finite_fail_alone() -> None:
    requests = mixed(10, seed=6)
    expected = one_by_one(requests)
    decoder = FakeDecoder()
    driver = Driver(decoder, chunk=64)
    original = decoder.prefill

    def prefill(first: int, prompts: list[tuple[int, ...]]) -> object:
        logits = original(first, prompts)
        for row, prompt in enumerate(prompts):
            if prompt == requests[2].prompt:
                logits[row, 5] = float("nan")
        return logits

    decoder.prefill = prefill  # type: ignore[assignment, method-assign]
    for one in requests:
        driver.add(one)
    driver.run()
    expected[2] = ([], "engine_failed")
    assert driver.answers() == expected


def test_a_dead_device_fails_everything_and_leaks_nothing() -> None:
    def hook(phase: str, call: int) -> None:
        if call > 20:
            raise RunFailed

    driver = run_all([request([i + 1] * 5, 50) for i in range(30)], hook=hook)
    assert {reason for _, reason in driver.answers()} <= {"engine_failed", "stop"}
    assert sum(len(report.failures) for report in driver.reports) < 300


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


def test_a_hypothesis_that_breaks_decoding_fails_its_search_alone() -> None:
    requests = mixed(18, seed=8)
    victim = next(i for i, one in enumerate(requests) if one.beam and one.max_tokens > 5)
    prompt = [*requests[victim].prompt, *requests[victim].forced]

    def poison(history: list[int]) -> bool:
        return len(history) == len(prompt) + 3 and history[: len(prompt)] == prompt

    expected = one_by_one(requests)
    expected[victim] = ([], "engine_failed")
    assert run_all(requests, poison=poison).answers() == expected


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
