"""Pairs that go through a third language."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.bundle import Bundle
from export.errors import ExportError
from export.routes import compare, recorded, routed, ways
from export.translator import Result


def test_a_route_is_two_translations() -> None:
    asked = []

    def translate(lines: Sequence[str], source: str, target: str) -> list[Result]:
        asked.append((source, target))
        return [Result(f"{line} {target}", "length" if line == "b" else "stop") for line in lines]

    through = routed(translate, {"de-zh": "en"})
    assert through(["a", "b"], "de", "zh") == [("a en zh", "stop"), ("b en zh", "length")]
    assert through(["a"], "zh", "de") == [("a de", "stop")]
    assert asked == [("de", "en"), ("en", "zh"), ("zh", "de")]


def test_where_the_first_step_says_nothing_the_text_itself_goes_on() -> None:
    def translate(lines: Sequence[str], source: str, target: str) -> list[Result]:
        return [Result("" if target == "en" else line.upper(), "stop") for line in lines]

    assert routed(translate, {"de-zh": "en"})(["a"], "de", "zh") == [("A", "stop")]  # as served


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


def results(path: Path, via: dict[str, str], signature: str = "s", **bleu: float) -> Path:
    """As `evaluate` writes them; `adezh=5` is 5 BLEU and 10 chrF of set a, de-zh, `adezh=5.5` the
    same of 5.5 and, as its tenths are odd, 1 chrF."""
    rows, scores = [], []
    for key, value in bleu.items():
        at = {"set": key[:1], "source": key[1:3], "target": key[3:]}
        chrf = 1.0 if value % 1 else 2 * value
        rows.append({**at, "bleu": value, "chrf": chrf, "sentences": 9,
                     "bleu_signature": signature, "chrf_signature": "c"})  # fmt: skip
        scores.append({**at, "metric": "BLEU", "value": value, "signature": signature})
    path.write_text(json.dumps({"via": via, "rows": rows, "scores": scores}))
    return path


def test_the_better_way_is_found_and_its_scores_are_kept(tmp_path: Path) -> None:
    ways_two = {"de-zh": "en", "fr-zh": "en", "de-fr": "en"}
    one = results(tmp_path / "one", {}, adezh=5, bdezh=3, cdezh=9, afrzh=2, aende=1, adefr=5)
    two = results(tmp_path / "two", ways_two, adezh=4, bdezh=5, afrzh=2, aende=9, adefr=5.5)
    via, scores = compare(one, two)
    assert via == {"de-zh": "en"}, "fr-zh is no better, de-fr by one metric only"
    found = {(s.set, s.source, s.target): s.value for s in scores}
    assert found == {("a", "de", "zh"): 4, ("b", "de", "zh"): 5, ("a", "fr", "zh"): 2,
                     ("a", "en", "de"): 1, ("a", "de", "fr"): 5}  # fmt: skip
    assert recorded(two).via == ways_two and recorded(one).via is None


def test_results_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    one = results(tmp_path / "one", {}, adezh=5)
    two = results(tmp_path / "two", {"de-zh": "en"}, adezh=4)
    with pytest.raises(ExportError, match="'.*one' is not of `evaluate --pivot"):
        compare(one, one)
    with pytest.raises(ExportError, match="'.*two' has pairs that go through another language"):
        compare(two, two)
    other = results(tmp_path / "other", {"de-zh": "en"}, signature="lc", adezh=4)
    with pytest.raises(ExportError, match="other': a de-zh has bleu_signature 'lc', in .* 's'"):
        compare(one, other)
    (tmp_path / "bare").write_text("[]")
    with pytest.raises(ExportError, match="'.*bare' is not of `evaluate --pivot"):
        compare(one, tmp_path / "bare")
    (tmp_path / "bad").write_text("{}")
    with pytest.raises(ExportError, match="'.*bad' cannot be read"):
        compare(one, tmp_path / "bad")
