"""Test sets and their scores: sacreBLEU's BLEU and chrF with signatures, and health counts.

A folder of aligned files `<set>.<language>[.gz]` flows in; figures flow out. No torch here, so that
a bundle can be scored where only the serving packages and sacreBLEU are installed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from training.corpus import read_lines
from training.errors import CorpusError

if TYPE_CHECKING:
    from training.behaviour import Behaviour

_FILE = re.compile(r"(?P<name>.+?)\.(?P<language>[a-z]{2,3})(\.gz)?$")
_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char"}  # sacreBLEU's; 13a for all others


@dataclass(frozen=True)
class TestSet:
    """One direction of one set: aligned lines."""

    __test__ = False  # not a test case, whatever its name says to a collector
    name: str
    source: str
    target: str
    sources: tuple[str, ...]
    references: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """BLEU and chrF2 in 0..100 with signatures; shares in 0..1 of outputs that went wrong."""

    set: str
    source: str
    target: str
    sentences: int
    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str
    cut: float  # outputs that hit the length limit
    looping: float  # outputs that hold one 4-gram four times or more
    behaviour: Behaviour | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def find_sets(
    folder: Path, languages: Iterable[str], names: Sequence[str] = (), limit: int = 0
) -> list[TestSet]:
    """Every direction of every set in the languages; the first `limit` lines of each if given.

    Raises CorpusError if the folder has none, lines differ in number, or a name is unknown.
    """
    wanted = set(languages)
    files: dict[str, dict[str, Path]] = {}
    if not folder.is_dir():
        raise CorpusError(f"test sets {folder}: no such folder")
    for path in sorted(folder.iterdir()):
        match = _FILE.match(path.name)
        if match and match["language"] in wanted:
            files.setdefault(match["name"], {})[match["language"]] = path
    sets = {name: of for name, of in files.items() if len(of) > 1}
    for name in names:
        if name not in sets:
            raise CorpusError(f"test set {name!r}: not in {folder}; there are {', '.join(sets)}")
    if not sets:
        raise CorpusError(f"test sets {folder}: no set in two of {', '.join(sorted(wanted))}")
    found = []
    for name in names or sets:
        lines = {code: tuple(read_lines(path)) for code, path in sets[name].items()}
        if len({len(side) for side in lines.values()}) > 1:
            sizes = ", ".join(f"{code} {len(side)}" for code, side in lines.items())
            raise CorpusError(f"test set {name!r}: its files differ in lines: {sizes}")
        for source, target in permutations(lines, 2):
            stop = limit or None
            found.append(
                TestSet(name, source, target, lines[source][:stop], lines[target][:stop])
            )
    return found


def lines_of(
    folder: Path, languages: Iterable[str], names: Sequence[str] = (), limit: int = 100
) -> dict[str, list[str]]:
    """By language the first `limit` lines of each set, every line once: for perplexity."""
    lines: dict[str, dict[str, None]] = {}
    for test in find_sets(folder, languages, names, limit):
        lines.setdefault(test.source, {}).update(dict.fromkeys(test.sources))
    return {language: list(of) for language, of in sorted(lines.items())}


def score(
    test: TestSet, hypotheses: Sequence[tuple[str, str]], lowercase: bool = False
) -> Scores:
    """Scores of (text, finish reason) for each line of the set, in order.

    `lowercase` folds case in BLEU, as published Multi30k scores do (signature `case:lc`).
    """
    if len(hypotheses) != len(test.references):  # sacreBLEU would score the shorter part
        raise ValueError(
            f"{len(hypotheses)} outputs for {len(test.references)} lines of {test.name}"
        )
    texts = [text for text, _ in hypotheses]
    bleu = BLEU(lowercase=lowercase, tokenize=_TOKENIZERS.get(test.target, "13a"))
    chrf = CHRF()
    references = [list(test.references)]
    bleu_score = bleu.corpus_score(texts, references).score
    chrf_score = chrf.corpus_score(texts, references).score
    count = max(1, len(texts))
    return Scores(
        test.name, test.source, test.target, len(texts),
        round(bleu_score, 2), str(bleu.get_signature()),
        round(chrf_score, 2), str(chrf.get_signature()),
        sum(reason == "length" for _, reason in hypotheses) / count,
        sum(loops(text) for text in texts) / count,
    )  # fmt: skip


def loops(text: str) -> bool:
    """Whether one 4-gram of words (of characters where words are not spaced) comes four times."""
    units = text.split() if text.count(" ") * 12 > len(text) else list(text.replace(" ", ""))
    grams = Counter(tuple(units[i : i + 4]) for i in range(len(units) - 3))
    return bool(grams) and max(grams.values()) >= 4


def table(rows: Sequence[Scores]) -> str:
    """A Markdown table, with the signatures below it."""
    lines = [
        "| set | direction | sentences | BLEU | chrF | cut | looping |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r.set} | {r.source}-{r.target} | {r.sentences} | {r.bleu:.1f} | {r.chrf:.1f} "
        f"| {100 * r.cut:.1f} % | {100 * r.looping:.1f} % |"
        for r in rows
    ]
    signatures = sorted({r.bleu_signature for r in rows} | {r.chrf_signature for r in rows})
    return "\n".join([*lines, "", *(f"- `{s}`" for s in signatures)])
