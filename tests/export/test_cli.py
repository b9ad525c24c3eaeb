"""`gpt2-mt export` and `gpt2-mt evaluate` as a user calls them."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.bundle import Bundle
from app.engine.device import needs
from export import cli
from export.errors import ExportError, TargetExists
from export.routes import recorded
from training.errors import CorpusError

Main = Callable[..., int]


@pytest.fixture
def main() -> Main:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers(required=True))

    def run(*words: object) -> int:
        args = parser.parse_args([str(word) for word in words])
        result: int = args.run(args)
        return result

    return run


def test_export_and_back(
    main: Main, random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = {"set": "s", "source": "en", "target": "de", "metric": "BLEU", "value": 1.5,
             "signature": "x"}  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"scores": [score]}))
    (tmp_path / "text").write_text("The cat sat.\n\nDie Katze saß.\n")
    options = ["--scores", tmp_path / "results.json", "--text", tmp_path / "text"]
    assert main("export", random_checkpoint, tmp_path / "b", "--name", "tiny", *options) == 0
    manifest = Bundle.open(tmp_path / "b").manifest
    assert (manifest.name, manifest.model.precision) == ("tiny", "int8")
    assert manifest.scores[0].value == 1.5
    assert main("export", "--restore", tmp_path / "b", tmp_path / "c") == 0
    assert (tmp_path / "c" / "model.safetensors").is_file()
    assert "verified" in capsys.readouterr().out
    with pytest.raises(TargetExists):
        main("export", random_checkpoint, tmp_path / "b")


def test_a_bundle_becomes_one_for_gpus_without_torch(
    int8_bundle: Bundle, tmp_path: Path
) -> None:
    """The command that a GPU's refusal of another bundle names."""
    command = re.search("`gpt2-mt (.*)`", needs(int8_bundle) or "")
    assert command is not None
    code = (
        "import sys; from gpt2_mt.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'optimum', 'sacrebleu'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    path = Path(cli.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", code, *shlex.split(command[1])],
        check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(path)},
    )  # fmt: skip
    assert needs(Bundle.open(tmp_path / "tiny-int8-fp16")) is None


@pytest.mark.parametrize("text", ["", "[1]", '{"scores": [{"set": "s"}]}', '{"rows": []}'])
def test_unreadable_scores(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ExportError, match=r"scores\.json"):
        recorded(tmp_path / "scores.json")


def test_unreadable_text(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nowhere"):
        cli.read_texts(tmp_path / "nowhere")


def write_testset(folder: Path) -> None:
    folder.mkdir()
    texts = {"en": ["Good day.", "Two cats."], "de": ["Guten Tag.", "Zwei Katzen."]}
    for code, lines in texts.items():
        with gzip.open(folder / f"mini_en-de.{code}.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_evaluate(
    main: Main,
    kind: str,
    fp32_bundle: Bundle,
    random_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_testset(tmp_path / "sets")
    model = fp32_bundle.path if kind == "bundle" else random_checkpoint
    out = tmp_path / "out"
    assert main("evaluate", model, tmp_path / "sets", "--pairs", "en-de", "--limit", 1,
                "--out", out, "--batch", 2) == 0  # fmt: skip
    told = capsys.readouterr().out
    assert "| mini_en-de | en-de | 1 |" in told and "| runaway |" in told
    assert len((out / "mini_en-de.en-de.hyp").read_text().splitlines()) == 1
    scores = recorded(out / "results.json").scores
    assert {score.metric for score in scores} == {"BLEU", "chrF"}
    [row] = json.loads((out / "results.json").read_text())["rows"]
    assert 0 <= row["behaviour"]["copied"] <= 1
    assert all(score.signature for score in scores)
    with pytest.raises(ExportError, match="en-xx"):
        main("evaluate", model, tmp_path / "sets", "--pairs", "en-xx")
    with pytest.raises(CorpusError, match="newstest"):
        main("evaluate", model, tmp_path / "sets", "--sets", "newstest")


def test_evaluate_as_served(
    main: Main, fp32_bundle: Bundle, random_checkpoint: Path, tmp_path: Path
) -> None:
    write_testset(tmp_path / "sets")
    out = tmp_path / "out"
    asked = (tmp_path / "sets", "--pairs", "en-de", "--served", "--out", out)
    assert main("evaluate", fp32_bundle.path, *asked) == 0
    with pytest.raises(ExportError, match="--served"):
        recorded(out / "results.json")
    with pytest.raises(ExportError, match="--pivot"):
        main("evaluate", fp32_bundle.path, *asked, "--pivot", "en")
    with pytest.raises(ExportError, match="no bundle"):
        main("evaluate", random_checkpoint, *asked)


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
def test_models_are_evaluated_by_beam(
    main: Main, fp32_bundle: Bundle, random_checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    write_testset(tmp_path / "sets")
    model = random_checkpoint if kind == "checkpoint" else fp32_bundle.path
    texts = {}
    for beam in (1, 3):
        out = tmp_path / str(beam)
        assert main("evaluate", model, tmp_path / "sets", "--pairs", "en-de",
                    "--beam", beam, "--length-penalty", 0.6, "--out", out) == 0  # fmt: skip
        texts[beam] = (out / "mini_en-de.en-de.hyp").read_text(encoding="utf-8")
    assert texts[1] != texts[3]


def test_evaluating_a_bundle_and_asking_for_help_load_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, export.cli, export.evaluate, export.bundle, training.scores\n"
        "assert not {'torch', 'transformers', 'optimum'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, export.cli; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
