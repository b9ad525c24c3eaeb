"""Scoring test sets with a bundle or a checkpoint.

A folder of test sets and a translator (a bundle's engine, or a checkpoint's torch model) flow in;
every direction is scored, and hypotheses and results go into files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.bundle import MANIFEST, Bundle, ScoreEntry
from export.errors import ExportError
from export.likelihood import TextLoss, measure_of
from export.served import served_translator
from export.translator import BundleTranslator, Translate

if TYPE_CHECKING:
    from training.scores import Scores, TestSet


IDENTIFIED = ("en", "zh", "de", "fr", "es", "ja", "ru", "cs", "it", "nl", "pt")  # told apart


def evaluate(
    translate: Translate,
    tests: Iterable[TestSet],
    *,
    lowercase: bool = False,
    via: Mapping[str, str] | None = None,
    served: bool = False,
    out: Path | None = None,
    progress: Callable[[Scores, float], None] = lambda scores, seconds: None,
) -> list[Scores]:
    """Translate and score every test set; hypotheses and results.json go to `out`.

    `lowercase` folds case in BLEU; `via` (pair to the language it goes through) and `served` are
    recorded.
    """
    from training.behaviour import observe
    from training.rules import Identifier
    from training.scores import score

    rows: list[Scores] = []
    identifier = Identifier(IDENTIFIED)
    for test in tests:
        begin = time.monotonic()
        results = translate(test.sources, test.source, test.target)
        behaviour = observe(test, results, identifier)
        rows.append(replace(score(test, results, lowercase), behaviour=behaviour))
        progress(rows[-1], time.monotonic() - begin)
        if out is not None:
            _write_hypotheses(out, test, results)
            _write_results(out, rows, via or {}, served)
    return rows


def evaluate_text(
    model: str | Path, folder: Path, sets: Sequence[str] = (), limit: int | None = None,
    out: Path | None = None,
) -> dict[str, TextLoss]:  # fmt: skip
    """Perplexity and bits per byte of the test sets' lines in each of the model's languages."""
    from training.scores import lines_of

    lines = lines_of(folder, languages_of(Path(model)), sets, limit or 100)
    measure = measure_of(model)
    losses = {language: measure(texts) for language, texts in lines.items()}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        data = {
            code: {**loss._asdict(), "perplexity": loss.perplexity, "bits_per_byte": loss.per_byte}
            for code, loss in losses.items()
        }
        (out / "languages.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return losses


def languages_of(folder: Path) -> list[str]:
    """The languages of a bundle or a checkpoint."""
    if (folder / MANIFEST).is_file():
        return list(Bundle.open(folder).manifest.languages)
    if not (folder / "meta.json").is_file():
        raise ExportError(f"{str(folder)!r} is neither a bundle nor a checkpoint")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return list(meta.get("languages", {}))


def open_translator(
    model: str | Path,
    batch: int,
    beam: int = 1,
    length_penalty: float = 1.0,
    shortlist: bool = False,
    served: bool = False,
) -> tuple[AbstractContextManager[Translate], set[str]]:
    """A translator for a bundle or a checkpoint, and the directions ("en-de") it was made for.

    `served`: what the server answers with, which a bundle alone can tell.
    """
    folder = Path(model)
    if (folder / MANIFEST).is_file():
        bundle = Bundle.open(folder)
        pairs = {f"{a}-{b}" for a, b in bundle.manifest.pairs}
        if served:
            return served_translator(
                folder, beam=beam, length_penalty=length_penalty, shortlist=shortlist
            ), pairs
        opened = BundleTranslator(
            bundle, batch=batch, beam=beam, length_penalty=length_penalty, shortlist=shortlist
        )
        return opened, pairs
    for option, given in (("--shortlist", shortlist), ("--served", served)):
        if given:
            raise ExportError(f"{option}: {str(folder)!r} is no bundle")
    if not (folder / "meta.json").is_file():
        raise ExportError(f"{str(folder)!r} is neither a bundle nor a checkpoint")
    from training.evaluate import checkpoint_translator  # torch

    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    pairs = {f"{a}-{b}" for a, b in meta.get("pairs", [])}
    translator = checkpoint_translator(folder, batch, beam=beam, length_penalty=length_penalty)
    return nullcontext(translator), pairs


def select(
    folder: Path,
    served: Collection[str],
    sets: Sequence[str] = (),
    pairs: Sequence[str] = (),
    limit: int | None = None,
) -> list[TestSet]:
    """The test sets asked for, of the directions that the model serves."""
    from training.scores import find_sets

    unknown = [pair for pair in pairs if pair not in served]
    if unknown:
        raise ExportError(f"pairs {unknown} are not among the model's: {sorted(served)}")
    languages = sorted({code for pair in served for code in pair.split("-", 1)})
    wanted = set(pairs or served)
    found = find_sets(folder, languages, sets, limit or 0)
    tests = [test for test in found if f"{test.source}-{test.target}" in wanted]
    if not tests:
        raise ExportError(f"{str(folder)!r} has no test set for {sorted(wanted)}")
    return tests


def entries(scores: Scores) -> list[ScoreEntry]:
    """Scores as a manifest records them."""
    where = {"set": scores.set, "source": scores.source, "target": scores.target}
    return [
        ScoreEntry(**where, metric="BLEU", value=scores.bleu, signature=scores.bleu_signature),
        ScoreEntry(**where, metric="chrF", value=scores.chrf, signature=scores.chrf_signature),
    ]


def _write_hypotheses(out: Path, test: TestSet, results: Sequence[tuple[str, str]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(" ".join(text.splitlines()) + "\n" for text, _ in results)
    (out / f"{test.name}.{test.source}-{test.target}.hyp").write_text(text, encoding="utf-8")


def _write_results(
    out: Path, rows: Sequence[Scores], via: Mapping[str, str], served: bool
) -> None:
    data: dict[str, object] = {
        "via": dict(via),
        "served": served,
        "scores": [entry.model_dump() for row in rows for entry in entries(row)],
        "rows": [row.as_dict() for row in rows],
    }
    text = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
    (out / "results.json").write_text(text, encoding="utf-8")
