"""The benchmark of shortlists: what it counts, and that it comes to its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.bundle import Bundle
from app.tasks.shortlist import Shortlist
from app.text.tokenizer import TextTokenizer
from benchmarks import shortlist
from benchmarks.shortlist import coverage
from training.scores import TestSet


def test_coverage_counts_the_references_tokens(
    listed_bundle: Bundle, sentences: list[str]
) -> None:
    sources, references = tuple(sentences[:3]), tuple(sentences[6:9])
    size, share = coverage(listed_bundle, TestSet("t", "en", "de", sources, references))
    tokenizer, listed = TextTokenizer.of(listed_bundle), Shortlist.of(listed_bundle)
    only = [listed.candidates("en", "de", tokenizer.encode(s, param="")) for s in sources]
    wanted = [tokenizer.encode(r, param="") for r in references]
    assert size == np.mean([one.ids.size for one in only if one])
    hits = [i in one.ids for one, ids in zip(only, wanted, strict=True) if one for i in ids]
    assert share == np.mean(hits) < 1
    vocabulary = listed_bundle.manifest.model.vocabulary
    assert coverage(listed_bundle, TestSet("t", "en", "zh", sources, references)) == (vocabulary, 1)


def test_tables(
    listed_bundle: Bundle, sentences: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(shortlist, "BATCHES", (1, 4))
    for code, lines in (("en", sentences[:3]), ("de", sentences[6:9])):
        (tmp_path / f"toy.{code}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["--bundle", str(listed_bundle.path), "--tests", str(tmp_path), "--pairs", "en-de",
             "--rounds", "1", "--threads", "1", "--out", str(tmp_path / "out")]  # fmt: skip
    assert shortlist.main(words) == 0
    text = capsys.readouterr().out
    assert "| toy en-de | 3 |" in text and text.count("\n| ") == 5
    assert [path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir()] == [text]
