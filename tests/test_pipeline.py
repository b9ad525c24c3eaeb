"""The whole path on a generated corpus: `gpt2-mt build demo`, text to an answer over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from gpt2_mt.cli import main
from tests import toy

FEWER = {"pretrained.steps": 10, "teacher.steps": 60, "student.steps": 180,
         "defaults.valid_steps": 1000, "translated.sources": ["mono/few"]}  # fmt: skip


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`demo` with fewer steps, and fewer sentences for the teacher to translate."""
    folder = tmp_path_factory.mktemp("pipeline")
    corpus = folder / "corpus"
    toy.write(corpus)
    lines = (corpus / "train.en").read_text(encoding="utf-8").splitlines()[:100]
    (corpus / "mono" / "en" / "few.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    changes = [f"--set={key}={json.dumps(value)}" for key, value in FEWER.items()]
    return ["build", "demo", "--corpus", str(corpus), "--tests", str(corpus / "tests"), "--out",
            str(folder / "out"), "--threads", "1", "--limit", "10", *changes]  # fmt: skip


@pytest.fixture(scope="module")
def work(command: list[str]) -> Path:
    assert main([*command, "--quiet"]) == 0
    return Path(command[command.index("--out") + 1])


def test_it_translates_sentences_it_never_saw(work: Path) -> None:
    rows = json.loads((work / "bundle.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 12
    assert sum(row["bleu"] for row in rows) / 12 > 30
    manifest = json.loads((work / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["scores"]) == 24 and manifest["model"]["precision"] == "int8"
    assert manifest["verification"]["bleu_sentences"] >= 1000


def test_every_part_of_the_method_took_part(work: Path) -> None:
    terms = {stage: {key for line in (work / stage / "metrics.jsonl").read_text().splitlines()
                     for key in json.loads(line) if key.startswith("loss/")}
             for stage in ("pretrained", "student")}  # fmt: skip
    assert terms["pretrained"] >= {
        f"loss/{t}" for t in ("causal", "masking", "replaced", "next_sentence")
    }
    assert terms["student"] >= {"loss/translation", "loss/words", "loss/text"}
    corpus = (work / "student" / "corpus.txt").read_text(encoding="utf-8")
    assert re.search(r"^mono_few\.en-to-de +100 ", corpus, re.M)


def test_the_report_has_the_bundle_beside_its_teachers(work: Path) -> None:
    report = (work / "report.md").read_text(encoding="utf-8")
    assert "| BLEU / chrF | teacher | student | bundle |" in report
    assert "## Bundle" in report and "version:" in report
    figures = re.findall(r"\]\((figures/.+?)\)", report)
    assert len(figures) >= 4 and all((work / f).stat().st_size for f in figures)


def test_a_second_time_nothing_is_left_to_do(
    work: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (work / "bundle" / "manifest.json").stat().st_mtime_ns
    assert main(command) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7 and all(line.endswith("done before, skipped") for line in lines), lines
    assert (work / "bundle" / "manifest.json").stat().st_mtime_ns == before


def test_it_answers_over_http(work: Path) -> None:
    app = create_app(Settings(bundle=work / "bundle", slots=8, threads=1))

    async def ask() -> dict[str, object]:
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
            app.router.lifespan_context(app),
        ):
            body = {"text": ["The doctor sees the dog now.", ""], "source": "en", "target": "de"}
            answer = await client.post("/v1/translate", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

    answer = asyncio.run(ask())
    first, second = answer["translations"]  # type: ignore[misc]
    # so short a training gets the subject right, not every object
    assert first["text"].startswith("Der Arzt ") and first["finish_reason"] == "stop"
    assert second["text"] == ""
