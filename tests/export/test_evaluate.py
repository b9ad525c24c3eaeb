"""Scores of test sets, and of text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.bundle import Bundle
from export.errors import ExportError
from export.evaluate import evaluate, evaluate_text, open_translator
from export.likelihood import measure_of, table
from export.translator import Result
from training.scores import TestSet


def test_bleu_folds_case_when_asked_to() -> None:
    test = TestSet("s", "en", "de", ("a b c d",), ("Ein Tag am See",))

    def translate(*_: object) -> list[Result]:
        return [Result("ein tag am see", "stop")]

    [cased], [folded] = (evaluate(translate, [test], lowercase=fold) for fold in (False, True))
    assert cased.bleu < folded.bleu == pytest.approx(100)
    assert "case:lc" in folded.bleu_signature and cased.chrf == folded.chrf


def test_a_folder_that_is_no_model_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ExportError, match="neither"):
        open_translator(tmp_path_factory.mktemp("empty"), 4)


def test_bundle_and_checkpoint_find_text_equally_probable(
    fp32_bundle: Bundle, random_checkpoint: Path, sentences: list[str]
) -> None:
    texts = [*sentences, "a", "weather " * 200]  # the last is longer than the context
    of_bundle, of_checkpoint = (measure_of(m)(texts) for m in (fp32_bundle.path, random_checkpoint))
    assert of_bundle.tokens == of_checkpoint.tokens
    assert of_bundle.bytes == of_checkpoint.bytes
    assert of_bundle.bits == pytest.approx(of_checkpoint.bits, rel=1e-5)


def test_text_is_measured_in_each_language(fp32_bundle: Bundle, tmp_path: Path) -> None:
    for code, lines in {"en": "One.\nTwo.\nTwo.\n", "de": "Eins.\nZwei.\nDrei.\n"}.items():
        (tmp_path / f"small.{code}").write_text(lines, encoding="utf-8")
    losses = evaluate_text(fp32_bundle.path, tmp_path, out=tmp_path / "out")
    assert {code: loss.bytes for code, loss in losses.items()} == {"en": 8, "de": 15}
    assert losses["en"].perplexity > 1
    saved = json.loads((tmp_path / "out" / "languages.json").read_text(encoding="utf-8"))
    assert saved["de"]["bits_per_byte"] == pytest.approx(losses["de"].bits / 15)
    assert table(losses).count("\n") == 3


def test_checkpoints_are_evaluated_as_the_server_translates() -> None:
    from app.tasks.attempts import SAMPLING
    from training.evaluate import NGRAM_REPEATS, NO_REPEAT_NGRAM

    assert (SAMPLING.no_repeat_ngram, SAMPLING.ngram_repeats) == (NO_REPEAT_NGRAM, NGRAM_REPEATS)
