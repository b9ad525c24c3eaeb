"""Bundles for the stress tests: copies of the bundled model, renamed, damaged or foreign."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.settings import DEFAULT_BUNDLE

Harm = Callable[[Path], None]


def link(path: Path, folder: Path) -> None:
    """The path leads to another folder from one instant to the next."""
    new = path.with_suffix(".new")
    new.symlink_to(folder)
    new.replace(path)


def copy(source: Path, target: Path, **manifest: Any) -> Path:
    """With other members in the manifest."""
    shutil.copytree(source, target)
    edit(target, **manifest)
    return target


def edit(folder: Path, **members: Any) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, **members}), encoding="utf-8")


def rehash(folder: Path) -> None:
    """Let the manifest say what the files now are, as who means to deceive would."""
    data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name, entry in data["files"].items():
        content = (folder / name).read_bytes()
        entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit(folder, files=data["files"])


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)


def truncated(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1000])


def altered_model(folder: Path) -> None:
    flip(folder / "model.onnx", (folder / "model.onnx").stat().st_size // 2)


def altered_tokenizer(folder: Path) -> None:
    flip(folder / "tokenizer.json", 2000)


def other_weights(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "model.onnx")
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = largest.raw_data[::-1]
    onnx.save(model, folder / "model.onnx")
    rehash(folder)


def no_model(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"this is no graph" * 100)
    rehash(folder)


def missing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def foreign(folder: Path) -> None:
    """A folder as of another program."""
    (folder / "manifest.json").unlink()
    (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")


def newer(folder: Path) -> None:
    edit(folder, format_version=99)


GOLDEN = "other weights, new hashes"  # is seen where the manifest has a golden answer
# With what must be said: the file, and the reason.
BAD: dict[str, tuple[Harm, tuple[str, str]]] = {
    "truncated": (truncated, ("model.onnx", "bytes")),
    "altered model": (altered_model, ("model.onnx", "damaged")),
    "altered tokenizer": (altered_tokenizer, ("tokenizer.json", "damaged")),
    GOLDEN: (other_weights, ("other-weights", "golden")),
    "no model, new hashes": (no_model, ("model.onnx", "cannot be")),
    "a file missing": (missing, ("tokenizer.json", "missing")),
    "foreign": (foreign, ("manifest.json", "missing")),
    "of a newer format": (newer, ("manifest.json", "format_version is 99")),
}


def names() -> list[str]:
    """Those that can be told from a good one."""
    manifest = json.loads((DEFAULT_BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    return [name for name in BAD if name != GOLDEN or manifest.get("golden")]


def bad(name: str, target: Path) -> Path:
    folder = copy(DEFAULT_BUNDLE, target)
    BAD[name][0](folder)
    return folder
