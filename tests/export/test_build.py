"""The end of `gpt2-mt build`: when a bundle counts as done, and what its manifest and section say.

The whole command is in tests/test_pipeline.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from app.bundle import Bundle, ScoreEntry
from export.build import Built, _found, _testset
from export.bundle import record_scores


@pytest.fixture
def bundle(tmp_path: Path, int8_bundle: Bundle) -> Bundle:
    """A copy that may be changed."""
    return Bundle.open(shutil.copytree(int8_bundle.path, tmp_path / "bundle"))


def test_scores_are_recorded_in_the_manifest(bundle: Bundle) -> None:
    entry = ScoreEntry(set="s", source="en", target="de", metric="BLEU", value=12.5,
                       signature="tok:13a")  # fmt: skip
    changed = record_scores(bundle, [entry])
    assert changed.manifest.scores == (entry,)
    assert changed.manifest.model_copy(update={"scores": ()}) == bundle.manifest.model_copy(
        update={"scores": ()}
    )
    assert sorted(p.name for p in bundle.path.iterdir()) == sorted(
        [*bundle.manifest.files, "manifest.json"]
    )


def test_a_bundle_is_done_if_made_of_the_same_and_whole(tmp_path: Path, bundle: Bundle) -> None:
    record = tmp_path / "bundle.json"
    assert _found(bundle.path, record, "mark") is None
    record.write_text(json.dumps({"mark": "mark", "rows": [{"bleu": 1.0}], "text": "t"}))
    found = _found(bundle.path, record, "mark")
    assert found is not None and found.rows == [{"bleu": 1.0}]
    assert _found(bundle.path, record, "other") is None
    record.write_text('{"mark": "ma')
    assert _found(bundle.path, record, "mark") is None
    record.write_text(json.dumps({"mark": "mark", "rows": [], "text": ""}))
    (bundle.path / "model.onnx").unlink()
    assert _found(bundle.path, record, "mark") is None


def test_precisions_are_compared_where_there_are_sentences_enough(tmp_path: Path) -> None:
    sizes = {"none": 9, "few": 9, "many": 600, "more": 900}
    for name, lines in sizes.items():
        languages = "ja ko" if name == "none" else "en de"
        (tmp_path / name).mkdir()
        for code in languages.split():
            (tmp_path / name / f"set.{code}").write_text("a line\n" * lines)
    folders = [tmp_path / name for name in sizes]
    assert _testset(folders, {"en-de", "de-en"}) == tmp_path / "many"
    assert _testset(folders, {"en-de"}) is None, "900 sentences in one direction are too few"
    assert _testset(folders, set()) is None


def test_the_section_of_the_report(bundle: Bundle) -> None:
    section = Built(bundle, [], "| language |").section()
    assert section.startswith("## Bundle\n\nint8, ") and section.endswith("| language |")
    assert f"{bundle.manifest.model.parameters:,} parameters" in section
