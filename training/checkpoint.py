"""Checkpoints: Hugging Face GPT-2 directories, and beside them what a run needs to go on.

A checkpoint holds config.json, model.safetensors, tokenizer.json, generation_config.json and
meta.json; `transformers` loads it unmodified and its GPT-2s load here. A run's `state` holds
optimiser, random state and cursor, in safetensors and JSON too: no pickle is ever read. Everything
is written beside its place and moved there when whole.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from training.errors import CheckpointError, ConfigError
from training.model import GPT, ModelConfig


def save_checkpoint(
    folder: Path, model: GPT, tokenizer_file: Path | None, meta: dict[str, Any]
) -> None:
    """Write a checkpoint directory; an older one of that name is replaced in one move."""
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
    _write_json(temporary / "config.json", model.config.to_hugging_face())
    _write_json(
        temporary / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0},
    )
    _write_json(temporary / "meta.json", meta)
    if tokenizer_file is not None:
        shutil.copyfile(tokenizer_file, temporary / "tokenizer.json")
    replace_folder(temporary, folder)


def load_checkpoint(folder: Path) -> tuple[GPT, dict[str, Any]]:
    """The model and meta.json (empty without one); raises CheckpointError saying what is off."""
    try:
        config = _read_json(folder / "config.json")
        meta_file = folder / "meta.json"
        meta = _read_json(meta_file) if meta_file.exists() else {}
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder}: {error}") from None
    try:
        model = GPT(ModelConfig.from_hugging_face(config))
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {folder}: {error}") from None
    tensors = {_canonical(k): v for k, v in tensors.items() if _is_weight(k)}
    wanted = model.state_dict()
    for name in sorted(wanted.keys() ^ tensors.keys()):
        state = "is missing" if name in wanted else "is unknown"
        raise CheckpointError(f"checkpoint {folder}: tensor {name} {state}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"checkpoint {folder}: tensor {name} is {tuple(tensor.shape)}, "
                f"config.json asks for {tuple(wanted[name].shape)}"
            )
    model.load_state_dict(tensors)
    return model, meta


def _canonical(name: str) -> str:
    return name if name.startswith("transformer.") else f"transformer.{name}"


def _is_weight(name: str) -> bool:
    """Old GPT-2 files carry mask buffers, and some a second copy of the tied embedding."""
    return not name.endswith((".attn.bias", ".attn.masked_bias")) and name != "lm_head.weight"


def save_state(
    folder: Path, optimisers: dict[str, torch.optim.Optimizer], values: dict[str, Any]
) -> None:
    """Optimiser tensors and the random state as safetensors, the rest as JSON, into `folder`."""
    tensors = {"rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng_cuda"] = torch.cuda.get_rng_state()
    for name, optimiser in optimisers.items():
        for index, slots in optimiser.state_dict()["state"].items():
            for key, value in slots.items():
                tensors[f"{name}/{index}/{key}"] = torch.as_tensor(value).cpu().contiguous()
    save_file(tensors, folder / "state.safetensors")
    _write_json(folder / "state.json", values)


def load_state(folder: Path, optimisers: dict[str, torch.optim.Optimizer]) -> dict[str, Any]:
    """Restore optimisers and random state; returns the JSON values."""
    try:
        tensors = load_file(folder / "state.safetensors")
        values = _read_json(folder / "state.json")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"state {folder}: {error}") from None
    torch.set_rng_state(tensors.pop("rng"))
    cuda = tensors.pop("rng_cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    for name, optimiser in optimisers.items():
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            owner, index, slot = key.split("/")
            if owner == name:
                state.setdefault(int(index), {})[slot] = tensor
        if not state:
            raise CheckpointError(f"state {folder}: nothing for the optimiser {name}")
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return values


def recover_folder(target: Path) -> bool:
    """Whether `target` is there; puts the old one back after a kill between the two renames."""
    old = target.with_name(target.name + ".old")
    if not target.exists() and old.exists():
        old.rename(target)
    return target.exists()


def replace_folder(new: Path, target: Path) -> None:
    """Move `new` to `target` so that a whole `target` exists at every instant but one rename."""
    for file in new.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def commit() -> str:
    """The git commit that this code is at, or "unknown" outside a checkout."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result.stdout.strip() or "unknown"


def _read_json(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
