"""The whole path on a generated corpus: text on disk to a translation over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from gpt2_mt.cli import main
from tests import toy


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    toy.write(folder / "corpus")
    corpus, tests = str(folder / "corpus"), str(folder / "corpus" / "tests")
    tokenizer = str(folder / "tokenizer" / "tokenizer.json")
    common = ["--corpus", corpus, "--tests", tests, "--tokenizer", tokenizer, "--quiet"]
    commands = [
        ["train", "tokenizer", "--corpus", corpus, "--languages", "en,zh,de,fr",
         "--vocabulary", "600", "--out", str(folder / "tokenizer")],
        ["train", "pretrain", "demo-pretrain", *common, "--set", "steps=10",
         "--out", str(folder / "pretrain")],
        ["train", "finetune", "demo-finetune", *common, "--set", "steps=200",
         "--init", str(folder / "pretrain" / "checkpoint"), "--out", str(folder / "finetune")],
        ["export", str(folder / "finetune" / "checkpoint"), str(folder / "bundle"),
         "--precision", "int8", "--name", "toy"],
        ["evaluate", str(folder / "bundle"), tests, "--out", str(folder / "scores")],
    ]  # fmt: skip
    for command in commands:
        assert main(command) == 0, command
    return folder


def test_it_translates_sentences_it_never_saw(work: Path) -> None:
    results = json.loads((work / "scores" / "results.json").read_text(encoding="utf-8"))
    scores = results["rows"]
    assert len(scores) == 12
    assert sum(row["bleu"] for row in scores) / 12 > 30


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
    assert "Hund" in first["text"] and first["finish_reason"] == "stop"
    assert second["text"] == ""
