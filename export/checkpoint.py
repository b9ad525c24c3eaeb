"""Reading a checkpoint directory with numpy alone: config.json, model.safetensors, meta.json.

In goes a directory in Hugging Face GPT-2 form plus our meta.json, out comes a `Checkpoint`: float32
tensors under short names (`wte.weight`, `h.0.attn.c_attn.weight`, ...), dimensions and meta data.
Anything that the exported graph could not express is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from export.errors import CheckpointError

Tensors = dict[str, NDArray[np.float32]]

META_KEYS: Final = ("format_version", "stage", "mask", "languages", "templates")
FIXED: Final[dict[str, object]] = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
_DTYPES: Final = {"F32", "F16"}


@dataclass(frozen=True, slots=True)
class Dimensions:
    layers: int
    heads: int
    width: int
    inner: int
    vocabulary: int
    context: int
    epsilon: float

    @property
    def head_size(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, slots=True)
class Checkpoint:
    path: Path
    dimensions: Dimensions
    tensors: Tensors
    config: dict[str, Any]
    meta: dict[str, Any]

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())


def load_checkpoint(path: str | Path) -> Checkpoint:
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {str(folder)!r}: not a directory")
    config, meta = _read_json(folder / "config.json"), _read_json(folder / "meta.json")
    for key in META_KEYS:
        if key not in meta:
            raise CheckpointError(f"{str(folder / 'meta.json')!r}: key {key!r} is missing")
    if meta["format_version"] != 1:
        raise CheckpointError(f"meta.json: format_version is {meta['format_version']!r}, not 1")
    if meta["mask"] != "causal":
        raise CheckpointError(f"meta.json: mask {meta['mask']!r} cannot be exported, only 'causal'")
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{str(folder / 'tokenizer.json')!r} is missing")
    dimensions = _dimensions(config)
    weights = folder / "model.safetensors"
    tensors = _read_tensors(weights, dimensions)
    if meta.get("sha256", digest := _sha256(weights)) != digest:
        raise CheckpointError(
            f"{str(weights)!r} is damaged: sha256 {digest}, meta.json says {meta['sha256']}"
        )
    return Checkpoint(folder, dimensions, tensors, config, meta)


def tensor_shapes(d: Dimensions) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint under its short name."""
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (d.vocabulary, d.width),
        "wpe.weight": (d.context, d.width),
        "ln_f.weight": (d.width,),
        "ln_f.bias": (d.width,),
    }
    for layer in range(d.layers):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{norm}.{kind}": (d.width,) for kind in ("weight", "bias")}
        for name, rows, columns in (
            ("attn.c_attn", d.width, 3 * d.width),
            ("attn.c_proj", d.width, d.width),
            ("mlp.c_fc", d.width, d.inner),
            ("mlp.c_proj", d.inner, d.width),
        ):
            shapes[f"h.{layer}.{name}.weight"] = (rows, columns)
            shapes[f"h.{layer}.{name}.bias"] = (columns,)
    return shapes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{str(path)!r} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{str(path)!r} is not a JSON object")
    return data


def _dimensions(config: dict[str, Any]) -> Dimensions:
    for key, expected in FIXED.items():
        if config.get(key, expected) != expected:
            raise CheckpointError(
                f"config.json: {key} is {config[key]!r}, only {expected!r} can be exported"
            )
    try:
        width = int(config["n_embd"])
        dimensions = Dimensions(
            layers=int(config["n_layer"]),
            heads=int(config["n_head"]),
            width=width,
            inner=int(config.get("n_inner") or 4 * width),
            vocabulary=int(config["vocab_size"]),
            context=int(config["n_positions"]),
            epsilon=float(config.get("layer_norm_epsilon", 1e-5)),
        )
    except KeyError as error:
        raise CheckpointError(f"config.json: {error.args[0]} is missing") from None
    if width % dimensions.heads or dimensions.head_size % 8:
        raise CheckpointError(
            f"config.json: n_embd {width} / n_head {dimensions.heads} must be a multiple of 8"
        )
    return dimensions


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_tensors(path: Path, dimensions: Dimensions) -> Tensors:
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} is missing")
    tensors: Tensors = {}
    try:
        with safe_open(str(path), framework="numpy") as file:
            names = set(file.keys())
            for short, shape in tensor_shapes(dimensions).items():
                name = f"transformer.{short}" if f"transformer.{short}" in names else short
                if name not in names:
                    raise CheckpointError(f"{path.name}: tensor 'transformer.{short}' is missing")
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _DTYPES:
                    raise CheckpointError(f"{path.name}: {name} is {dtype}, expected F32")
                tensor = np.asarray(file.get_tensor(name), dtype=np.float32)
                if tensor.shape != shape:
                    raise CheckpointError(
                        f"{path.name}: {name} has shape {tensor.shape}, config.json says {shape}"
                    )
                if not np.isfinite(tensor).all():
                    raise CheckpointError(f"{path.name}: {name} holds values that are not finite")
                tensors[short] = np.ascontiguousarray(tensor)
    except SafetensorError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from None
    return tensors
