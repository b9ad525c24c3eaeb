"""Finds stop strings in a text that comes in parts.

The first stop string to be complete ends the text; it (unless `keep`) and all behind it are
withheld. What might be the beginning of one is held back until it is decided. The result does not
depend on where the parts were cut.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """`push` parts until `found`, then or at the end call nothing or `finish`."""

    def __init__(self, stops: Sequence[str], keep: bool = False) -> None:
        self._stops = tuple(stops)
        self._keep = keep
        self._held = ""
        self.found = False

    def push(self, part: str) -> str:
        """The text that is now certain to stand before any stop string."""
        if self.found:
            return ""
        if not self._stops:
            return part
        text = self._held + part
        matches = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            self.found, self._held = True, ""
            return text[: min(matches)[0 if self._keep else 1]]
        held = self._beginning(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(max(map(len, self._stops)) - 1, len(text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[len(text) - length :]) for stop in self._stops):
                return length
        return 0
