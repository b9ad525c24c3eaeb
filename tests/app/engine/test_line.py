"""The waiting line: turns of equal tokens, classes, and nobody lost."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from itertools import islice

import pytest

from app.engine.line import Line


@dataclass(frozen=True)
class One:
    job: str
    number: int
    cost: int = 32  # a turn
    batch: bool = False


def serve(line: Line[One], count: int) -> list[One]:
    """One at a time."""
    served = []
    for _ in range(count):
        member = next(iter(line))
        line.serve(member)
        served.append(member)
    return served


def test_jobs_take_turns() -> None:
    line: Line[One] = Line()
    for job, count in (("big", 4), ("small", 1), ("middle", 2)):
        for number in range(count):
            line.add(One(job, number))
    order = [f"{m.job}{m.number}" for m in line]
    assert order == ["big0", "small0", "middle0", "big1", "middle1", "big2", "big3"]
    line.serve(One("big", 0))  # its next one now stands behind the others' first
    assert [m.job for m in islice(line, 3)] == ["small", "middle", "big"]
    line.return_first(One("big", 0))
    assert next(iter(line)) == One("big", 0)
    line.remove(One("small", 0))
    assert One("small", 0) not in line and len(line) == 6
    with pytest.raises(KeyError):
        line.remove(One("small", 0))


@pytest.mark.parametrize("most", [1, 32, 200])
def test_serving_is_as_foretold_and_loses_nobody(most: int) -> None:
    rng = random.Random(3)
    line: Line[One] = Line()
    members = [
        One(job := rng.choice("abcde"), i, rng.randint(1, most), batch=job < "c")
        for i in range(300)
    ]
    for member in members:
        line.add(member)
    foretold = [m for m in line if not m.batch]
    served = serve(line, 300)
    assert not len(line) and sorted(served, key=lambda m: m.number) == members
    assert [m for m in served if not m.batch] == foretold
    for job in "abcde":
        mine = [m.number for m in served if m.job == job]
        assert mine == sorted(mine)


def test_jobs_get_the_same_tokens_however_long_their_texts() -> None:
    line: Line[One] = Line()
    for job, cost in (("short", 5), ("long", 150), ("middle", 40)):
        for number in range(3000):
            line.add(One(job, number, cost))
    tokens: Counter[str] = Counter()
    for member in serve(line, 1500):
        tokens[member.job] += member.cost
        assert max(tokens.values()) - min(tokens[j] for j in ("short", "long", "middle")) < 250
    assert min(tokens.values()) > 4000


def test_what_was_not_used_counts_for_its_job_again() -> None:
    line: Line[One] = Line()
    for job in ("modest", "greedy"):
        for number in range(1000):
            line.add(One(job, number, 100))
    tokens: Counter[str] = Counter()
    for member in serve_and_refund(line, 600):
        tokens[member.job] += 20 if member.job == "modest" else 100
    assert tokens["modest"] == pytest.approx(tokens["greedy"], rel=0.05)


def serve_and_refund(line: Line[One], count: int) -> list[One]:
    served = []
    for _ in range(count):
        served += serve(line, 1)
        if served[-1].job == "modest":
            line.refund(served[-1], 80)
    return served


def test_the_interactive_go_first_and_the_batch_gets_its_quarter() -> None:
    line: Line[One] = Line()
    for number in range(1000):
        line.add(One("bulk", number, 20, batch=True))
        line.add(One(f"user{number}", 0, 50))
    assert not next(iter(line)).batch
    tokens: Counter[bool] = Counter()
    for member in serve(line, 600):
        tokens[member.batch] += member.cost
        assert tokens[True] <= tokens[False]
    assert tokens[True] == pytest.approx(tokens[False] / 3, rel=0.05)


def test_a_batch_job_alone_owes_nothing_later() -> None:
    line: Line[One] = Line()
    for number in range(100):
        line.add(One("bulk", number, batch=True))
    serve(line, 50)
    line.add(One("user", 0))
    assert next(iter(line)).job == "user"
    line.remove(One("user", 0))
    assert [m.number for m in serve(line, 2)] == [50, 51]
