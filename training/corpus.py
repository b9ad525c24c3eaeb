"""Reads a corpus folder: which sources it has, and their text, cleaned, deduplicated, leak-free.

In flow line-aligned files (`train.en`, `train.de.gz`), two-column `name.en-de.tsv[.gz]` and running
text `mono/en/*.txt[.gz]`; out flow pairs and documents, and a `Report` of all that was dropped.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import TypeVar

from training.errors import CorpusError

T = TypeVar("T")
RULES = 1  # goes up when a rule of this file changes, so that runs make their shards anew

NAMES = {
    "en": "English", "zh": "Chinese", "de": "German", "fr": "French", "es": "Spanish",
    "ja": "Japanese", "ru": "Russian", "cs": "Czech",
}  # fmt: skip
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufeff\u200b]")
_TSV = re.compile(r"(?P<name>.+)\.(?P<first>[a-z]{2,3})-(?P<second>[a-z]{2,3})\.tsv(\.gz)?$")
_ALIGNED = re.compile(r"train\.(?P<language>[a-z]{2,3})(\.gz)?$")


@dataclass(frozen=True)
class Source:
    """One file (or aligned file pair) of a corpus; `languages` has one code for running text."""

    name: str
    languages: tuple[str, ...]
    paths: tuple[Path, ...]

    @property
    def key(self) -> str:
        return f"{self.name}.{'-'.join(self.languages)}"


@dataclass
class Report:
    """How many lines each source had, kept, and lost for which reason."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, source: str, reason: str) -> None:
        self.counts.setdefault(source, Counter())[reason] += 1

    def table(self) -> str:
        reasons = sorted({r for c in self.counts.values() for r in c} - {"kept"})
        rows = [["source", "read", "kept", *reasons]]
        for name, counts in sorted(self.counts.items()):
            rows.append([name, str(counts.total()), str(counts["kept"]),
                         *(str(counts[r]) for r in reasons)])  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in
                      enumerate(zip(row, widths, strict=True)))
            for row in rows
        )  # fmt: skip


def read_lines(path: Path) -> Iterator[str]:
    """Lines without their ends; raises CorpusError for a file that is missing or not UTF-8."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):  # noqa: B007
                yield line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}, line {number}: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        place = f"{path}, after line {number}" if number else str(path)
        raise CorpusError(f"{place}: {error}") from None


def files_of(folders: Iterable[Path]) -> list[Path]:
    """All files below the folders; raises CorpusError for one that is missing or has none."""
    found: list[Path] = []
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            raise CorpusError(f"{folder}: no such folder, or no file in it")
        found += files
    return found


def find_sources(folder: Path, languages: Iterable[str], list_file: str = "") -> list[Source]:
    """All sources of a corpus folder in the wanted languages; each of them must have one."""
    wanted = set(languages)
    if not folder.is_dir():
        raise CorpusError(f"corpus {folder}: no such folder")
    allowed: set[Path] | None = None
    if list_file:  # its entries are relative to where it lies
        base = (folder / list_file).parent
        allowed = {base / line for line in read_lines(folder / list_file) if line}
        absent = sorted(str(path) for path in allowed if not path.exists())
        if absent:
            raise CorpusError(f"{folder / list_file} names {absent[0]}, which is not there")
    found: list[Source] = []
    aligned: dict[Path, dict[str, Path]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder)
        if allowed is not None and path not in allowed and relative.parts[0] != "mono":
            continue
        if match := _TSV.match(path.name):
            found.append(Source(match["name"], (match["first"], match["second"]), (path,)))
        elif match := _ALIGNED.match(path.name):
            aligned.setdefault(path.parent, {})[match["language"]] = path
        elif (
            relative.parts[0] == "mono"
            and len(relative.parts) == 3
            and path.name.endswith((".txt", ".txt.gz"))
        ):
            stem = path.name.removesuffix(".gz").removesuffix(".txt")
            found.append(Source(f"mono/{stem}", (relative.parts[1],), (path,)))
    for parent, files in aligned.items():
        for first, second in combinations(sorted(files), 2):
            found.append(Source(parent.name, (first, second), (files[first], files[second])))
    found = [s for s in found if wanted.issuperset(s.languages)]
    _refuse_namesakes(found)
    require_languages(found, wanted, f"corpus {folder}")
    return found


def require_languages(sources: Iterable[Source], languages: Iterable[str], where: str) -> None:
    """Raises CorpusError naming the languages that no source is in."""
    missing = set(languages).difference(*(source.languages for source in sources))
    if missing:
        raise CorpusError(f"{where}: nothing in {', '.join(sorted(missing))}")


def _refuse_namesakes(sources: Iterable[Source]) -> None:
    """A source's key names its shards, weight and row in the report: there must be one of each."""
    first: dict[str, Source] = {}
    for source in sources:
        other = first.setdefault(source.key.replace("/", "_"), source)
        if other is not source:
            raise CorpusError(
                f"{other.paths[0]} and {source.paths[0]}: two sources of the name {source.key}; "
                "rename or remove one"
            )


def weight_of(source: Source, weights: dict[str, float]) -> float:
    """Passes over a source per epoch: the first glob that matches its name or key; else 0."""
    return first_match(source, weights, 0.0)


def first_match(source: Source, values: dict[str, T], default: T) -> T:
    """The value of the first glob that matches a source's name or key."""
    for pattern, value in values.items():
        if fnmatchcase(source.name, pattern) or fnmatchcase(source.key, pattern):
            return value
    return default


def normalise(text: str) -> str:
    """NFC, no control characters, white space folded."""
    return " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFC", text)).split())


def skeleton(text: str) -> str:
    """Letters and digits only, case folded: what counts as the same sentence in a leak check."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


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
        han = len(_HAN.findall(text))
        if language == "zh" and not han:
            return "wrong script"
        if language not in ("zh", "ja") and han > 0.2 * len(text):
            return "wrong script"
    return None


class LeakCheck:
    """Knows the test sentences: exact (letters only) and 13-word (or 26-character) runs."""

    WORDS, CHARACTERS = 13, 26

    def __init__(self, sentences: Iterable[str] = ()) -> None:
        self.exact: set[int] = set()
        self.runs: set[int] = set()
        for sentence in sentences:
            bare = skeleton(sentence)
            if len(bare) > 3:
                self.exact.add(hash64(bare))
            self.runs.update(self._runs(sentence))

    @classmethod
    def of_folders(cls, folders: Iterable[Path]) -> LeakCheck:
        """All lines of all files of the folders, whatever their language."""
        return cls(line for path in files_of(folders) for line in read_lines(path))

    def _runs(self, text: str) -> Iterator[int]:
        if _HAN.search(text):
            bare = skeleton(text)
            n = self.CHARACTERS
            return (hash(bare[i : i + n]) for i in range(len(bare) - n + 1))
        words = text.casefold().split()
        n = self.WORDS
        return (hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1))

    def fault_of(self, *texts: str) -> str | None:
        if not self.exact and not self.runs:
            return None
        for text in texts:
            if hash64(skeleton(text)) in self.exact:
                return "leak: sentence"
            if any(run in self.runs for run in self._runs(text)):
                return "leak: n-gram"
        return None


def hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())


def read_pairs(source: Source) -> Iterator[tuple[str, str]]:
    """Raw pairs of a two-column or line-aligned source; raises CorpusError on a malformed line."""
    if len(source.paths) == 1:
        for number, line in enumerate(read_lines(source.paths[0]), 1):
            columns = line.split("\t")
            if len(columns) < 2:
                raise CorpusError(f"{source.paths[0]}, line {number}: no tab")
            yield columns[0], columns[1]
        return
    first, second = (read_lines(path) for path in source.paths)
    try:
        yield from zip(first, second, strict=True)
    except ValueError:
        raise CorpusError(
            f"{source.paths[0]} and {source.paths[1].name}: different numbers of lines"
        ) from None


class Cleaner:
    """Applies every rule to every source of a run, remembers what it has seen, and counts."""

    def __init__(self, leaks: LeakCheck | None = None) -> None:
        self.report = Report()
        self.leaks = leaks or LeakCheck()
        self.seen: set[int] = set()

    def pairs(self, source: Source) -> Iterator[tuple[str, str]]:
        for raw in read_pairs(source):
            first, second = normalise(raw[0]), normalise(raw[1])
            fault = fault_of_pair(first, second, source.languages)
            if fault is None:
                sides = sorted(zip(source.languages, (first, second), strict=True))
                mark = hash64("\t".join(f"{code}\t{text}" for code, text in sides))
                fault = "duplicate" if mark in self.seen else self.leaks.fault_of(first, second)
                self.seen.add(mark)
            self.report.add(source.key, fault or "kept")
            if fault is None:
                yield first, second

    def documents(self, source: Source, paragraphs: int = 8) -> Iterator[str]:
        """Documents: blocks between blank lines, cut after some paragraphs; leaks are left out."""
        block: list[str] = []
        for raw in read_lines(source.paths[0]):
            line = normalise(raw)
            fault = None
            if line:
                mark = hash64(f"{source.languages[0]}\t{line}")
                fault = "duplicate" if mark in self.seen else self.leaks.fault_of(line)
                self.seen.add(mark)
                self.report.add(source.key, fault or "kept")
            if line and fault is None:
                block.append(line)
            if block and (not line or len(block) == paragraphs):
                yield "\n".join(block)
                block = []
        if block:
            yield "\n".join(block)
