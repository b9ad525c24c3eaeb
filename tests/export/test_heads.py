"""Heads of pretraining are dropped: neither checkpoint nor bundle knows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from safetensors import safe_open

from export.bundle import export_bundle
from tests import toy
from training.config import RunConfig, build
from training.stages import start
from training.tokenizer import train_tokenizer


def names_in(folder: Path) -> set[str]:
    return {tensor.name for tensor in onnx.load(str(folder / "model.onnx")).graph.initializer}


def test_a_bundle_has_no_heads(tmp_path: Path) -> None:
    toy.write(tmp_path / "corpus")
    texts = [line for row in toy.sentences() for line in row]
    train_tokenizer(texts, 600, toy.LANGUAGES).save(str(tmp_path / "tokenizer.json"))
    found = {}
    for name, objectives in (("plain", {}), ("all", {
        "masking": 1.0, "infilling": 1.0, "replaced": 1.0, "next_sentence": 0.1,
        "replacements": "generator", "auxiliary_share": 0.5,
    })):  # fmt: skip
        values: dict[str, Any] = {
            "stage": "pretrain", "model": "test", "steps": 1, "batch_tokens": 1024,
            "precision": "fp32", "objectives": objectives,
            "data": {"languages": list(toy.LANGUAGES), "max_tokens": 64, "valid_examples": 4},
        }  # fmt: skip
        checkpoint = start(
            build(RunConfig, values, ""), tmp_path / "corpus", tmp_path / name,
            tmp_path / "tokenizer.json", device="cpu", progress=False,
        )  # fmt: skip
        bundle = tmp_path / f"{name}-bundle"
        export_bundle(checkpoint, bundle, precision="fp32", verify=False)
        with safe_open(checkpoint / "model.safetensors", "np") as tensors:
            found[name] = (
                set(tensors.keys()), {p.name for p in checkpoint.iterdir()},
                names_in(bundle), {p.name for p in bundle.iterdir()},
            )  # fmt: skip
    assert (tmp_path / "all" / "last" / "heads.safetensors").exists()
    assert found["all"] == found["plain"]
