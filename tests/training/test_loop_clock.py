"""A run that is bounded by the clock: its schedule follows it, and a resumed one goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.helpers import log_of
from training import loop
from training.batches import Batch
from training.loop import Run
from training.optim import rate_factor


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time goes on by 0.7 s whenever the loop looks at the clock."""
    now = [1000.0]

    def monotonic() -> float:
        now[0] += 0.7
        return now[0]

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=monotonic))
    return now


def test_the_schedule_follows_the_clock(make_run: Callable[..., Run], clock: list[float]) -> None:
    run = make_run(minutes=0.5, optimiser={"name": "adamw", "warmup": 0.2})
    began = clock[0]
    run.train()
    assert 30 <= clock[0] - began < 30 + 3 * 2.1  # no later than a step after the bound
    entries = log_of(run.folder)
    assert 8 < len(entries) < 30
    before = 0.0
    for entry in entries:
        expected = rate_factor(before / 30, run.config.optimiser)
        assert entry["rate"] == pytest.approx(expected, abs=2e-3)
        before = entry["elapsed_s"]
    assert entries[-1]["rate"] < 0.05 and max(e["rate"] for e in entries) > 0.9


def test_a_resumed_clock_goes_on(make_run: Callable[..., Run], clock: list[float]) -> None:
    keys = {"minutes": 0.5, "checkpoint_minutes": 0.1}
    run = make_run(**keys)
    real, count = run._one_step, 0

    def interrupted(batches: Iterator[Batch]) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return real(batches)

    run._one_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.train()
    state = json.loads((run.folder / "last" / "state.json").read_text())
    assert state["elapsed"] > 6
    clock[0] += 10_000  # time that the run was not there does not count
    again = make_run(**keys)
    again.train()
    entries = log_of(run.folder)
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    resumed = entries[state["step"]]
    assert state["elapsed"] < resumed["elapsed_s"] < state["elapsed"] + 3
    assert resumed["rate"] == rate_factor(state["elapsed"] / 30, again.config.optimiser)
    times = [entry["elapsed_s"] for entry in entries]
    assert times == sorted(times) and 30 <= again.elapsed < 36


def test_a_real_clock_ends_in_time(make_run: Callable[..., Run]) -> None:
    run = make_run(minutes=0.01)
    began = time.monotonic()
    run.train()
    assert 0.6 <= time.monotonic() - began < 5  # generous: the machine may be busy
    assert 0.6 <= run.elapsed < 3
