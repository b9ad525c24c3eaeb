"""The draft of one piece: the output of its first attempt as it comes, without white space around.

Where words are protected, or marks to be placed, it comes when it is complete.
"""

from __future__ import annotations

from collections.abc import Callable

from app.text.protect import public
from app.text.tokenizer import Detokenizer


class Draft:
    """`written` brings a text into the form of the answer: all of it, or what is certain of it."""

    def __init__(
        self, detokenizer: Detokenizer | None, written: Callable[[str, bool], str]
    ) -> None:
        self._detokenizer = detokenizer  # None: the draft waits for its end
        self._written = written
        self._text = ""
        self._whole: str | None = None
        self._taken = ""

    def push(self, token: int) -> None:
        if self._detokenizer:
            self._text += public(self._detokenizer.push(token))

    def end(self, whole: str) -> None:
        """The first attempt's text, in the form of the answer."""
        self._whole = whole

    def take(self) -> str:
        """What is certain and was not taken before; white space may yet prove to be the end."""
        ready = self._whole
        if ready is None:
            ready = self._written(self._text.strip(), True)
        if not ready.startswith(self._taken):
            return ""
        new = ready[len(self._taken) :]
        self._taken = ready
        return new
