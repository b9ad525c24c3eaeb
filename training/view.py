"""What a pipeline's user sees while it runs: one line a stage with its state.

On a terminal the lines stay in place and the running stage's bar moves below them; elsewhere each
change of state is a line of its own, and a quiet run shows nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm  # type: ignore[import-untyped]


class View:
    """`stages` maps names to their first states; a context manager."""

    def __init__(self, stages: Mapping[str, str], quiet: bool = False) -> None:
        self.live = sys.stderr.isatty() and not quiet
        self._quiet = quiet
        self._width = max(map(len, stages), default=0)
        self._lines = {
            name: tqdm(total=0, position=at, bar_format="{desc}", desc=self._line(name, state))
            for at, (name, state) in enumerate(stages.items()) if self.live
        }  # fmt: skip

    def show(self, name: str, state: str) -> None:
        if self.live:
            self._lines[name].set_description_str(self._line(name, state))
        elif not self._quiet:
            sys.stderr.write(self._line(name, state) + "\n")

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for line in self._lines.values():
            line.close()

    def _line(self, name: str, state: str) -> str:
        return f"{name:<{self._width}}  {state}"


def duration(seconds: float) -> str:
    """As in `2 h 05 min`, `3 min 12 s` or `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
