"""Signs that a translation of one sentence is not to be trusted.

Source and output flow in with what the engine told of the tokens; flags flow out, each a word of
`FLAGS`. They are cheap and know no language model: they find loops, copies, the wrong script and
changed numbers, not wrong meanings.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple, get_args

from app.text.numbers import compare

Flag = Literal[
    "spans",  # a placeholder, URL or address is missing or there twice
    "numbers",  # a number is missing or another one than in the source
    "glossary",  # a wanted term is missing
    "truncated",  # the output reached its limit
    "repetition",  # the same words again and again
    "length",  # far shorter or longer than the source
    "copied",  # the source itself
    "script",  # letters of another script than the target language's
    "score",  # the model itself finds it unlikely
]
FLAGS: tuple[Flag, ...] = get_args(Flag)  # the gravest first

LOW_SCORE = -2.0  # mean log-probability of a token: one in fifty of usual sentences (docs/LOG.md)
_SHORTEST, _LONGEST, _SLACK = 0.35, 2.5, 4  # tokens of the output for one of the source
_SCRIPTS = {
    "zh": {"CJK"}, "ja": {"CJK", "HIRAGANA", "KATAKANA"}, "ko": {"HANGUL"},
    "ru": {"CYRILLIC"}, "uk": {"CYRILLIC"}, "bg": {"CYRILLIC"}, "el": {"GREEK"},
    "ar": {"ARABIC"}, "fa": {"ARABIC"}, "he": {"HEBREW"}, "hi": {"DEVANAGARI"}, "th": {"THAI"},
} | dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "sv", "da", "nb", "fi",
                   "tr", "ro", "hu", "vi", "id"), {"LATIN"})  # fmt: skip
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_INSIDE = re.compile(r"([^\W\d_]{2,12}?)\1{3,}")
_RUN = 4  # times in a row


def flags(
    source: str,
    output: str,
    languages: tuple[str, str],
    tokens: tuple[int, int],
    score: float | None,
    cut: bool,
) -> tuple[Flag, ...]:
    """What is suspicious; `tokens` are those of source and output."""
    mine, theirs = _words(source), _words(output)
    numbers = compare(source, output, languages)
    found: dict[Flag, bool] = {
        "numbers": bool(numbers.missing or numbers.added),
        "truncated": cut,
        "repetition": unlooped(source, output) is not None,
        "length": not _SHORTEST * tokens[0] - _SLACK <= tokens[1] <= _LONGEST * tokens[0] + _SLACK
        or (bool(mine) and not output.strip()),
        "copied": len(mine) > 2 and mine == theirs,
        "script": _foreign(source, output, languages[1]),
        "score": score is not None and score < LOW_SCORE,
    }
    return tuple(flag for flag in FLAGS if found.get(flag))


def in_order(found: Sequence[Flag] | set[Flag]) -> tuple[Flag, ...]:
    return tuple(flag for flag in FLAGS if flag in found)


def scripts_of(languages: Collection[str]) -> frozenset[str] | None:
    """Those that the languages are written in; None if they are not known."""
    found = [_SCRIPTS.get(code.partition("-")[0]) for code in languages]
    known = [one for one in found if one is not None]
    return frozenset().union(*known) if len(known) == len(found) else None


def readable(text: str, scripts: frozenset[str] | None) -> bool:
    """Whether a letter is of one of the scripts."""
    return scripts is None or any(_script(char) in scripts for char in text if char.isalpha())


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORDS.findall(text)]


def unlooped(source: str, output: str) -> str | None:
    """The output without its endless repetition; None if there is none.

    It is one to eight words four times in a row, or three times at two places or more, or the same
    four words at four places, or the same letters four times in a row inside a word: each more
    often than the source has it. Numbers are no such words. Where it is words or letters in a row
    at one place, they stay once; else the output breaks off, which an ellipsis tells. A good output
    may have such a repetition too (laughter, a name of four characters): take this only where there
    is more than that to say against it.
    """
    words = output if _INSIDE.search(source) else _INSIDE.sub(r"\1", output)
    left = _broken_off(source, words)
    if left is None and words != output:
        return words
    return left


def _broken_off(source: str, output: str) -> str | None:
    theirs = _words(output)
    if max(Counter(theirs).values(), default=0) < 3:  # as nearly always
        return None
    mine = _words(source)
    runs, usual = _runs(theirs), _runs(mine)
    least = max(_RUN, max((run.times for run in usual), default=1) + 1)
    if long := [run for run in runs if run.times >= least]:
        runs = long
    elif len(runs) < max(2, len(usual) + 1):
        runs = []
    at = runs[0].at if runs else _often(theirs, mine)
    if at is None:
        return None
    spans = [word.span() for word in _WORDS.finditer(output)]
    before = output[: spans[at - 1][1]]
    if len(runs) == 1:
        (run,) = runs
        return before + output[spans[run.at + run.size * (run.times - 1) - 1][1] :]
    return before + "…"


class _Run(NamedTuple):
    at: int  # the first word of the second time
    size: int
    times: int


def _runs(words: Sequence[str]) -> list[_Run]:
    """Where one to eight words come three times in a row or more; of runs that overlap the first,
    with the fewest words."""
    found: list[_Run] = []
    end = 0
    for begin in range(len(words)):
        if begin < end:
            continue
        for size in range(1, min(8, (len(words) - begin) // 3) + 1):
            same = begin + size
            while same < len(words) and words[same] == words[same - size]:
                same += 1
            times = (same - begin) // size
            if times >= 3 and not all(map(str.isdigit, words[begin : begin + size])):
                found.append(_Run(begin + size, size, times))
                end = same
                break
    return found


def _often(words: Sequence[str], usual: Sequence[str]) -> int | None:
    """The second place of four words that come at four places, unless the source has such."""
    places = _places(words)
    begins = [found[1] for found in places.values() if len(found) >= _RUN]
    source = max(map(len, _places(usual).values()), default=0)
    return min(begins, default=None) if source < _RUN else None


def _places(words: Sequence[str]) -> dict[tuple[str, ...], list[int]]:
    """Where each four words in a row stand."""
    places: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(words) - 3):
        places.setdefault(tuple(words[i : i + 4]), []).append(i)
    return places


def _foreign(source: str, output: str, target: str) -> bool:
    """Whether a third of the letters are of no script of the target, words of the source aside."""
    wanted = _SCRIPTS.get(target.partition("-")[0])
    if wanted is None:
        return False
    kept = set(_words(source)) if wanted == {"LATIN"} or "LATIN" not in wanted else set()
    wrong = right = 0
    for word in _words(output):
        scripts = Counter(_script(char) for char in word if char.isalpha())
        good = sum(count for script, count in scripts.items() if script in wanted)
        right += good
        if word not in kept or not word.isascii():
            wrong += scripts.total() - good
    return wrong > 0 and wrong * 2 >= right


def _script(char: str) -> str:
    if char.isascii():
        return "LATIN"
    return unicodedata.name(char, "").split(" ")[0].split("-")[0]
