"""Checks on a request's texts and numbers that do not depend on the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import InvalidField, TooLong
from app.text.tokenizer import check_text

# Below this many characters preparing a request is quicker than handing it to another thread.
INLINE_CHARACTERS = 2000


def free(characters: int) -> None:
    """What a request costs that nobody counts."""


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """What one request may hold, and what a slot holds."""

    context: int  # tokens, prompt and output together
    max_prompt_tokens: int
    max_items: int = 1024
    max_characters: int = 100_000
    max_pieces: int = 2048  # sentences that a request's texts are cut into
    slots: int = 8  # sequences side by side: the largest beam


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a number may be; the HTTP schema is made of the same."""

    low: int
    high: int
    above: bool = False  # the lowest value itself is refused

    def check(self, name: str, value: float) -> None:
        if value < self.low or (self.above and value == self.low):
            wanted = f"more than {self.low}" if self.above else f"at least {self.low}"
        elif value > self.high:
            wanted = f"at most {self.high}"
        elif value != value:
            wanted = "a number"
        else:
            return
        raise InvalidField(f"{name} is {value}: must be {wanted}", param=name)


def names(texts: str | Sequence[str], param: str) -> list[str]:
    """How errors name each text: `text` itself, or `text[3]` in an array."""
    if isinstance(texts, str):
        return [param]
    return [f"{param}[{i}]" for i in range(len(texts))]


def check_texts(texts: str | Sequence[str], limits: TaskLimits, param: str) -> list[str]:
    """The texts as a list, if there are some, not too many, not too long and all valid."""
    items = [texts] if isinstance(texts, str) else list(texts)
    _check_sizes(items, limits, param, names(texts, param))
    for name, item in zip(names(texts, param), items, strict=True):
        check_text(item, param=name)
    return items


def check_each(
    texts: Sequence[str], limits: TaskLimits, param: str
) -> list[str | InvalidField]:
    """As `check_texts`, but in place of a text that is wrong by itself there is its error."""
    found: list[str | InvalidField] = []
    for name, text in zip(names(texts, param), texts, strict=True):
        try:
            if len(text) > limits.max_characters:
                raise TooLong(
                    f"{name} has {len(text)} characters, at most {limits.max_characters} "
                    "are allowed",
                    param=name,
                )
            check_text(text, param=name)
            found.append(text)
        except InvalidField as error:
            found.append(error)
    sizes = ["" if isinstance(one, InvalidField) else one for one in found]
    _check_sizes(sizes, limits, param, names(texts, param))
    return found


def _check_sizes(
    items: Sequence[str], limits: TaskLimits, param: str, fields: Sequence[str]
) -> None:
    if not items:
        raise InvalidField(f"{param} is an empty array: at least one string is needed", param=param)
    if len(items) > limits.max_items:
        raise InvalidField(
            f"{param} has {len(items)} items, at most {limits.max_items} are allowed", param=param
        )
    total = 0
    for name, item in zip(fields, items, strict=True):
        total += len(item)
        if total > limits.max_characters:
            raise TooLong(
                f"{param} has more than {limits.max_characters} characters in all", param=name
            )
