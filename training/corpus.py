"""Reads a corpus folder: which sources it has, and their text, cleaned, deduplicated, leak-free.

In flow line-aligned files (`train.en`, `train.de.gz`), two-column `name.en-de.tsv[.gz]`, machine
translations `name.en-to-de.tsv[.gz]` (learnt in this direction only; a third column may hold the
mean log-probability a token), other text-to-text tasks `name.task-summary.tsv[.gz]` and running
text `mono/en/*.txt[.gz]`; out flow pairs and documents, and a `Report` of all that was dropped.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import TypeVar

from training.errors import CorpusError
from training.rules import HAN, Identifier, fault_of_pair, fault_of_task, normalise

T = TypeVar("T")
RULES = 2  # goes up when a rule of this file changes, so that runs make their shards anew

NAMES = {
    "en": "English", "zh": "Chinese", "de": "German", "fr": "French", "es": "Spanish",
    "ja": "Japanese", "ru": "Russian", "cs": "Czech",
}  # fmt: skip
_TSV = re.compile(r"(?P<name>.+)\.(?P<first>[a-z]{2,3})-(?P<second>[a-z]{2,3})\.tsv(\.gz)?$")
_ONE_WAY = re.compile(_TSV.pattern.replace(")-(", ")-to-("))
_TASK = re.compile(r"(?P<name>.+)\.task-(?P<task>[a-z0-9][a-z0-9_-]*)\.tsv(\.gz)?$")
_ALIGNED = re.compile(r"train\.(?P<language>[a-z]{2,3})(\.gz)?$")


@dataclass(frozen=True)
class Source:
    """One file (or aligned file pair) of a corpus; `languages` has one code for running text.

    `one_way`: learnt from the first to the second language only. A `task` has no languages.
    """

    name: str
    languages: tuple[str, ...]
    paths: tuple[Path, ...]
    one_way: bool = False
    task: str = ""

    @property
    def key(self) -> str:
        between = "-to-" if self.one_way else "-"
        return f"{self.name}.{f'task-{self.task}' if self.task else between.join(self.languages)}"

    @property
    def columns(self) -> int:
        """2 for pairs and tasks, 1 for running text."""
        return 2 if self.task else len(self.languages)


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


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, links to folders followed, each folder once."""
    found, seen = list[Path](), {os.path.realpath(folder)}
    for base, folders, names in os.walk(folder, followlinks=True):
        found += (path for name in names if (path := Path(base, name)).is_file())
        real = {name: os.path.realpath(Path(base, name)) for name in sorted(folders)}
        folders[:] = [name for name in real if real[name] not in seen]
        seen.update(real.values())
    return sorted(found)


def files_of(folders: Iterable[Path]) -> list[Path]:
    """All files below the folders; raises CorpusError for one that is missing or has none."""
    found: list[Path] = []
    for folder in folders:
        files = files_below(folder)
        if not files:
            raise CorpusError(f"{folder}: no such folder, or no file in it")
        found += files
    return found


def find_sources(
    folder: Path, languages: Iterable[str], list_file: str = "", adds: Iterable[Path] = (),
    tasks: Iterable[str] = (),
) -> list[Source]:  # fmt: skip
    """All sources of a corpus folder in the wanted languages, and of the wanted tasks.

    The folders `adds` are read besides, without the list. Raises CorpusError if two sources have
    one name, or a language or a task has none.
    """
    wanted, tasked = set(languages), set(tasks)
    found = scan(folder, list_file)
    for add in adds:
        found += scan(add)
    found = [s for s in found if (s.task in tasked if s.task else wanted.issuperset(s.languages))]
    _refuse_namesakes(found)
    for task in sorted(tasked.difference(s.task for s in found)):
        raise CorpusError(f"corpus {folder}: no file *.task-{task}.tsv[.gz]")
    require_languages(found, () if tasked else wanted, f"corpus {folder}")
    return found


def scan(folder: Path, list_file: str = "") -> list[Source]:
    """Every source below a folder, whatever its language."""
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
    for path in files_below(folder):
        relative = path.relative_to(folder)
        if allowed is not None and path not in allowed and relative.parts[0] != "mono":
            continue
        if match := _TSV.match(path.name):
            found.append(Source(match["name"], (match["first"], match["second"]), (path,)))
        elif match := _ONE_WAY.match(path.name):
            found.append(Source(match["name"], (match["first"], match["second"]), (path,), True))
        elif match := _TASK.match(path.name):
            found.append(Source(match["name"], (), (path,), task=match["task"]))
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
            name = os.path.basename(os.path.abspath(parent))
            found.append(Source(name, (first, second), (files[first], files[second])))
    return found


def require_languages(sources: Iterable[Source], languages: Iterable[str], where: str) -> None:
    """Raises CorpusError naming the languages that no source is in."""
    missing = set(languages).difference(*(source.languages for source in sources))
    if missing:
        raise CorpusError(f"{where}: nothing in {', '.join(sorted(missing))}")


def require_directions(sources: Iterable[Source], globs: Iterable[str]) -> None:
    """Raises CorpusError naming a glob over directions that no source of pairs has."""
    pairs = [source for source in sources if len(source.languages) == 2]
    ways = {s.languages for s in pairs} | {s.languages[::-1] for s in pairs if not s.one_way}
    names = sorted("-".join(way) for way in ways)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise CorpusError(f"data.directions: {glob!r} matches nothing; there are pairs for "
                              f"{', '.join(names) or 'no direction'}")  # fmt: skip


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


def skeleton(text: str) -> str:
    """Letters and digits only, case folded: what counts as the same sentence in a leak check."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


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
        if HAN.search(text):
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


def read_columns(path: Path) -> Iterator[list[str]]:
    """The columns of each line, two or more; raises CorpusError naming the line with fewer."""
    for number, line in enumerate(read_lines(path), 1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise CorpusError(f"{path}, line {number}: no tab")
        yield columns


def read_pairs(source: Source) -> Iterator[tuple[str, str]]:
    """Raw pairs of a two-column or line-aligned source; raises CorpusError on a malformed line."""
    if len(source.paths) == 1:
        yield from ((columns[0], columns[1]) for columns in read_columns(source.paths[0]))
        return
    first, second = (read_lines(path) for path in source.paths)
    number = 0
    try:
        for number, pair in enumerate(zip(first, second, strict=True), 1):  # noqa: B007
            yield pair
    except ValueError:
        raise CorpusError(
            f"{source.paths[0]} and {source.paths[1].name}: different numbers of lines, "
            f"one of them ends after line {number}"
        ) from None


def read_scored(source: Source) -> Iterator[tuple[str, str, float]]:
    """Raw pairs with their scores, 0 without one; only one-way files have a column for it."""
    if not source.one_way:
        yield from ((first, second, 0.0) for first, second in read_pairs(source))
        return
    for number, columns in enumerate(read_columns(source.paths[0]), 1):
        score = 0.0
        if len(columns) > 2:
            try:
                score = float(columns[2])
            except ValueError:
                score = math.nan
            if math.isnan(score):
                raise CorpusError(
                    f"{source.paths[0]}, line {number}: score {columns[2]!r} is not a number"
                )
        yield columns[0], columns[1], score


class Cleaner:
    """Applies every rule to every source of a run, remembers what it has seen, and counts.

    Machine translations must also be in the language they claim, among `languages`, and reach
    `min_score`.
    """

    def __init__(self, leaks: LeakCheck | None = None, languages: Sequence[str] = (),
                 min_score: float = -math.inf) -> None:  # fmt: skip
        self.report = Report()
        self.leaks = leaks or LeakCheck()
        self.identifier = Identifier(languages)
        self.min_score = min_score
        self.seen: set[int] = set()

    def pairs(self, source: Source) -> Iterator[tuple[str, str]]:
        for *raw, score in read_scored(source):
            first, second = normalise(raw[0]), normalise(raw[1])
            fault = self._fault(source, first, second, score)
            if fault is None:
                marks = _marks(source, first, second)
                known = any(mark in self.seen for mark in marks)
                fault = "duplicate" if known else self.leaks.fault_of(first, second)
                self.seen.add(marks[-1])
            self.report.add(source.key, fault or "kept")
            if fault is None:
                yield first, second

    def _fault(self, source: Source, first: str, second: str, score: float) -> str | None:
        if source.task:
            return fault_of_task(first, second)
        fault = fault_of_pair(first, second, source.languages)
        if fault is None and source.one_way:
            if score < self.min_score:
                return "low score"
            if not self.identifier.agrees(second, source.languages[1]):
                return "wrong language"
        return fault

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


def _marks(source: Source, first: str, second: str) -> list[int]:
    """What makes a pair a duplicate; the last mark is its own.

    A machine translation repeats one made the same way, or the pair of a person; not the reverse.
    """
    if source.task:
        return [hash64(f"{source.task}\t{first}\t{second}")]
    sides = sorted(zip(source.languages, (first, second), strict=True))
    marks = [hash64("\t".join(f"{code}\t{text}" for code, text in sides))]
    if source.one_way:
        direction = "-to-".join(source.languages)
        marks.append(hash64(f"{direction}\t{first}\t{second}"))
    return marks
