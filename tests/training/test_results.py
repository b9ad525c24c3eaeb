"""results.json says what the last validation found and, by test set, how translations scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from training.results import (
    FILE,
    read_metrics,
    read_results,
    scores,
    sets_of,
    validations,
    write,
    write_validation,
)

LOG = [
    {"step": 1, "loss": 9.0, "elapsed_s": 0.5, "valid/en-de/loss": 5.0, "valid/en/loss": 4.0},
    {"step": 2, "loss": 8.0, "elapsed_s": 1.0},
    {"step": 3, "loss": 7.0, "elapsed_s": 1.5, "valid/en-de/loss": 3.0,
     "valid/en-de/bits_per_byte": 1.5},
]  # fmt: skip


def write_log(folder: Path, more: str = "") -> None:
    text = "".join(json.dumps(entry) + "\n" for entry in LOG)
    (folder / "metrics.jsonl").write_text(text + more, encoding="utf-8")


def test_the_last_figures_count(tmp_path: Path) -> None:
    write_log(tmp_path)
    write_validation(tmp_path)
    results = read_results(tmp_path)
    assert (results["step"], results["seconds"]) == (3, 1.5)
    assert results["validation"] == {
        "en-de": {"loss": 3.0, "bits_per_byte": 1.5}, "en": {"loss": 4.0}
    }  # fmt: skip
    assert "bits" in results["signatures"]["bits_per_byte"]
    assert "held-out pairs" in results["signatures"]["bleu"]
    assert list(validations(LOG))[0] == (1, "en-de", "loss", 5.0)


def test_half_written_lines_and_damaged_files_are_no_results(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path)) == [] and read_results(tmp_path) == {}
    write_log(tmp_path, '{"step": 4, "lo')
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3]
    for text in ("{", "[1]"):
        (tmp_path / FILE).write_text(text)
        assert read_results(tmp_path) == {}
    write(tmp_path, {"step": 1})
    assert read_results(tmp_path) == {"step": 1}
    assert not list(tmp_path.glob("*.partial"))


def write_sets(folder: Path) -> None:
    for name, languages in (("a", "en de fr"), ("b", "en de"), ("c", "zh ja")):
        folder.mkdir(exist_ok=True)
        for code in languages.split():
            (folder / f"{name}.{code}").write_text(f"{code} a b c d e\n" * 3)


def test_which_sets_are_scored(tmp_path: Path) -> None:
    write_sets(tmp_path / "tests")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "d.ja").write_text("x\n")
    folders = [tmp_path / "other", tmp_path / "tests"]
    pairs = [("en", "de"), ("fr", "en")]

    def found(globs: Sequence[str]) -> list[tuple[str, str, str]]:
        return [(t.name, t.source, t.target) for t in sets_of(folders, pairs, globs, 2)]

    assert found(["*"]) == [("a", "en", "de"), ("a", "fr", "en"), ("b", "en", "de")]
    assert found(["b", "x"]) == [("b", "en", "de")]
    assert found([]) == []
    assert sets_of(folders, [], ["*"], 2) == []
    assert [len(t.sources) for t in sets_of(folders, pairs, ["b"], 2)] == [2]
    assert [len(t.sources) for t in sets_of(folders, pairs, ["b"], 0)] == [3]


def test_scores_carry_signatures(tmp_path: Path) -> None:
    write_sets(tmp_path)
    tests = sets_of([tmp_path], [("en", "de")], ["b"], 0)

    def translate(lines: Sequence[str], source: str, target: str) -> list[tuple[str, str]]:
        return [(line.replace(source, target).upper(), "stop") for line in lines]

    cased, = scores(translate, tests)
    folded, = scores(translate, tests, lowercase=True)
    assert folded["bleu"] > cased["bleu"]
    assert "case:mixed" in cased["bleu_signature"] and "case:lc" in folded["bleu_signature"]
    assert (folded["set"], folded["source"], folded["target"]) == ("b", "en", "de")
