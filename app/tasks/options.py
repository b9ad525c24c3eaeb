"""How to translate: what a request may choose, each value checked by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from app.engine.request import Beam
from app.errors import InvalidField
from app.tasks.inputs import Bounds
from app.text.glossary import Glossary

Format = Literal["text", "html", "xml"]
BOUNDS: Mapping[str, Bounds] = MappingProxyType(
    {"beam": Bounds(1, 8), "length_penalty": Bounds(0, 5), "alternatives": Bounds(0, 8)}
)


@dataclass(frozen=True, slots=True)
class TranslateOptions:
    """How to search; a value out of bounds is refused by name. With `beam` 1 it is greedy.

    `alternatives` (at most `beam`) are told beside the translation, itself the first of them. The
    translation begins with `prefix`, which ends where a word ends and belongs to one text. With
    `branch` the alternatives differ in their first word after it, each then greedy; of a text of
    several sentences the first one has them. `retry`: what is flagged is tried again by beam.
    """

    beam: int = 1
    length_penalty: float = 1.0
    alternatives: int = 0
    prefix: str = ""
    branch: bool = False
    format: Format = "text"
    glossary: Glossary = Glossary()
    retry: bool = True

    def __post_init__(self) -> None:
        for name, bounds in BOUNDS.items():
            bounds.check(name, getattr(self, name))
        if self.format not in get_args(Format):
            raise InvalidField(
                f"format is {self.format!r}: must be one of {', '.join(get_args(Format))}",
                param="format",
            )
        if self.alternatives > self.beam:
            raise InvalidField(
                f"alternatives is {self.alternatives}: must be at most beam, which is {self.beam}",
                param="alternatives",
            )
        if self.branch and self.alternatives < 2:
            raise InvalidField(
                f"alternatives is {self.alternatives}: must be at least 2 with branch",
                param="alternatives",
            )

    @property
    def search(self) -> Beam | None:
        if self.beam == 1 and not self.alternatives:
            return None
        best = max(self.alternatives, 1)
        return Beam(self.beam, self.length_penalty, best=best, branch=self.branch)


PLAIN = TranslateOptions()
