"""Both loops learn from the same rows and find the same loss; work is counted as by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.training_speed import collate, flops_of, main, pair_data, synthetic, text_data
from training.batches import IGNORED
from training.config import RunConfig, build
from training.learner import Learner
from training.model import GPT, preset

CONFIG = build(RunConfig, {"stage": "finetune", "model": "test", "steps": 1,
                           "data": {"languages": ["en", "de"]}}, "")  # fmt: skip


def test_the_peer_s_rows_have_the_same_loss_as_ours(tmp_path: Path) -> None:
    shard = synthetic(tmp_path, 200, 12, 0)
    batches, rows = pair_data([shard], 512, 64)
    assert len(rows) == 24  # both directions
    model = GPT(preset("test", 200)).eval()
    peer = GPT2LMHeadModel(GPT2Config(**model.config.to_hugging_face())).eval()
    weights = {**model.state_dict(), "lm_head.weight": model.transformer["wte"].weight}
    peer.load_state_dict(weights)
    learner = Learner(model, CONFIG, torch.float32).eval()
    batch = next(batches)
    mine = [
        ([*ids[:n].tolist(), targets[n - 1].item()], prefix.item()) for ids, targets, n, prefix in
        zip(batch.ids, batch.targets, batch.lengths, batch.prefix, strict=True)
    ]  # fmt: skip
    assert all(row in rows for row in mine) and len(mine) > 3
    inputs = collate(mine)
    assert inputs["attention_mask"].sum() - len(mine) == batch.read
    term = learner(batch)["translation"]
    assert term.count == int((inputs["labels"] != IGNORED).sum())
    with torch.no_grad():
        expected = peer(**inputs).loss.item()
    assert (term.total / term.count).item() == pytest.approx(expected, rel=1e-5)


def test_image_captions_are_about_as_long(tmp_path: Path) -> None:
    _, rows = pair_data([synthetic(tmp_path, 8192, 2000, 0)], 4096, 128)
    assert sum(len(ids) - 1 for ids, _ in rows) / len(rows) == pytest.approx(34, abs=2)


def test_work_is_six_a_weight_and_token_and_half_the_scores() -> None:
    model = GPT(preset("test", 200))
    blocks = 2 * 12 * 64 * 64
    expected = 6 * blocks * 10 + 6 * 200 * 64 * 4 + 2 * 12 * 64 * (7 * 7 + 3 * 3) / 2
    assert flops_of(model)(torch.tensor([7, 3]), 4) == expected


def test_text_fills_every_row() -> None:
    batches, rows = text_data(200, 128, 32)
    batch = next(batches)
    assert batch.ids.shape == (4, 32) and batch.form == "text"
    assert (batch.targets != IGNORED).all() and (batch.ids[:, 1:] == batch.targets[:, :-1]).all()
    assert {len(ids) for ids, _ in rows} == {32}


@pytest.mark.parametrize(("kind", "only"), [("pairs", ""), ("text", ""), ("pairs", "ours")])
def test_the_loops_take_turns(
    capsys: pytest.CaptureFixture[str], kind: str, only: str
) -> None:
    assert main(["--model", "test", "--vocabulary", "512", "--kind", kind, "--batch-tokens", "256",
                 "--rounds", "2", "--steps", "1", "--warmup", "1", "--precision", "fp32",
                 "--threads", "1", *(["--only", only] if only else [])]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    names = {"ours", "peer"} if not only else {only}
    assert found["tokens_per_s"].keys() == names and found["device"] == "cpu"
    assert all(len(values) == 2 and min(values) > 0 for values in found["tokens_per_s"].values())
    if not only:
        ours, peer = (sum(found["tokens_per_s"][name]) / 2 for name in ("ours", "peer"))
        assert found["ratio"] == pytest.approx(ours / peer, rel=1e-2)
