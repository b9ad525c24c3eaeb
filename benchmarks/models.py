"""The two models that are measured, in the form each engine reads, from the same weights.

The bundled model (or another bundle) and one of 6 layers x 384 with 32,768 entries, its weights
drawn by a seed. Bundle -> checkpoint in transformers' form -> our int8 and fp32 bundles and the
formats of the peers (convert.py). What is there already is kept.
Run as `python -m benchmarks.models --out DIR`; the other benchmarks do so when they begin.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from app.settings import DEFAULT_BUNDLE
from benchmarks import convert
from benchmarks.command import parser
from export.bundle import export_bundle, restore_checkpoint
from export.checkpoint import Dimensions, Tensors, tensor_shapes

MODELS = ("bundled", "32k")
LARGE = Dimensions(
    layers=6, heads=6, width=384, inner=1536, vocabulary=32768, context=512, epsilon=1e-5
)
PEERS = ("ctranslate2", "optimum", "llama_cpp", "onnxruntime_genai")  # modules
log = logging.getLogger(__name__)


def random_tensors(d: Dimensions, seed: int) -> Tensors:
    """N(0, 0.02) as GPT-2 begins, LayerNorms at one; biases are drawn too, so that they count."""
    rng, tensors = np.random.default_rng(seed), Tensors()
    for name, shape in tensor_shapes(d).items():
        drawn = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        scale = ".ln_" in f".{name}" and name.endswith("weight")
        tensors[name] = drawn + np.float32(1) if scale else drawn
    return tensors


def extend_vocabulary(tokenizer: Path, entries: int) -> str:
    """A tokenizer.json with unreachable entries added, so that its size is the model's."""
    data = json.loads(tokenizer.read_text(encoding="utf-8"))
    ids = {**data["model"]["vocab"], **{t["content"]: t["id"] for t in data["added_tokens"]}}
    for at in range(max(ids.values()) + 1, entries):
        data["model"]["vocab"][f"<unused {at}>"] = at
    return json.dumps(data, ensure_ascii=False)


def write_large(like: Path, target: Path, d: Dimensions = LARGE, seed: int = 0) -> None:
    """A checkpoint with random weights; languages and templates are those of `like`, another."""
    target.mkdir(parents=True)
    config = json.loads((like / "config.json").read_text(encoding="utf-8"))
    config |= {
        "n_layer": d.layers, "n_head": d.heads, "n_embd": d.width, "n_inner": d.inner,
        "vocab_size": d.vocabulary, "n_positions": d.context, "n_ctx": d.context,
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("meta.json", "generation_config.json"):
        shutil.copyfile(like / name, target / name)
    meta = json.loads((target / "meta.json").read_text(encoding="utf-8"))
    meta["corpora"] = []
    meta.pop("sha256", None)
    (target / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    text = extend_vocabulary(like / "tokenizer.json", d.vocabulary)
    (target / "tokenizer.json").write_text(text, encoding="utf-8")
    tensors = {f"transformer.{name}": value for name, value in random_tensors(d, seed).items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def prepare(root: Path, name: str, bundle: Path = DEFAULT_BUNDLE) -> Path:
    """The folder of one model, with all forms that the installed peers read."""
    place = root / name
    checkpoint = place / "checkpoint"
    if not checkpoint.exists():
        if name == "bundled":
            restore_checkpoint(bundle, checkpoint)
        else:
            write_large(prepare(root, "bundled", bundle) / "checkpoint", checkpoint)
    forms: dict[str, Callable[[Path], object]] = {
        "fp32": lambda to: export_bundle(checkpoint, to, precision="fp32", name=name, verify=False),
        "int8": lambda to: shutil.copytree(bundle, to)
        if name == "bundled"
        else export_bundle(checkpoint, to, precision="int8", name=name, verify=False),
    }
    for peer in PEERS:
        if find_spec(peer) is not None:
            forms |= convert.FORMS[peer](checkpoint)
    for form, write in forms.items():
        if not (place / form).exists():
            log.info("%s: writing %s", name, form)
            write(place / form)
    return place


def main(argv: Sequence[str] | None = None) -> int:
    commands = parser("models", __doc__)
    arguments = commands.parse_args(argv)
    logging.basicConfig(level="INFO", format="%(message)s")
    for name in MODELS:
        sys.stdout.write(f"{prepare(arguments.out, name, arguments.bundle)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
