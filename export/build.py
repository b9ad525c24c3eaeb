"""The end of `gpt2-mt build`: a pipeline's final checkpoint as a bundle, verified and scored.

A runner whose stages are done flows in; OUT/bundle flows out, with the scores that the engine which
serves reached, and bundle.json beside it, by which a second command knows that this is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from app.bundle import Bundle
from app.errors import BundleError
from export.bundle import export_bundle, record_scores
from export.errors import ExportError
from export.evaluate import entries, evaluate_text, select
from export.likelihood import table as text_table
from export.manifest import Precision
from export.translator import BundleTranslator
from export.verify import MIN_SENTENCES
from training.errors import CorpusError
from training.results import scores, sets_of
from training.runner import Runner
from training.scores import Scores
from training.view import View

BUNDLE = "bundle"  # the folder, and what the view calls this stage
_SLOTS = 32


@dataclass(frozen=True)
class Built:
    """A bundle, the rows of its scores, and its bits per byte by language as a table."""

    bundle: Bundle
    rows: list[dict[str, Any]]
    text: str

    def section(self) -> str:
        """Markdown for the report."""
        manifest = self.bundle.manifest
        size = sum(entry.bytes for entry in manifest.files.values()) / 1e6
        facts = "\n".join(f"- {key}: {value}" for key, value in manifest.verification.items())
        text = f"\n\n{self.text}" if self.text else ""
        return (
            f"## Bundle\n\n{manifest.model.precision}, {manifest.model.parameters:,} parameters, "
            f"{size:.1f} MB. Scored by the engine that serves, greedily. Verified against the "
            f"checkpoint:\n\n{facts}{text}"
        )


def build_bundle(runner: Runner, precision: Precision, view: View) -> Built:
    """Export, verify and score the final checkpoint, unless OUT/bundle is that already."""
    place = runner.where.out / BUNDLE
    record = place.with_suffix(".json")
    options = runner.pipeline.report
    final = runner.pipeline[runner.pipeline.final]
    checkpoint = runner.checkpoint(final.name)
    pairs = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8")).get("pairs", [])
    tests = sets_of(runner.where.tests, pairs, options.sets, options.limit)
    described = repr((runner.output(final), precision, options, tests))
    mark = sha256(described.encode()).hexdigest()
    if (found := _found(place, record, mark)) is not None:
        view.show(BUNDLE, "done before, skipped")
        return found
    view.show(BUNDLE, "running: export and verification")
    served = {f"{a}-{b}" for a, b in pairs}
    bundle = export_bundle(
        checkpoint, place, precision=precision, name=runner.pipeline.name, force=True,
        testset=_testset(runner.where.tests, served),
        texts=list(dict.fromkeys(line for test in tests for line in test.sources[:20])),
    )  # fmt: skip
    view.show(BUNDLE, "running: scores")
    rows: list[dict[str, Any]] = []
    if tests:
        with BundleTranslator(bundle, batch=_SLOTS) as translate:
            rows = scores(translate, tests, options.lowercase)
    bundle = record_scores(bundle, [e for row in rows for e in entries(Scores(**row))])
    text = _text(bundle, runner.where.tests)
    record.write_text(json.dumps({"mark": mark, "rows": rows, "text": text}), encoding="utf-8")
    view.show(BUNDLE, "done")
    return Built(bundle, rows, text)


def _found(place: Path, record: Path, mark: str) -> Built | None:
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        if values["mark"] == mark:
            return Built(Bundle.open(place), values["rows"], values["text"])
    except (OSError, ValueError, KeyError, TypeError, BundleError):
        pass  # of a build that was stopped: made anew
    return None


def _testset(folders: Iterable[Path], served: set[str]) -> Path | None:
    """The first folder with sentences enough to compare BLEU of two precisions on."""
    for folder in folders:
        try:
            tests = select(folder, served) if served else []
        except (CorpusError, ExportError):  # none in the model's languages
            continue
        if sum(len(test.sources) for test in tests) >= MIN_SENTENCES:
            return folder
    return None


def _text(bundle: Bundle, folders: Iterable[Path]) -> str:
    """Bits per byte by language, on the first folder with lines in them."""
    for folder in folders:
        try:
            return text_table(evaluate_text(bundle.path, folder))
        except (CorpusError, ExportError):
            continue
    return ""
