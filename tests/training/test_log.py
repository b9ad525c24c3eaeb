"""The logs of a run: cut where it goes on, and a full disk is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.errors import SaveError
from training.log import Log, truncate_log


def test_the_log_is_cut_where_the_run_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    truncate_log(log, 3)
    assert not log.exists()
    lines = [json.dumps({"step": i, "loss": i / 7}) + "\n" for i in range(1, 6)]
    log.write_text("".join(lines) + '{"step": 6, "lo')
    truncate_log(log, 5)
    assert log.read_text() == "".join(lines)
    truncate_log(log, 3)
    assert log.read_text() == "".join(lines[:3])


def test_ranks_but_the_first_write_nothing(tmp_path: Path) -> None:
    with Log(tmp_path / "run", 0, 0.0, 1, on=False, bar=False) as log:
        log.write({"step": 1, "loss": 2.0, "tokens_per_s": 3.0}, 0.5)
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_written_is_named() -> None:
    with Log(Path("/dev"), 0, 0.0, 1, on=False, bar=False) as log:
        log.on, log.path = True, Path("/dev/full")
        log.file = log.path.open("a", encoding="utf-8", buffering=1)
        with pytest.raises(SaveError, match="/dev/full: could not be written: .*No space left"):
            log.write({"step": 1, "loss": 2.0, "tokens_per_s": 3.0}, 0.5)
        log.on = False
