"""Chinese in its two scripts: which one a text is written in, and one made of the other.

A model knows simplified characters only. OpenCC converts, clause by clause, so that a translation
that is still growing can be converted as far as it goes and never changes. Its dictionaries (50 MB
of memory) are loaded when they are first needed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType

SIMPLIFIED, TRADITIONAL = "zh", "zh-Hant"
# Where OpenCC must not look across: between clauses, at protected words, at ends of lines.
_ENDS = re.compile("([，。！？；：、…,.!?;:\\s\U000f0000-\U0010ffff]+)")
_HAN = re.compile(r"[\u3400-\u9fff]")
_SAMPLE = 2000  # characters; more do not change the answer
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Variant:
    """Chinese that is written otherwise; `reads` and `writes` name OpenCC's ways from and to it."""

    name: str
    reads: str
    writes: str

    def to_model(self, text: str) -> str:
        """The text in the characters that a model knows."""
        return _convert(text, self.reads)

    def from_model(self, text: str) -> str:
        """What a model wrote, as it is written here."""
        return _convert(text, self.writes)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        TRADITIONAL: Variant("Chinese (traditional)", "t2s", "s2tw"),
        "zh-TW": Variant("Chinese (traditional, Taiwan)", "tw2sp", "s2twp"),
        "zh-HK": Variant("Chinese (traditional, Hong Kong)", "hk2sp", "s2hkp"),
    }
)


def variants(languages: Iterable[str]) -> Mapping[str, Variant]:
    """Those that can be made of what a model with these languages writes."""
    known = set(languages)
    return VARIANTS if SIMPLIFIED in known and known.isdisjoint(VARIANTS) else {}


def offered(languages: Mapping[str, str]) -> dict[str, str]:
    """A model's languages with their names, and the variants behind Chinese."""
    found: dict[str, str] = {}
    for code, name in languages.items():
        found[code] = name
        if code == SIMPLIFIED:
            found |= {code: one.name for code, one in variants(languages).items()}
    return found


def known_as(code: str, languages: Iterable[str]) -> str:
    """The code by which a model knows an offered language."""
    return SIMPLIFIED if code in variants(languages) else code


def is_traditional(text: str) -> bool:
    """Whether more of its characters are of the traditional set alone than of the simplified."""
    return sum(map(_sign, _HAN.findall(text[:_SAMPLE]))) > 0


def certain(text: str) -> int:
    """How much of a growing text is converted as it will be in the end."""
    ends = [match.end() for match in _ENDS.finditer(text)]
    return ends[-1] if ends else 0


def _convert(text: str, way: str) -> str:
    with _loading:
        convert = _converter(way)
    parts = _ENDS.split(text)
    return "".join(part if i % 2 else convert(part) for i, part in enumerate(parts))


@cache
def _converter(way: str) -> Callable[[str], str]:
    from opencc import OpenCC

    convert: Callable[[str], str] = OpenCC(way).convert
    return convert


@lru_cache(8192)
def _sign(char: str) -> int:
    return _in("big5", char) - _in("gb2312", char)


def _in(codec: str, char: str) -> bool:
    try:
        char.encode(codec)
    except UnicodeEncodeError:
        return False
    return True
