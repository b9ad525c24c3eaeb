"""The commands end to end on the tiny corpus, and errors of one line that name the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gpt2_mt.cli import main
from tests.training.helpers import refusal

RECIPE = """
stage = "{stage}"
model = "test"
steps = {steps}
batch_tokens = 512
valid_steps = 1000
[optimiser]
name = "muon"
rate = 5e-3
[data]
languages = ["en", "de"]
max_tokens = 64
"""


@pytest.fixture
def recipes(tmp_path: Path) -> dict[str, Path]:
    files = {stage: tmp_path / f"{stage}.toml" for stage in ("pretrain", "finetune")}
    for stage, file in files.items():
        file.write_text(RECIPE.format(stage=stage, steps=4))
    return files


def stage_command(stage: str, recipe: Path | str, corpus: Path, tokenizer: Path, out: Path,
                  *more: str) -> list[str]:  # fmt: skip
    return ["train", stage, str(recipe), "--corpus", str(corpus), "--tokenizer", str(tokenizer),
            "--out", str(out), "--threads", "1", "--device", "cpu", *more]  # fmt: skip


def test_tokenizer_then_pretrain_then_finetune_then_a_translation(
    tmp_path: Path, corpus: Path, recipes: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokenizer"
    command = ["train", "tokenizer", "--corpus", str(corpus), "--languages", "en, de", "--out",
               str(out), "--vocabulary", "500", "--megabytes", "0.02", "--report",
               str(corpus / "tests" / "set")]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"wrote {out / 'tokenizer.json'}\n")
    assert (out / "report.txt").read_text() in printed
    blocks = (out / "report.txt").read_text().strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["sample", "set"]
    rows = {row.split()[0]: row.split() for row in blocks[1].splitlines()[2:]}
    assert rows.keys() == {"en", "de"} and rows["en"][4] == "1.00"
    assert 0.8 < float(rows["de"][4]) < 2 and rows["de"][5:7] == ["0.00", "%"]
    rows = {row.split()[0]: row.split() for row in blocks[0].splitlines()[2:]}
    assert rows["de"][4] == "-", "lines that are not aligned have no premium"

    tests = ("--tests", str(corpus / "tests"))
    file = out / "tokenizer.json"
    pre, fine = tmp_path / "pre", tmp_path / "fine"
    assert main(stage_command("pretrain", recipes["pretrain"], corpus, file, pre, *tests)) == 0
    captured = capsys.readouterr()
    assert "toy.de-en" in captured.out and f"wrote {pre / 'checkpoint'}" in captured.out
    assert "tok/s" in captured.err and "loss" in captured.err  # the bar
    more = (*tests, "--init", str(pre / "checkpoint"), "--set", "steps=6", "--quiet",
            "--set", "data.text_share=0.1")  # fmt: skip
    assert main(stage_command("finetune", recipes["finetune"], corpus, file, fine, *more)) == 0
    assert capsys.readouterr().err == ""
    assert len((fine / "metrics.jsonl").read_text().splitlines()) == 6
    config = json.loads((fine / "config.json").read_text())
    assert (config["steps"], config["data"]["text_share"]) == (6, 0.1)
    assert torch.get_num_threads() == 1

    from training.evaluate import checkpoint_translator

    (text, reason), = checkpoint_translator(fine / "checkpoint")(["Das Kind"], "de", "en")
    assert reason in ("stop", "length") and isinstance(text, str)


def test_languages_come_from_the_recipe_when_none_are_named(
    tmp_path: Path, corpus: Path, recipes: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "tokenizer", "--corpus", str(corpus), "--out", str(tmp_path / "t"),
               "--vocabulary", "400", "--megabytes", "0.01"]  # fmt: skip
    assert main([*command, "--recipe", str(recipes["pretrain"])]) == 0
    assert "<|tgt:de|>" in (tmp_path / "t" / "tokenizer.json").read_text()
    assert "--languages" in refusal(command, capsys)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--set", "stepps=3"], "stepps: unknown key"),
        (["--set", "steps=many"], "steps = 'many': must be int"),
        (["--set", "steps"], "--set steps: must be KEY=VALUE"),
        (["--set", "data.text_share=2.0"], "data.text_share = 2.0"),
        (["--set", "model=huge"], "model = 'huge'"),
        (["--set", "stage=pretrain"], "is for stage 'pretrain', not 'finetune'"),
        (["--corpus", "nowhere"], "corpus nowhere: no such folder"),
        (["--tokenizer", "nowhere.json"], "tokenizer nowhere.json"),
        (["--init", "nowhere"], "checkpoint nowhere"),
        (["--tests", "nowhere"], "nowhere: no such folder"),
        (["--device", "abacus"], "device = 'abacus'"),
        (["--threads", "-1"], "--threads -1"),
    ],
)
def test_errors_are_one_line_that_names_the_key(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, recipes: dict[str, Path],
    capsys: pytest.CaptureFixture[str], changes: list[str], named: str,
) -> None:  # fmt: skip
    out = tmp_path / "run"
    command = stage_command("finetune", recipes["finetune"], corpus, tokenizer_file, out)
    assert named in refusal([*command, "--quiet", *changes], capsys)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--vocabulary", "100"], "vocabulary = 100"),
        (["--languages", "en,ja"], "nothing in ja"),
        (["--languages", "xx"], "nothing in xx"),
        (["--report", "nowhere/set"], "--report nowhere/set"),
        (["--megabytes", "0"], "--megabytes 0"),
    ],
)
def test_errors_of_the_tokenizer_command(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], changes: list[str],
    named: str,
) -> None:  # fmt: skip
    command = ["train", "tokenizer", "--corpus", str(corpus), "--languages", "en,de", "--out",
               str(tmp_path / "t")]  # fmt: skip
    assert named in refusal([*command, *changes], capsys)
    assert not (tmp_path / "t").exists()


def test_an_unknown_recipe_lists_those_there_are(
    tmp_path: Path, corpus: Path, tokenizer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = stage_command("finetune", "nothing", corpus, tokenizer_file, tmp_path / "r")
    assert "finetune-cpu" in refusal(command, capsys)


def test_an_error_under_torchrun_tells_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "average", str(tmp_path / "no"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("error: ")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("error (rank 1): ")
