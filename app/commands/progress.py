"""A progress bar on stderr, drawn a few times a second and only on a terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 30
_PERIOD_S = 0.2


class Progress:
    def __init__(self, total: int, unit: str, stream: TextIO | None = None) -> None:
        self._total = max(total, 1)
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._done = 0.0
        self._began = time.monotonic()
        self._drawn = 0.0

    def add(self, done: float) -> None:
        self._done += done
        now = time.monotonic()
        if self._shown and now - self._drawn >= _PERIOD_S:
            self._drawn = now
            self._stream.write("\r" + self.line(now - self._began))
            self._stream.flush()

    def line(self, elapsed_s: float) -> str:
        part = min(self._done / self._total, 1.0)
        bar = "#" * round(_WIDTH * part)
        pace = self._done / elapsed_s if elapsed_s > 0 else 0.0
        left = (self._total - self._done) / pace if pace else 0.0
        return (
            f"[{bar:<{_WIDTH}}] {self._done:.0f}/{self._total} {self._unit} "
            f"{pace:.1f}/s, {left:.0f} s left "
        )

    def close(self) -> None:
        if self._shown:
            self._stream.write("\r" + self.line(time.monotonic() - self._began) + "\n")
            self._stream.flush()
