"""Checkpoints that cannot be exported are refused, naming the key or tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.checkpoint import load_checkpoint
from export.errors import CheckpointError


@pytest.fixture
def copy(tmp_path: Path, random_checkpoint: Path) -> Path:
    return Path(shutil.copytree(random_checkpoint, tmp_path / "copy"))


def test_loads(random_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(random_checkpoint)
    assert checkpoint.dimensions.layers == 2 and checkpoint.dimensions.head_size == 16
    assert checkpoint.parameters == sum(t.size for t in checkpoint.tensors.values())
    assert all(tensor.dtype == np.float32 for tensor in checkpoint.tensors.values())


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("config.json", lambda c: c.update(activation_function="relu"), "activation_function"),
        ("config.json", lambda c: c.update(tie_word_embeddings=False), "tie_word_embeddings"),
        ("config.json", lambda c: c.pop("n_embd"), "n_embd"),
        ("config.json", lambda c: c.update(n_head=16), "n_head"),
        ("config.json", lambda c: c.update(n_layer=3), "h.2.ln_1.weight"),
        ("config.json", lambda c: c.update(vocab_size=601), "wte.weight"),
        ("meta.json", lambda m: m.update(mask="prefix"), "prefix"),
        ("meta.json", lambda m: m.pop("templates"), "templates"),
        ("meta.json", lambda m: m.update(format_version=2), "format_version"),
    ],
)
def test_refuses(
    copy: Path, file: str, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    data = json.loads((copy / file).read_text())
    change(data)
    (copy / file).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    "file", ["config.json", "meta.json", "model.safetensors", "tokenizer.json"]
)
def test_missing_file(copy: Path, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(copy)


def test_values_that_are_not_finite(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.bias"][3] = np.nan
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.bias"):
        load_checkpoint(copy)


def test_damaged_tensors(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(copy)


def test_weights_that_are_not_those_of_the_digest(copy: Path) -> None:
    file, meta_file = copy / "model.safetensors", copy / "meta.json"
    meta = json.loads(meta_file.read_text())
    meta_file.write_text(json.dumps({**meta, "sha256": sha256(file.read_bytes()).hexdigest()}))
    load_checkpoint(copy)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors' is damaged: sha256"):
        load_checkpoint(copy)


def test_names_without_the_prefix(copy: Path) -> None:
    """As the first published GPT-2 files have them."""
    tensors = load_file(copy / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): value for name, value in tensors.items()},
        copy / "model.safetensors",
    )
    assert load_checkpoint(copy).parameters > 0
