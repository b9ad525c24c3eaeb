"""What was asked of the server, what was measured, and whether it held: printed and kept."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SHOWN = 240  # characters of what was measured


@dataclass(frozen=True, slots=True)
class Row:
    test: str
    asked: str
    measured: str
    held: str  # yes, NO, or why it was not tried


class Checks:
    """Of one test: all of them are measured before it fails."""

    def __init__(self, test: str) -> None:
        self.test = test
        self.rows: list[Row] = []

    def __call__(self, asked: str, measured: str, held: bool) -> None:
        measured = " ".join(measured.split())[:_SHOWN].replace("|", "/")
        self.rows.append(Row(self.test, asked, measured, "yes" if held else "NO"))
        sys.stdout.write(f"\n  {self.test}: {asked}: {measured}{'' if held else ': NO'}")
        sys.stdout.flush()


class Report:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []
        self._load = os.getloadavg()[0]

    @contextmanager
    def test(self, name: str) -> Iterator[Checks]:
        """Fails at the end if a check did not hold; what breaks off is a row too."""
        checks = Checks(name)
        try:
            yield checks
        except BaseException as error:
            checks(f"runs to its end ({type(error).__name__})", "broke off", False)
            raise
        finally:
            self._rows += checks.rows
        missed = [f"{row.asked}: {row.measured}" for row in checks.rows if row.held == "NO"]
        assert not missed, missed

    def left_out(self, test: str, why: str, asked: str = "") -> None:
        self._rows.append(Row(test, asked, "", why))

    def write(self) -> None:
        """The table, if any test has run."""
        if not self._rows:
            return
        rows = [f"| {row.test} | {row.asked} | {row.measured} | {row.held} |" for row in self._rows]
        cpus = len(os.sched_getaffinity(0))
        machine = (
            f"{platform.machine()}, {cpus} CPUs, Python {platform.python_version()}; load average "
            f"before {self._load:.1f}, after {os.getloadavg()[0]:.1f}, this suite's own included."
        )
        text = [machine, "", "| test | asked | measured | held |", "|---|---|---|---|", *rows, ""]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n".join(text), encoding="utf-8")
