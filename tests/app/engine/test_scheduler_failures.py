"""Runs that fail at any call: whoever is not to blame gets the same answer, and no slot leaks."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.request import Failed, Finished, Request, Sampling
from app.engine.sampling import greedy
from app.errors import EngineFailed
from tests.app.engine.driver import Driver, mixed, one_by_one, request, run_all
from tests.fakes import FakeDecoder, RunFailed, ignore


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


def test_a_chunk_that_fails_twice_fails_its_request_alone() -> None:
    requests = mixed(20, seed=5)
    requests[6] = request([95] * 40)
    driver = run_all(requests, poison=lambda history: history[:20] == [95] * 20)
    expected = one_by_one(requests)
    expected[6] = ([], "engine_failed")
    assert driver.answers() == expected
    phases = [phase for r in driver.reports for phase, _ in r.failures]
    assert phases == ["chunk", "chunk"]


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


def test_a_hypothesis_that_breaks_decoding_fails_its_search_alone() -> None:
    requests = mixed(18, seed=8)
    victim = next(i for i, one in enumerate(requests) if one.beam and one.max_tokens > 5)
    prompt = [*requests[victim].prompt, *requests[victim].forced]

    def poison(history: list[int]) -> bool:
        return len(history) == len(prompt) + 3 and history[: len(prompt)] == prompt

    expected = one_by_one(requests)
    expected[victim] = ([], "engine_failed")
    assert run_all(requests, poison=poison).answers() == expected


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


class FarLogits:
    """Implements RemoteLogits; the fetch of a row may raise."""

    def __init__(self, rows: NDArray[np.float32], fetch: Callable[[], None]) -> None:
        self._rows, self._fetch = rows, fetch

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> NDArray[np.float32]:
        self._fetch()
        return self._rows[row]

    def best(self) -> tuple[NDArray[np.int64], list[float]]:
        return greedy(self._rows)


def test_a_row_that_cannot_be_fetched_starts_its_run_again() -> None:
    """Samplers, searches and log-probabilities ask for rows; any one fetch fails."""
    requests = mixed(11, seed=8)
    expected = one_by_one(requests)
    fetched, failing = 0, 0

    def fetch() -> None:
        nonlocal fetched
        fetched += 1
        if fetched == failing:
            raise RunFailed

    for failing in (0, 1, 2, 7, 30, 90, 150):
        fetched, decoder = 0, FakeDecoder(slots=4)
        for name in ("prefill", "decode"):
            run = getattr(decoder, name)
            far = partial(lambda run, *args: FarLogits(run(*args), fetch), run)
            setattr(decoder, name, far)
        driver = Driver(decoder)
        for one in requests:
            driver.add(one)
        driver.run()
        assert driver.answers() == expected and fetched > 150
        assert sum(len(report.failures) for report in driver.reports) == bool(failing)


def test_a_dead_device_fails_everything_and_leaks_nothing() -> None:
    def hook(phase: str, call: int) -> None:
        if call > 20:
            raise RunFailed

    driver = run_all([request([i + 1] * 5, 50) for i in range(30)], hook=hook)
    assert {reason for _, reason in driver.answers()} <= {"engine_failed", "stop"}
    assert sum(len(report.failures) for report in driver.reports) < 300
