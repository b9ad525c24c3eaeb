"""The encoder-decoder baseline: nothing of a batch is lost, sizes are equal, and it learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.encoder_decoder import PAD, batch_loss, main, marian, parameters, run, split
from tests.toy import LANGUAGES, sentences
from training.batches import IGNORED, PairRows, Tags
from training.config import RunConfig, build
from training.corpus import Source
from training.errors import ConfigError
from training.model import GPT, ModelConfig, preset
from training.shards import write_shard
from training.tokenizer import train_tokenizer

TAGS = Tags(0, 2, {"en": 3, "de": 4}, {"en": 5, "de": 6})
PAIRS = [[70, 71, 72], [80], [73], [81, 82, 83, 84], [74, 75], [85, 86]]
CPU = torch.device("cpu")


@pytest.fixture
def rows(tmp_path: Path) -> PairRows:
    shard = write_shard(tmp_path / "a.bin", Source("a", ("de", "en"), ()), PAIRS, "")
    return PairRows([shard], [1.0], TAGS, 64)


def test_a_batch_is_split_without_losing_a_token(rows: PairRows) -> None:
    batch = rows.collate(np.array([[0, 0, 0], [0, 1, 0], [0, 2, 1]]))
    sides = split(batch)
    assert sides.source.tolist() == [
        [4, 5, 70, 71, 72, 2], [4, 5, 73, 2, PAD, PAD], [3, 6, 85, 86, 2, PAD]
    ]  # fmt: skip
    assert sides.seen.tolist() == [[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]]
    assert sides.targets.tolist() == [
        [80, 0, *[IGNORED] * 3], [81, 82, 83, 84, 0], [74, 75, 0, *[IGNORED] * 2]
    ]  # fmt: skip
    assert sides.inputs.tolist() == [
        [PAD, 80, 0, PAD, PAD], [PAD, 81, 82, 83, 84], [PAD, 74, 75, 0, PAD]
    ]  # fmt: skip


def test_the_loss_is_the_library_s(rows: PairRows) -> None:
    torch.manual_seed(0)
    model = marian(ModelConfig(128, 2, 64, 2), 1, 1, CPU)
    model.train(False)
    batch = rows.collate(np.array([[0, 0, 0], [0, 1, 0], [0, 2, 1]]))
    sides = split(batch)
    found = model(input_ids=sides.source, attention_mask=sides.seen, labels=sides.targets)
    total, targets = batch_loss(model, batch, 0.0, torch.float32)
    assert total.item() / len(targets) == pytest.approx(found.loss.item(), rel=1e-5)
    smooth, _ = batch_loss(model, batch, 0.1, torch.float32)
    expected = F.cross_entropy(found.logits.flatten(0, 1), sides.targets.flatten(),
                               label_smoothing=0.1, reduction="sum")  # fmt: skip
    assert smooth.item() == pytest.approx(expected.item(), rel=1e-5)
    alone = rows.collate(np.array([[0, 1, 0]]))  # padding on either side is not seen
    others = rows.collate(np.array([[0, 0, 0], [0, 2, 1]]))
    parts = [batch_loss(model, b, 0.0, torch.float32)[0].item() for b in (alone, others)]
    assert sum(parts) == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["micro", "mini"])
def test_it_has_as_many_parameters_as_ours(name: str) -> None:
    ours = preset(name, 8192)
    count = GPT(ours).parameters_count()
    assert abs(parameters(marian(ours, 3, 2, CPU)) - count) < 0.03 * count
    with pytest.raises(ConfigError, match="9 \\+ 9 layers"):
        marian(ours, 9, 9, CPU)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "tests").mkdir()
    for at, code in enumerate(LANGUAGES):
        if code in ("en", "de"):
            lines = [line[at] for line in sentences()]
            for name, part in (("train", lines[20:]), ("tests/set", lines[:20])):
                text = "\n".join(part) + "\n"
                (folder / f"{name}.{code}").write_text(text, encoding="utf-8")
    texts = [text for line in sentences() for text in line]
    train_tokenizer(texts, 512, ("en", "de")).save(str(folder / "tokenizer.json"))
    return folder


VALUES = {"stage": "finetune", "model": "test", "steps": 150, "batch_tokens": 1024,
          "precision": "fp32", "optimiser": {"name": "muon", "rate": 5e-3},
          "data": {"languages": ["en", "de"], "directions": ["en-de"], "max_tokens": 64,
                   "valid_examples": 8}}  # fmt: skip


def test_a_run_learns_scores_and_comes_out_the_same_twice(files: Path, tmp_path: Path) -> None:
    config = build(RunConfig, VALUES, "")
    folders = (files, files / "tokenizer.json", [files / "tests"])
    results = [run(config, *folders, tmp_path / name, ["set"], 5, (1, 1), 2) for name in "ab"]
    curves = [(tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8") for name in "ab"]
    losses = [[json.loads(line)["loss"] for line in curve.splitlines()] for curve in curves]
    assert losses[0] == losses[1] and len(losses[0]) == 150
    assert losses[0][0] > 5.5 and losses[0][-1] < 0.5
    held = results[0]["held_out"]
    assert list(held) == ["en-de"] and held["en-de"]["loss"] < 0.5
    for kind in ("scores", "beam"):
        assert [(r["set"], r["source"], r["sentences"]) for r in results[0][kind]] == [
            ("set", "en", 5)
        ]
        assert results[0][kind][0]["chrf"] == results[1][kind][0]["chrf"] > 90
    saved = json.loads((tmp_path / "a" / "results.json").read_text(encoding="utf-8"))
    assert saved["steps"] == 150 and saved["tokens"] > 80_000


def test_a_bound_in_tokens_and_a_recipe_it_cannot_follow(files: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    text = ('stage = "finetune"\nmodel = "test"\ntokens = 2500\nbatch_tokens = 1024\n{}\n'
            '[data]\nlanguages = ["en", "de"]\nmax_tokens = 64\n')  # fmt: skip
    recipe.write_text(text.format(""), encoding="utf-8")
    command = ["--recipe", str(recipe), "--corpus", str(files), "--tests", str(files / "tests"),
               "--tokenizer", str(files / "tokenizer.json"), "--out", str(tmp_path / "out"),
               "--sets", "set", "--limit", "1", "--layers", "1,1", "--threads", "1"]  # fmt: skip
    assert main(command) == 0
    saved = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert 2500 <= saved["tokens"] < 2500 + 1024 and len(saved["scores"]) == 2
    recipe.write_text(text.format("ema = 0.9"), encoding="utf-8")
    with pytest.raises(ConfigError, match="ema = 0.9: not for"):
        main(command)
