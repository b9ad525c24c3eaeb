"""Numbers in a text, by value, in each language's own forms.

English and Chinese write 1,234.5, German 1.234,5, French 1 234,5; where a form is not one of the
language, every other reading counts. Chinese numerals and 万, 亿 have values too, as have the
small number words of English, German and French: they are accepted for a number, never demanded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NUMBER = re.compile(
    "[0-9]{1,3}(?:[\u00a0\u202f\u2009 ][0-9]{3})+(?![0-9])(?:,[0-9]+)?"  # 1 234,5
    "|[0-9]+(?:[.,'’][0-9]+)*"
)
_SPACES = re.compile("[\u00a0\u202f\u2009 ]")
_UNITS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8, "千": 1000, "百": 100}
_LARGE = re.compile("[万萬亿億千百]{1,3}")
_SCALES = {
    "en": {"thousand": 3, "million": 6, "billion": 9, "trillion": 12},
    "de": {"tausend": 3, "million": 6, "millionen": 6, "mio": 6, "milliarde": 9, "milliarden": 9,
           "mrd": 9, "billion": 12, "billionen": 12},
    "fr": {"mille": 3, "million": 6, "millions": 6, "milliard": 9, "milliards": 9},
}  # fmt: skip
_SCALE = re.compile("[ \u00a0\u202f]?([A-Za-z]{3,10})(?![^\\W_])")
_FORMS = {"de": (".", ","), "fr": ("\u202f", ",")}  # grouping, decimal; the others: as in English
_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")} | {
    "〇": 0, "两": 2, "兩": 2
}  # fmt: skip
_CHINESE = re.compile("[零〇一二两兩三四五六七八九十百千万萬亿億]{1,30}")
_WORDS = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve",
    "de": "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf dix onze douze",
}
_MORE = {"en": {"once": 1, "twice": 2, "a": 1, "an": 1}, "fr": {"une": 1},
         "de": {"eine": 1, "einen": 1, "einem": 1, "einer": 1, "eines": 1, "eins": 1}}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Number:
    start: int
    end: int
    text: str
    values: frozenset[str]  # what it may mean, in canonical form

    def localised(self, languages: tuple[str, str]) -> str:
        """As the second language writes it; 300万 and 3 million in digits."""
        if self.text[-1].isalpha() and len(self.values) == 1 and languages[0] != languages[1]:
            (value,) = self.values
            english = f"{int(value):,}" if value.isdecimal() else value
            return localised(english, ("en", languages[1]))
        return localised(self.text, languages)


def find(text: str, language: str) -> list[Number]:
    """The numbers that are written with digits."""
    found = []
    for match in _NUMBER.finditer(text):
        raw, end = match[0], match.end()
        if _SPACES.search(raw) and language != "fr" and " " in raw:
            # a plain space groups digits only in French: "in 2020 100 people"
            found += _apart(raw, match.start(), language)
            continue
        values = _values(raw, language)
        end, zeros = _scale(text, end, language)
        if zeros:
            values = frozenset(_canonical(_times(value, zeros)) for value in values)
            raw = text[match.start() : end]
        if found and found[-1].end == match.start() and zeros and found[-1].text[-1] in "亿億":
            former = found.pop()
            values = frozenset(str(int(a) + int(b)) for a in former.values for b in values
                               if a.isdecimal() and b.isdecimal())  # fmt: skip
            found.append(Number(former.start, end, former.text + raw, values))
            continue
        found.append(Number(match.start(), end, raw, values))
    return found


def spelt(text: str, language: str) -> list[str]:
    """Values of the numbers that are written with letters, as far as they are known."""
    if language == "zh":
        return [_canonical(str(_chinese(match[0]))) for match in _CHINESE.finditer(text)]
    known = {word: value for value, word in enumerate(_WORDS.get(language, "").split())}
    known |= _MORE.get(language, {})
    words = re.findall(r"[^\W\d_]+", text.casefold())
    return [str(known[word]) for word in words if word in known]


@dataclass(frozen=True, slots=True)
class Comparison:
    missing: tuple[Number, ...]  # of the source
    added: tuple[Number, ...]  # in the output


def compare(source: str, output: str, languages: tuple[str, str]) -> Comparison:
    """The numbers that have no equal on the other side."""
    mine, theirs = find(source, languages[0]), find(output, languages[1])
    missing = []
    for number in mine:
        match = next((n for n in theirs if n.values & number.values), None)
        if match:
            theirs.remove(match)
        else:
            missing.append(number)
    missing = _unspelt(missing, spelt(output, languages[1]))
    return Comparison(
        tuple(missing), tuple(_unspelt(theirs, spelt(source, languages[0])))
    )


def repaired(source: str, output: str, languages: tuple[str, str]) -> str | None:
    """The output with its wrong numbers replaced in order, if there are as many as are missing."""
    found = compare(source, output, languages)
    if not found.missing or len(found.missing) != len(found.added):
        return None
    parts: list[str] = []
    at = 0
    for right, wrong in zip(found.missing, found.added, strict=True):
        parts += (output[at : wrong.start], right.localised(languages))
        at = wrong.end
    return "".join([*parts, output[at:]])


def localised(number: str, languages: tuple[str, str]) -> str:
    """A number in the form of the second language; as it is if it has no separators."""
    source, target = (_form(language) for language in languages)
    plain = _SPACES.sub("\u202f", number)
    grouped = _grouped(plain.partition(source[1])[0], source[0])
    if source == target or plain.count(source[1]) > 1 or not (grouped or source[1] in plain):
        return number
    whole, _, rest = plain.partition(source[1])
    if not (whole.replace(source[0], "") + rest).isdecimal():
        return number
    return whole.replace(source[0], target[0]) + (target[1] + rest if rest else "")


def _form(language: str) -> tuple[str, str]:
    return _FORMS.get(language, (",", "."))


def _apart(raw: str, start: int, language: str) -> list[Number]:
    parts = []
    for match in re.finditer(r"[0-9]+(?:[.,][0-9]+)*", raw):
        at = start + match.start()
        parts.append(Number(at, start + match.end(), match[0], _values(match[0], language)))
    return parts


def _values(raw: str, language: str) -> frozenset[str]:
    text = _SPACES.sub("\u202f", raw)
    own = _read(text, *_form(language))
    if own is not None:
        return frozenset({own})
    others = [(",", "."), (".", ","), ("\u202f", ","), ("’", "."), ("'", ".")]
    values = {value for form in others if (value := _read(text, *form)) is not None}
    return frozenset(values or {raw})


def _read(text: str, group: str, decimal: str) -> str | None:
    """The value under one form, if the text is written in it."""
    whole, mark, rest = text.partition(decimal)
    if mark and not rest.isdecimal():
        return None
    if not whole.isdecimal():
        if not _grouped(whole, group):
            return None
        whole = whole.replace(group, "")
    return _canonical(f"{whole}.{rest}" if rest else whole)


def _grouped(text: str, mark: str) -> bool:
    return re.fullmatch(rf"[0-9]{{1,3}}(?:{re.escape(mark)}[0-9]{{3}})+", text) is not None


def _canonical(value: str) -> str:
    whole, _, rest = value.partition(".")
    rest = rest.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{rest}" if rest else "")


def _scale(text: str, at: int, language: str) -> tuple[int, int]:
    """Where the number ends with 万 or "million" behind its digits, and that word's zeros."""
    if large := _LARGE.match(text, at):
        return large.end(), sum(len(str(_UNITS[char])) - 1 for char in large[0])
    word = _SCALE.match(text, at)
    zeros = _SCALES.get(language, {}).get(word[1].casefold(), 0) if word else 0
    return (word.end(), zeros) if word and zeros else (at, 0)


def _times(value: str, zeros: int) -> str:
    whole, _, rest = value.partition(".")
    return f"{whole}{rest[:zeros].ljust(zeros, '0')}.{rest[zeros:]}"


def _chinese(text: str) -> int:
    """三千五百万 is 35000000; digits in a row, as in 二〇二六, are read one by one."""
    if len(text) > 1 and all(char in _DIGITS for char in text):
        return int("".join(str(_DIGITS[char]) for char in text))
    total = section = digit = 0
    for char in text:
        if char in _DIGITS:
            digit = _DIGITS[char]
        elif char in "万萬亿億":
            total, section, digit = (total + section + digit or 1) * _UNITS[char], 0, 0
        else:
            section += (digit or 1) * (10 if char == "十" else _UNITS[char])
            digit = 0
    return total + section + digit


def _unspelt(numbers: Sequence[Number], words: list[str]) -> list[Number]:
    """Those that are not written out in words; every word counts once."""
    left = list(words)
    result = []
    for number in numbers:
        value = next((value for value in left if value in number.values), None)
        if value is None:
            result.append(number)
        else:
            left.remove(value)
    return result
