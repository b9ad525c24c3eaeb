"""Lines of a test set through the engine: in order, and as if each were alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.bundle import Bundle
from export.errors import ExportError
from export.evaluate import (
    BundleTranslator,
    Result,
    better_through,
    evaluate,
    evaluate_text,
    open_translator,
    routed,
    translate_lines,
    ways,
)
from export.likelihood import measure_of, table
from training.scores import TestSet

LINES = ["Good morning.", "", "The train is late again, as ever, my friend.", "x", "7 cats"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_lines_come_back_in_order_as_if_alone(
    request: pytest.FixtureRequest, precision: str
) -> None:
    bundle: Bundle = request.getfixturevalue(f"{precision}_bundle")
    with BundleTranslator(bundle, batch=3) as translate:
        together = translate(LINES, "en", "de")
        alone = [translate([line], "en", "de")[0] for line in LINES]
    assert together == alone
    assert {result.finish_reason for result in together} <= {"stop", "length"}


def test_bleu_folds_case_when_asked_to() -> None:
    test = TestSet("s", "en", "de", ("a b c d",), ("Ein Tag am See",))

    def translate(*_: object) -> list[Result]:
        return [Result("ein tag am see", "stop")]

    [cased], [folded] = (evaluate(translate, [test], lowercase=fold) for fold in (False, True))
    assert cased.bleu < folded.bleu == pytest.approx(100)
    assert "case:lc" in folded.bleu_signature and cased.chrf == folded.chrf


def test_a_route_is_two_translations() -> None:
    asked = []

    def translate(lines: Sequence[str], source: str, target: str) -> list[Result]:
        asked.append((source, target))
        return [Result(f"{line} {target}", "length" if line == "b" else "stop") for line in lines]

    through = routed(translate, {"de-zh": "en"})
    assert through(["a", "b"], "de", "zh") == [("a en zh", "stop"), ("b en zh", "length")]
    assert through(["a"], "zh", "de") == [("a de", "stop")]
    assert asked == [("de", "en"), ("en", "zh"), ("zh", "de")]


def test_ways_are_the_bundles_or_those_asked_for(fp32_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(fp32_bundle.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "via": {"de-fr": "en"}}))
    served = {f"{a}-{b}" for a, b in fp32_bundle.manifest.pairs}
    assert ways(folder, served, None) == {"de-fr": "en"}
    assert ways(folder, served, "none") == ways(tmp_path, served, None) == {}
    assert ways(folder, {"de-en", "en-fr", "fr-en", "de-fr"}, "en") == {"de-fr": "en"}
    with pytest.raises(ExportError, match="--pivot xx: no pair"):
        ways(folder, served, "xx")


def test_the_better_way_is_found_by_mean_bleu(tmp_path: Path) -> None:
    def write(name: str, pivot: str | None, **bleu: float) -> Path:
        rows = [{"set": key[:1], "source": key[1:3], "target": key[3:], "bleu": value}
                for key, value in bleu.items()]  # fmt: skip
        (tmp_path / name).write_text(json.dumps({"pivot": pivot, "rows": rows, "scores": []}))
        return tmp_path / name

    one = write("one", None, adezh=5, bdezh=3, afrzh=2, aende=1, czhde=1)
    two = write("two", "en", adezh=4, bdezh=5, afrzh=2, aende=9, dzhde=9)
    assert better_through(one, two) == {"de-zh": "en"}
    with pytest.raises(ExportError, match="is not of `evaluate --pivot"):
        better_through(two, one)
    (tmp_path / "bad").write_text("[]")
    with pytest.raises(ExportError, match="'.*bad' cannot be read"):
        better_through(one, tmp_path / "bad")


def test_a_line_that_does_not_fit_is_counted_not_fatal(fp32_bundle: Bundle) -> None:
    results = translate_lines(fp32_bundle.path, ["long " * 400, "short"], "en", "fr", batch=2)
    assert results[0] == Result("", "length")
    assert len(results) == 2
    assert translate_lines(fp32_bundle, [], "en", "fr") == []


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
