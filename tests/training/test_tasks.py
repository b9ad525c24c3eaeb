"""A task from end to end: punctuation and capitals come back, by a token the vocabulary lacked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sacrebleu.metrics.bleu import BLEU

from tests import toy
from tests.training.conftest import Recipe
from tests.training.helpers import log_of
from training.errors import CheckpointError
from training.evaluate import checkpoint_translator
from training.stages import start
from training.tokenizer import load_tokenizer, train_tokenizer


def test_punctuation_and_capitals_are_learnt(tmp_path: Path, recipe: Recipe) -> None:
    torch.set_num_threads(1)
    held = toy.write_task(tmp_path / "toy.task-punctuation.tsv")
    file = tmp_path / "tokenizer.json"
    lines = [line[2] for line in toy.sentences()]
    train_tokenizer([*lines, *map(str.lower, lines)], 500, ["de"]).save(str(file))
    data = {"languages": ["de"], "tasks": ["punctuation"], "valid_examples": 20}
    config = recipe(steps=150, batch_tokens=1024, data=data)
    last = start(config, tmp_path, tmp_path / "run", file, device="cpu", progress=False)

    meta = json.loads((last / "meta.json").read_text())
    assert meta["templates"]["task:punctuation"] == ["<|task:punctuation|>", "{text}", "<|sep|>"]
    assert meta["pairs"] == [] and "translate" not in meta["templates"]
    assert load_tokenizer(last / "tokenizer.json").id_to_token(5) == "<|task:punctuation|>"
    entry = log_of(tmp_path / "run")[-1]
    assert "loss/task" in entry and "loss/translation" not in entry
    assert entry["valid/punctuation/loss"] < 0.5

    restore = checkpoint_translator(last, task="punctuation")
    answers = [text for text, _ in restore([bare for bare, _ in held], "", "")]
    wholes = [whole for _, whole in held]
    exact = sum(a == w for a, w in zip(answers, wholes, strict=True)) / len(held)
    copied = BLEU().corpus_score([bare for bare, _ in held], [wholes]).score
    assert copied < 20 and BLEU().corpus_score(answers, [wholes]).score > 60
    assert exact > 0.4  # copying: never
    with pytest.raises(CheckpointError, match="no template for the task 'summary'"):
        checkpoint_translator(last, task="summary")
