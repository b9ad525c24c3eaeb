"""What a line of a corpus must be: normal form, faults of pairs, and the language it claims.

Texts flow in, normalised text or the name of a fault flows out. py3langid identifies languages; its
model lies in its package and is loaded when the first text is judged.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufeff\u200b]")
ENOUGH = 20  # characters; shorter text in Latin letters is not judged: 1 in 90 would be wrong
_LATIN = 0x370  # the first letter behind the Latin ones


def normalise(text: str) -> str:
    """NFC, no control characters, white space folded."""
    return " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFC", text)).split())


def fault_of_task(first: str, second: str) -> str | None:
    """Why an example of a text-to-text task is not worth training on, or None."""
    if not first or not second:
        return "empty"
    return "too long" if max(len(first.encode()), len(second.encode())) > 2000 else None


def fault_of_pair(first: str, second: str, languages: tuple[str, ...]) -> str | None:
    """Why a pair is not worth training on, or None."""
    if not first or not second:
        return "empty"
    if first == second:
        return "identical"
    sizes = len(first.encode()), len(second.encode())
    if max(sizes) > 2000:
        return "too long"
    if max(sizes) > 3 * min(sizes) + 30:
        return "length ratio"
    for text, language in ((first, languages[0]), (second, languages[1])):
        han = len(HAN.findall(text))
        if language == "zh" and not han:
            return "wrong script"
        if language not in ("zh", "ja") and han > 0.2 * len(text):
            return "wrong script"
    return None


class Identifier:
    """Says whether a text is in a language, restricted to `languages`."""

    def __init__(self, languages: Sequence[str]) -> None:
        self.languages = languages

    @cached_property
    def _model(self) -> Any:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        model = LanguageIdentifier.from_model_file(MODEL_FILE)
        known = [code for code in self.languages if code in model.labels]
        if len(known) > 1:
            model.set_languages(known)
        return model if len(known) > 1 else None

    def agrees(self, text: str, language: str) -> bool:
        """Whether `text` is in `language`; True for what is too short or unknown to be judged."""
        letters = [c for c in text if c.isalpha()]
        if not letters or len(text) < ENOUGH and max(map(ord, letters)) < _LATIN:
            return True
        if self._model is None or language not in self._model.labels:
            return True
        found: str = self._model.classify(text)[0]
        return found == language
