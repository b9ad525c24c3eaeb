"""Checkpoints: Hugging Face GPT-2 directories, and beside them what a run needs to go on.

A checkpoint holds config.json, model.safetensors, tokenizer.json, generation_config.json and
meta.json; `transformers` loads it unmodified and its GPT-2s load here. A run's state holds
optimisers, cursor and what else the run needs, in safetensors and JSON too: no pickle is ever read.
Everything is written beside its place and moved there when whole; digests tell damage from data.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.errors import CheckpointError, ConfigError, SaveError
from training.model import GPT, ModelConfig


def save_checkpoint(
    folder: Path, model: GPT, tokenizer_file: Path | None, meta: dict[str, Any],
    weights: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write a checkpoint directory; an older one of that name is replaced in one move.

    `weights` stand in for the model's own. Raises CheckpointError when the disk does not take it;
    the older one is then left as it was.
    """
    with replacing(folder) as temporary:
        write_checkpoint(temporary, model, tokenizer_file, meta, weights)


def write_checkpoint(
    folder: Path, model: GPT, tokenizer_file: Path | None, meta: dict[str, Any],
    weights: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write a checkpoint's files into `folder`, made for them; for use within `replacing`."""
    folder.mkdir(exist_ok=True)
    tensors = model.state_dict() if weights is None else weights
    file = folder / "model.safetensors"
    save_file(
        {k: v.detach().float().cpu().contiguous() for k, v in tensors.items()}, file,
        metadata={"format": "pt"},
    )  # fmt: skip
    _write_json(folder / "config.json", model.config.to_hugging_face())
    _write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0},
    )
    _write_json(folder / "meta.json", {**meta, "sha256": file_sha256(file)})
    if tokenizer_file is not None:
        shutil.copyfile(tokenizer_file, folder / "tokenizer.json")


def load_checkpoint(folder: Path) -> tuple[GPT, dict[str, Any]]:
    """The model and meta.json (empty without one); raises CheckpointError saying what is off.

    The digest in meta.json is checked where there is one: checkpoints of others have none.
    """
    file = folder / "model.safetensors"
    try:
        config = _read_json(folder / "config.json")
        meta_file = folder / "meta.json"
        meta = _read_json(meta_file) if meta_file.exists() else {}
        _check(file, meta.pop("sha256", None), "meta.json")
        tensors = load_file(file)
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
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], values: dict[str, Any]
) -> None:
    """Tensors as `<name>.safetensors`, the rest and the files' digests as state.json."""
    digests = {}
    for name, content in tensors.items():
        file = folder / f"{name}.safetensors"
        save_file(dict(content), file)
        digests[name] = file_sha256(file)
    _write_json(folder / "state.json", {**values, "sha256": digests})


def load_state(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save_state` wrote; raises CheckpointError naming a file that is not as it was."""
    tensors = {}
    try:
        values = _read_json(folder / "state.json")
        digests = values.pop("sha256", None)
        if not isinstance(digests, dict):
            raise ValueError("state.json has no digests: cut, or of an older version")
        for name, digest in digests.items():
            file = folder / f"{name}.safetensors"
            _check(file, digest, "state.json")
            tensors[name] = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"state {folder}: {error}") from None
    return tensors, values


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new folder to write into; it takes the place of `target` when the body is done.

    When the disk is full or fails it is removed, `target` stays as it was, and SaveError says why.
    """
    folder = target.with_name(target.name + ".partial")
    shutil.rmtree(folder, ignore_errors=True)  # of a save that was killed
    try:
        folder.mkdir(parents=True)
        yield folder
        replace_folder(folder, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise SaveError(f"{target}: could not be written: {error}") from None


def file_sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return file_digest(handle, "sha256").hexdigest()


def _check(file: Path, digest: object, origin: str) -> None:
    if digest is not None and file_sha256(file) != digest:
        raise ValueError(f"{file.name} is not the file that {origin} was written with "
                         "(sha256 differs): cut, altered or of another checkpoint")  # fmt: skip


def recover_folder(target: Path) -> bool:
    """Whether `target` is there; puts the old one back after a kill between the two renames."""
    old = target.with_name(target.name + ".old")
    if not target.exists() and old.exists():
        old.rename(target)
    return target.exists()


def replace_folder(new: Path, target: Path) -> None:
    """Move `new` to `target` so that a whole `target` exists at every instant but one rename."""
    recover_folder(target)
    for file in new.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    finally:
        recover_folder(target)
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
