"""Who comes first: the interactive before a job of a thousand strings, and nobody starves."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from app.engine.request import Beam, Finished
from app.engine.sequence import Sequence
from tests.app.engine.driver import Driver, answer, one_by_one, request
from tests.fakes import FakeDecoder


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
