"""results.json of a run: its final validation figures, and the scores of its checkpoint.

A run's metrics.jsonl and test sets flow in; figures with the signatures of their metrics flow out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from training.corpus import read_lines
from training.errors import CorpusError
from training.scores import TestSet, find_sets, score

FILE = "results.json"
SIGNATURES = {
    "loss": "mean nats per target token of held-out examples, teacher-forced",
    "perplexity": "exp(loss)",
    "bits_per_byte": "loss in bits over the UTF-8 bytes of the target text",
    "bleu": "sacreBLEU of greedy translations of at most 200 held-out pairs (distil.selective)",
    "teacher_bleu": "the teacher's on the same pairs",
    "<objective>_loss": "mean nats per position of that objective on held-out text",
    "<objective>_accuracy": "share of right answers, in 0..1",
    "<objective>_base": "share of the commoner answer, which one who always gives it gets right",
}
Translate = Callable[[Sequence[str], str, str], Sequence[tuple[str, str]]]


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The entries of a run's log; a half-written last line is left out."""
    log = folder / "metrics.jsonl"
    for line in read_lines(log) if log.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            return


def read_results(folder: Path) -> dict[str, Any]:
    """What results.json says; empty without one or with a damaged one, which is then made anew."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def validations(entries: Sequence[dict[str, Any]]) -> Iterator[tuple[int, str, str, float]]:
    """(step, direction or language, figure, value) of every validation in a log."""
    for entry in entries:
        for key, value in entry.items():
            parts = key.split("/")
            if parts[0] == "valid" and len(parts) > 2:
                yield entry["step"], "/".join(parts[1:-1]), parts[-1], value


def write_validation(folder: Path) -> None:
    """Write results.json after the last step: the figures of the last validation, no scores yet."""
    entries = list(read_metrics(folder))
    figures: dict[str, dict[str, float]] = {}
    for _, tag, name, value in validations(entries):  # later ones replace earlier ones
        figures.setdefault(tag, {})[name] = value
    last = entries[-1] if entries else {}
    write(folder, {
        "step": last.get("step", 0), "seconds": last.get("elapsed_s", 0.0),
        "signatures": SIGNATURES, "validation": figures,
    })  # fmt: skip


def write(folder: Path, values: dict[str, Any]) -> None:
    """Replace results.json in one move."""
    temporary = folder / f"{FILE}.partial"
    temporary.write_text(
        json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    temporary.replace(folder / FILE)


def sets_of(
    folders: Sequence[Path], pairs: Sequence[Sequence[str]], globs: Sequence[str], limit: int
) -> list[TestSet]:
    """The test sets of the pairs whose names match, `limit` lines of each (0: all).

    Folders without one are passed over.
    """
    wanted = {tuple(pair) for pair in pairs}
    languages = {code for pair in wanted for code in pair}
    found: list[TestSet] = []
    for folder in folders if wanted else ():
        try:
            sets = find_sets(folder, languages, limit=limit)
        except CorpusError:  # a folder of other languages, given for the leak check
            continue
        found += [
            test for test in sets
            if (test.source, test.target) in wanted
            and any(fnmatchcase(test.name, glob) for glob in globs)
        ]  # fmt: skip
    return found


def scores(
    translate: Translate, tests: Sequence[TestSet], lowercase: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row of `scores.Scores` a test set."""
    rows = []
    for test in tests:
        progress(f"scores of {test.name} {test.source}-{test.target}")
        outputs = translate(test.sources, test.source, test.target)
        rows.append(score(test, outputs, lowercase).as_dict())
    return rows
