"""The benchmark for GPUs goes through on the CPU, over a tiny model; without a GPU it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.bundle import Bundle
from benchmarks import gpu
from export.checkpoint import Dimensions

TINY = Dimensions(layers=2, heads=2, width=64, inner=256, vocabulary=700, context=64, epsilon=1e-5)


def test_the_whole_script(
    int8_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(gpu, "PRESET", TINY)
    options = ["--device", "cpu", "--models", "117M", "--batches", "1", "3", "--tokens", "5"]
    place = ["--out", str(tmp_path), "--bundle", str(int8_bundle.path), "--rounds", "2"]
    assert gpu.main([*options, *place]) == 0
    out = capsys.readouterr().out
    assert "mean nothing" in out
    found = json.loads((tmp_path / "gpu.json").read_text())
    results = found["models"]["117M"]
    assert found["machine"]["bytes_per_s"] > 1e6 and len(results) == 3
    for name, result in results.items():
        assert all(len(speeds) == 2 for speeds in result["tokens_per_s"].values()), name
        equal, of, _ = result["agreement"]["3"]
        assert of == 3 and (equal == 3 or name != gpu.OURS)
        assert result["agreement"]["3"][2] > 0.5, "not the same model"
    rows = (tmp_path / "gpu-117M.md").read_text().splitlines()
    assert rows[2].startswith("| ours fp16 |") and rows[2].count("%") == 3


def test_shares_of_the_bound() -> None:
    def result(speeds: dict[int, list[float]]) -> dict[str, object]:
        return {"tokens_per_s": speeds, "agreement": {8: [8, 8, 1.0]}}

    results = {gpu.OURS: result({1: [50.0], 8: [100.0]}), "peer": result({1: [25.0]})}
    ours, peer = gpu.table(results, 10, 1000.0).splitlines()[2:]
    assert ours.startswith(f"| {gpu.OURS} | 50 (50-50) | 1.00 | 50.0 % | 100 (100-100) | 1.00 | 12")
    assert peer.startswith("| peer | 25 (25-25) | 2.00 | 25.0 % | - | - | - |")


def test_without_a_gpu_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "a GPU is needed: torch finds no GPU" in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "onnxruntime-gpu" in (gpu.missing("cuda") or "")
    assert not list(tmp_path.iterdir())
