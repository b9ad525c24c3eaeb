"""Averaged weights: what is kept equals the slow obvious mean, and checkpoints are averaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.averaging import Average, average_checkpoints
from training.checkpoint import file_sha256, load_checkpoint, save_checkpoint
from training.errors import CheckpointError
from training.model import GPT, ModelConfig


def walk(average: Average, weights: dict[str, Tensor], steps: int) -> list[Tensor]:
    """Move the weights at random `steps` times; returns where they were after each step."""
    path = []
    for step in range(1, steps + 1):
        weights["w"].add_(torch.randn(4, 3))
        path.append(weights["w"].clone())
        average.update(step / steps)
    return path


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return {"w": torch.randn(4, 3), "b": torch.zeros(2)}


@pytest.mark.parametrize("decay", [0.5, 0.95])
def test_ema_is_the_recurrence(weights: dict[str, Tensor], decay: float) -> None:
    average = Average(weights, ema=decay, snapshots=0)
    path = walk(average, weights, 60)
    slow = path[0]
    for n, now in enumerate(path[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        slow = d * slow + (1 - d) * now
    torch.testing.assert_close(average.tensors["w"], slow)
    assert average.tensors["b"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("steps", "snapshots", "taken"),
    [(100, 4, [85, 90, 95, 100]), (50, 1, [50]), (10, 5, [9, 10]), (2, 3, [2])],
)  # fmt: skip
def test_snapshots_lie_evenly_in_the_last_fifth(
    weights: dict[str, Tensor], steps: int, snapshots: int, taken: list[int]
) -> None:
    average = Average(weights, ema=0.0, snapshots=snapshots)
    path = walk(average, weights, steps)
    expected = torch.stack([path[step - 1] for step in taken]).mean(dim=0)
    torch.testing.assert_close(average.tensors["w"], expected)
    assert average.taken == len(taken)


def test_the_weights_come_back_as_they_were(weights: dict[str, Tensor]) -> None:
    average = Average(weights, ema=0.9, snapshots=0)
    with average.in_place():
        pass  # nothing is averaged yet
    walk(average, weights, 5)
    raw, mean = weights["w"].clone(), average.tensors["w"].clone()
    memory = weights["w"].data_ptr()
    with pytest.raises(KeyError), average.in_place():
        assert torch.equal(weights["w"], mean) and weights["w"].data_ptr() == memory
        raise KeyError
    assert torch.equal(weights["w"], raw) and torch.equal(average.tensors["w"], mean)
    assert not torch.equal(raw, mean)


@pytest.fixture
def saved(tmp_path: Path, tokenizer_file: Path) -> list[Path]:
    folders = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = GPT(ModelConfig(vocabulary=97, layers=2, width=32, heads=2, context=24))
        folders.append(tmp_path / f"run{seed}" / "checkpoint")
        save_checkpoint(folders[-1], model, tokenizer_file, {"stage": "pretrain", "step": seed})
    return folders


def test_checkpoints_are_averaged(saved: list[Path], tmp_path: Path) -> None:
    average_checkpoints(saved, tmp_path / "out")
    mean, meta = load_checkpoint(tmp_path / "out")
    models = [load_checkpoint(folder)[0].state_dict() for folder in saved]
    for name, tensor in mean.state_dict().items():
        expected = torch.stack([m[name] for m in models]).mean(dim=0)
        torch.testing.assert_close(tensor, expected, atol=1e-7, rtol=1e-6)
    assert meta["stage"] == "pretrain" and [a["step"] for a in meta["averaged"]] == [0, 1, 2]
    assert meta["averaged"][1]["sha256"] == file_sha256(saved[1] / "model.safetensors")
    assert (tmp_path / "out" / "tokenizer.json").exists()
    average_checkpoints([saved[0]] * 3, tmp_path / "same")
    same = load_checkpoint(tmp_path / "same")[0].state_dict()
    assert all(torch.equal(t, models[0][name]) for name, t in same.items())


def test_checkpoints_that_do_not_go_together_are_named(saved: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_checkpoint(
        other, GPT(ModelConfig(vocabulary=97, layers=1, width=32, heads=2, context=24)), None, {}
    )
    with pytest.raises(CheckpointError, match="other: is ModelConfig.*layers=1.*run0"):
        average_checkpoints([saved[0], other], tmp_path / "out")
    tokenizer = saved[1] / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text())))
    with pytest.raises(CheckpointError, match="run1.*its tokenizer.json is not that of .*run0"):
        average_checkpoints(saved, tmp_path / "out")
    with pytest.raises(CheckpointError, match="nowhere"):
        average_checkpoints([saved[0], tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(CheckpointError, match="no checkpoint to average"):
        average_checkpoints([], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="other: is there already"):
        average_checkpoints(saved, other)


def test_the_command(
    saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpt2_mt.cli import main

    command = ["train", "average", *map(str, saved), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}: the mean of 3 checkpoints\n"
    assert load_checkpoint(tmp_path / "out")[1]["step"] == 2
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err
