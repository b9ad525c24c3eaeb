"""The report holds what the folders hold: every stage, figures that are there, signed scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from training.pipeline import Pipeline, load_pipeline
from training.report import write_report

PIPELINE = """
[defaults]
model = "test"
minutes = 2.0
dropout = 0.25
data = { languages = ["en", "de"], max_tokens = 64 }
[[stages]]
name = "tokenizer"
kind = "tokenizer"
vocabulary = 400
[[stages]]
name = "pretrained"
kind = "pretrain"
[[stages]]
name = "teacher"
kind = "finetune"
init = "pretrained"
data = { directions = ["en-de"] }
[[stages]]
name = "forward"
kind = "translate"
teacher = "teacher"
direction = "en-de"
sources = ["*"]
[[stages]]
name = "student"
kind = "finetune"
adds = ["forward"]
"""


def row(source: str, target: str, bleu: float, name: str = "set") -> dict[str, Any]:
    return {"set": name, "source": source, "target": target, "sentences": 7, "bleu": bleu,
            "bleu_signature": f"tok:{target}|bleu", "chrf": 2 * bleu, "chrf_signature": "nc:6",
            "cut": 0.0, "looping": 0.0}  # fmt: skip


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """With folders as a run would have left them."""
    file = tmp_path / "small.toml"
    file.write_text(PIPELINE, encoding="utf-8")
    out = tmp_path / "out"
    put(out / "tokenizer" / "stage.json", {"done": True, "seconds": 1.0})
    (out / "tokenizer" / "report.txt").write_text("sample\nlanguage bytes/token\nen 4.25\n")
    put(out / "forward" / "stage.json", {"done": True, "seconds": 3661.0})
    put(out / "forward" / "a.en-to-de.json", {"counts": {"kept": 1990, "too long": 10}})
    (out / "forward" / "a.en-to-de.tsv.gz").touch()
    for name, terms in (("pretrained", ("causal", "masking")), ("teacher", ("translation",)),
                        ("student", ("translation",))):  # fmt: skip
        log = [{"step": i, "loss": 5.0 / i, **{f"loss/{t}": 4.0 / i for t in terms},
                "elapsed_s": i, "valid/en-de/bits_per_byte": 3.0 / i} for i in range(1, 9)]
        folder = out / name
        put(folder / "stage.json", {"done": True, "seconds": 125.0})
        put(folder / "checkpoint" / "meta.json", {"step": 8, "tokens": 12345})
        rows = {"teacher": [row("en", "de", 30.0)],
                "student": [row("en", "de", 31.0), row("de", "en", 21.0)]}  # fmt: skip
        put(folder / "results.json", {
            "validation": {"en-de": {"loss": 1.5, "bits_per_byte": 0.375}},
            "signatures": {"loss": "nats", "bits_per_byte": "bits over bytes"},
            "scores": rows.get(name, []),
        })  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
        (folder / "corpus.txt").write_text(f"source  read  kept\n{name}-source  10  9\n")
    return load_pipeline(file)


def put(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def test_every_part_is_there(tmp_path: Path, pipeline: Pipeline) -> None:
    file = write_report(pipeline, tmp_path / "out")
    text = file.read_text(encoding="utf-8")
    assert file.name == "report.md" and text.startswith("# small\n")
    headings = re.findall(r"^##+ (.*)$", text, re.M)
    assert headings == ["Scores", "set", "tokenizer", "pretrained", "teacher", "forward",
                        "student", "Where it was made"]  # fmt: skip
    assert "| **student** | finetune | test | 8 | 12,345 | 2 min 05 s | 0.375 |" in text
    assert "| forward | translate |  |  |  | 1 h 01 min |  |" in text
    assert "en 4.25" in text and "teacher-source  10  9" in text
    assert "| en-de | 1.5 | 0.375 |" in text and "- bits_per_byte: bits over bytes" in text
    teacher = text.partition("## teacher\n")[2].partition("## forward")[0]
    assert 'data.directions = ["en-de"]' in teacher and "dropout = 0.25" in teacher
    assert "| a.en-to-de.tsv.gz | 1,990 | 10 |" in text and "| file | kept | too long |" in text
    assert "source_loss" not in teacher, "defaults are not listed"
    assert re.search(r"Python 3\S+, torch \S+", text) and "- Commit " in text


def test_figures_that_are_named_exist(tmp_path: Path, pipeline: Pipeline) -> None:
    out = tmp_path / "out"
    text = write_report(pipeline, out).read_text(encoding="utf-8")
    named = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert sorted(named) == sorted(
        ["figures/scores-set.png"] + [f"figures/{stage}-{kind}.png" for kind in ("loss", "valid")
                                      for stage in ("pretrained", "teacher", "student")]
    )  # fmt: skip
    for path in named:
        assert (out / path).read_bytes().startswith(b"\x89PNG")


def test_scores_stand_beside_each_other_with_signatures(
    tmp_path: Path, pipeline: Pipeline
) -> None:
    bundle = [row("en", "de", 29.5), row("de", "en", 20.0, "other")]
    file = write_report(pipeline, tmp_path / "out", bundle, ["## Bundle\n\nint8"])
    text = file.read_text(encoding="utf-8")
    part = text.partition("### set\n")[2].partition("### other")[0]
    assert "| BLEU / chrF | teacher | student | bundle |" in part
    assert "| en-de | 30.0 / 60.0 | 31.0 / 62.0 | 29.5 / 59.0 |" in part
    assert "| de-en | - | 21.0 / 42.0 | - |" in part
    assert "| mean of the 1 that all have | 30.0 / 60.0 | 31.0 / 62.0 | 29.5 / 59.0 |" in part
    assert re.findall(r"^- `(.+)`$", part, re.M) == ["nc:6", "tok:de|bleu", "tok:en|bleu"]
    other = text.partition("### other\n")[2]
    assert "| BLEU / chrF | bundle |" in other
    assert text.index("## Bundle") < text.index("## tokenizer")


def test_a_report_of_a_pipeline_without_scores(tmp_path: Path, pipeline: Pipeline) -> None:
    for name in ("teacher", "student"):
        (tmp_path / "out" / name / "results.json").unlink()
    text = write_report(pipeline, tmp_path / "out").read_text(encoding="utf-8")
    assert "## Scores" not in text and "## student" in text
