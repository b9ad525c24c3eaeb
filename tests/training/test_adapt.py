"""Training on: both domains before and after, held-out lines, languages, text, refusals."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_mt.cli import main
from tests.training.conftest import Recipe
from training.adapt import Request, adapt
from training.errors import CheckpointError, ConfigError, CorpusError
from training.stages import start

QUICK = {"steps": 50, "batch_tokens": 512, "optimiser.name": "muon", "optimiser.rate": 5e-3,
         "data.max_tokens": 64, "precision": "fp32"}  # fmt: skip
ANSWERS = ("Antwort eins ist richtig", "zwei ist hier die Antwort", "es gibt keine dritte")


@pytest.fixture(scope="module")
def base(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer_file: Path, recipe: Recipe
) -> Path:
    """A checkpoint that has begun to learn en-de and de-en."""
    torch.set_num_threads(1)
    return start(recipe(steps=10), corpus, tmp_path_factory.mktemp("base"), tokenizer_file,
                 test_folders=[corpus / "tests"], device="cpu", progress=False)  # fmt: skip


@pytest.fixture(scope="module")
def tsv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mine") / "mine.en-de.tsv.gz"
    lines = "".join(f"item {i} of the list\t{ANSWERS[i % 3]} {i}\n" for i in range(300))
    file.write_bytes(gzip.compress(lines.encode()))
    return file


def results(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["adapted"]
    return rows


def test_pairs_of_a_new_domain(
    tmp_path: Path, base: Path, tsv: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    settings = [f"--set={key}={json.dumps(value)}" for key, value in QUICK.items()]
    command = ["train", "adapt", str(base), "--data", str(tsv), "--out", str(out), "--old-tests",
               str(corpus / "tests"), "--limit", "20", "--threads", "1", "--quiet"]  # fmt: skip
    assert main([*command, *settings]) == 0
    printed = capsys.readouterr().out
    rows = {(row["domain"], row["set"], row["of"]): row for row in results(out)}
    assert rows.keys() == {(d, s, way) for d, s in (("old", "set"), ("new", "mine.en-de"))
                           for way in ("en-de", "de-en")}  # fmt: skip
    new = rows["new", "mine.en-de", "en-de"]
    assert new["after"]["chrf"] > new["before"]["chrf"] + 15
    assert new["before"]["sentences"] == 20 and "version" in new["after"]["bleu_signature"]
    cells = f"{new['before']['bleu']:.2f} | {new['after']['bleu']:.2f}"
    assert f"| new | mine.en-de | en-de | {cells} |" in printed
    assert f"wrote {out / 'checkpoint'}" in printed
    # what is held out is not trained on: a tenth of 300 pairs
    assert len((out / "held-out" / "mine.en-de.de").read_text().splitlines()) == 30
    assert "leak: sentence" in (out / "corpus.txt").read_text()
    meta = json.loads((out / "checkpoint" / "meta.json").read_text())
    assert [c["name"] for c in meta["corpora"]][-2:] == ["toy.de-en", "mine.en-de"]
    assert meta["config"]["model"] == "init" and meta["pairs"] == [["de", "en"], ["en", "de"]]
    assert main([*command, *settings]) == 0  # it is done: only the figures are made again
    assert len((out / "metrics.jsonl").read_text().splitlines()) == QUICK["steps"]
    assert results(out) == list(rows.values())


def test_a_language_that_the_checkpoint_does_not_know(tmp_path: Path, base: Path) -> None:
    file = tmp_path / "dogs.en-es.tsv"
    file.write_text("".join(f"dog {i}\tperro {i}\n" for i in range(100)))
    request = Request(base, file, tmp_path / "out", settings={**QUICK, "steps": 1})
    text = adapt(request, "cpu", progress=False)
    assert "| new | dogs.en-es | en-es | - | " in text
    meta = json.loads((tmp_path / "out" / "checkpoint" / "meta.json").read_text())
    assert list(meta["languages"]) == ["en", "de", "es"] and ["de", "en"] in meta["pairs"]


def test_running_text(tmp_path: Path, base: Path, corpus: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    lines = [f"{word} {i} is in the catalogue\n" for i in range(60) for word in ("Entry", "Page")]
    (folder / "notes.txt").write_text("\n".join(lines))
    request = Request(base, folder, tmp_path / "out", True, "en", corpus / "tests", limit=10,
                      settings=QUICK)  # fmt: skip
    text = adapt(request, "cpu", progress=False)
    rows = {(row["domain"], row["set"], row["of"]): row for row in results(tmp_path / "out")}
    assert rows.keys() == {("old", "set", "en"), ("new", "mono_notes.en", "en")}
    new = rows["new", "mono_notes.en", "en"]
    assert new["after"]["bits_per_byte"] < 0.7 * new["before"]["bits_per_byte"]
    assert new["before"]["bytes"] == new["after"]["bytes"] > 100
    assert "perplexity before" in text
    meta = json.loads((tmp_path / "out" / "checkpoint" / "meta.json").read_text())
    assert meta["stage"] == "pretrain" and meta["pairs"] == [["de", "en"], ["en", "de"]]
    assert set(meta["templates"]) == {"generate", "translate"}


def test_what_cannot_be_adapted_is_named(tmp_path: Path, base: Path, tsv: Path) -> None:
    def refused(error: type[Exception], match: str, **changes: Any) -> None:
        values = {"checkpoint": base, "data": tsv, "out": tmp_path / "out", **changes}
        with pytest.raises(error, match=match):
            adapt(Request(**values), "cpu", progress=False)

    bundle, few, plain = tmp_path / "bundle", tmp_path / "few.en-de.tsv", tmp_path / "plain.tsv"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    few.write_text("one\teins\ntwo\tzwei\n")
    plain.write_text("one\teins\n")
    refused(ConfigError, "is a bundle: .*gpt2-mt export --restore", checkpoint=bundle)
    refused(CheckpointError, "nowhere", checkpoint=tmp_path / "nowhere")
    refused(CorpusError, "--data .*nowhere: no such file", data=tmp_path / "nowhere")
    refused(CorpusError, "no pairs NAME.en-de.tsv", data=plain)
    refused(CorpusError, "few.en-de.tsv: 2 lines are too few .* --new-tests", data=few)
    refused(ConfigError, "--language: .* en, de", data=tmp_path, text=True)
    refused(CorpusError, "no running text", data=bundle, text=True, language="en")
    few.write_text("one\teins\nno tab\n")
    refused(CorpusError, "few.en-de.tsv, line 2: no tab", data=few)
    few.write_bytes(b"one\teins\nD\xfcrr\tdry\n")
    refused(CorpusError, "few.en-de.tsv, line 2: .*utf-8", data=few)
    few.write_text("")
    refused(CorpusError, "few.en-de.tsv: 0 lines are too few", data=few)
