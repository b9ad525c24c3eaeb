"""The waiting line against a list of queues that take turns."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from app.engine.line import Line


@dataclass(frozen=True)
class One:
    job: str
    number: int


def test_jobs_take_turns() -> None:
    line: Line[One] = Line()
    for job, count in (("big", 4), ("small", 1), ("middle", 2)):
        for number in range(count):
            line.add(One(job, number))
    order = [f"{m.job}{m.number}" for m in line]
    assert order == ["big0", "small0", "middle0", "big1", "middle1", "big2", "big3"]
    line.serve(One("big", 0))  # its next one now stands behind the others' first
    assert [m.job for m in line.next(3)] == ["small", "middle", "big"]
    line.return_first(One("big", 0))
    assert line.next(1) == [One("big", 0)]
    line.remove(One("small", 0))
    assert One("small", 0) not in line and len(line) == 6
    with pytest.raises(KeyError):
        line.remove(One("small", 0))


def test_serving_one_at_a_time_is_fair_and_loses_nobody() -> None:
    rng = random.Random(3)
    line: Line[One] = Line()
    members = [One(rng.choice("abcde"), i) for i in range(200)]
    for member in members:
        line.add(member)
    served = []
    while len(line):
        (member,) = line.next(1)
        line.serve(member)
        served.append(member)
    assert sorted(served, key=lambda m: m.number) == members
    for job in "abcde":
        mine = [m.number for m in served if m.job == job]
        assert mine == sorted(mine)
    assert {m.job for m in served[:5]} == set("abcde")
