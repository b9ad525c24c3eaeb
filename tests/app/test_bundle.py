"""Every way in which a bundle can be wrong is named when it is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from app.bundle import Bundle
from app.errors import BundleError

Edit = Callable[[dict[str, Any]], object]


def entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Path) -> Path:
    """A bundle whose model.onnx is a stand-in: opening a bundle does not parse it."""
    (tmp_path / "model.onnx").write_bytes(b"not a model" * 100)
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer.read_bytes())
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer))
    codes = ["en", "zh", "de", "fr"]
    manifest = {
        "format": "gpt2-mt-bundle",
        "format_version": 1,
        "name": "tiny",
        "created": "2026-01-01T00:00:00Z",
        "files": {name: entry(tmp_path / name) for name in ("model.onnx", "tokenizer.json")},
        "model": {
            "architecture": "gpt2", "layers": 2, "heads": 4, "width": 64, "head_size": 16,
            "vocabulary": tokenizer.get_vocab_size(), "context": 128, "parameters": 1000,
            "precision": "fp32", "mask": "causal",
        },
        "graph": {"cache_dtype": "float32"},
        "tokens": {
            "end": 0, "mask": 1, "separator": 2,
            "languages": {c: {"source": 3 + i, "target": 7 + i} for i, c in enumerate(codes)},
            "reserved": list(range(11, 64)),
        },
        "templates": {
            "translate": ["<|src:{source}|>", "<|tgt:{target}|>", "{text}", "<|sep|>"],
            "generate": ["<|endoftext|>", "{text}"],
        },
        "languages": {"en": "English", "de": "German"},
        "pairs": [["en", "de"]],
        "limits": {"context": 128, "max_prompt_tokens": 100},
        "scores": [],
        "provenance": {"corpora": [{"name": "c", "licence": "CC0-1.0"}], "licences": ["CC0-1.0"]},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def edit(folder: Path, change: Edit) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def golden(**changes: Any) -> dict[str, Any]:
    right = {"prompt": [0, 5], "ids": [7], "log_probabilities": [-0.5], "tolerance": 0.01}
    return {**right, **changes}


@pytest.mark.parametrize("version", [1, 2])
def test_opens_bundles_of_both_formats(folder: Path, version: int) -> None:
    edit(folder, lambda m: m.update(format_version=version))
    assert Bundle.open(folder).manifest.golden is None
    edit(folder, lambda m: m.update(golden=golden()))
    assert Bundle.open(folder).manifest.golden.ids == (7,)  # type: ignore[union-attr]


def test_opens(folder: Path) -> None:
    bundle = Bundle.open(str(folder))
    assert bundle.manifest.pairs == (("en", "de"),)
    assert bundle.manifest.tokens.languages["de"].target == 9
    assert bundle.model_path.is_file() and bundle.tokenizer_path.is_file()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (lambda m: m.update(format="other"), "format"),
        (lambda m: m.update(format_version=3, added=1), "format_version"),
        (lambda m: m.update(format_version=True), "format_version"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.update(golden=golden(ids=[])), "golden.ids"),
        (lambda m: m.update(golden=golden(ids=[1, 2])), "golden.log_probabilities"),
        (lambda m: m.update(golden=golden(prompt=[0] * 128)), "golden"),
        (lambda m: m.update(golden=golden(prompt=[10**6])), "golden"),
        (lambda m: m.update(golden=golden(tolerance=0)), "golden.tolerance"),
        (lambda m: m["model"].update(surprise=1), "model.surprise"),
        (lambda m: m.pop("limits"), "limits"),
        (lambda m: m.update(name="../x"), "name"),
        (lambda m: m["model"].update(layers="many"), "model.layers"),
        (lambda m: m["model"].update(head_size=32), "model.head_size"),
        (lambda m: m["model"].update(head_size=4, heads=16), "model.head_size"),
        (lambda m: m["model"].update(vocabulary=599), "model.vocabulary"),
        (lambda m: m["graph"].update(past_key="past"), "graph.past_key"),
        (lambda m: m["graph"].update(cache_dtype="float16"), "graph.cache_dtype"),
        (lambda m: m["graph"].update(cache_dtype="int8"), "graph.cache_dtype"),  # fp32
        (lambda m: m["files"].pop("model.onnx"), "files"),
        (lambda m: m["files"].update({"../model.onnx": m["files"]["model.onnx"]}), "files"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"]["model.onnx"]}), "files"),
        (lambda m: m["files"].update({"gone.bin": m["files"]["model.onnx"]}), "files.gone.bin"),
        (lambda m: m["files"]["model.onnx"].update(bytes=5), "files.model.onnx.bytes"),
        (lambda m: m["files"]["model.onnx"].update(sha256="0" * 64), "files.model.onnx.sha256"),
        (lambda m: m["tokens"].pop("mask"), "tokens.mask"),
        (lambda m: m["tokens"].update(mask=0), "tokens.mask"),
        (lambda m: m["tokens"].update(mask=9999), "tokens.mask"),
        (lambda m: m["tokens"].update(separator=300), "tokens"),
        (lambda m: m["tokens"]["languages"].pop("de"), "tokens.languages.de"),
        (
            lambda m: m["tokens"]["languages"].update(
                en={"source": 4, "target": 7}, zh={"source": 3, "target": 8}
            ),
            "tokens.languages.en",
        ),
        (lambda m: m.update(pairs=[["en", "fr"]]), "pairs"),
        (lambda m: m.update(via={"de-en": "en"}), "via.de-en"),
        (lambda m: m.update(via={"en-de": "fr"}), "via.en-de"),
        (lambda m: m["templates"].pop("translate"), "templates.translate"),
        (lambda m: m["templates"].update(generate=["<|end|>", "{text}"]), "templates.generate"),
        (lambda m: m["templates"].update(generate=["<|endoftext|>"]), "templates.generate"),
        (lambda m: m["templates"].update(generate=["{source}", "{text}"]), "templates.generate"),
        (lambda m: m["templates"].update({"task:a": ["{source}", "{text}"]}), "templates.task:a"),
        (lambda m: m["templates"].update({"task:a": ["<|x|>", "{text}"]}), "templates.task:a"),
        (lambda m: m["templates"].update({"summary": ["{text}"]}), "templates.summary.[key]"),
        (lambda m: m["limits"].update(context=129), "limits.context"),
        (lambda m: m["limits"].update(max_prompt_tokens=128), "limits.max_prompt_tokens"),
    ],
)
def test_manifest_errors_name_the_field(folder: Path, change: Edit, param: str) -> None:
    edit(folder, change)
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert caught.value.param == param
    assert param.split(".")[-1] in str(caught.value) or param in str(caught.value)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        Bundle.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "tokenizer.json"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_manifest_that_is_not_json(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(folder)


def test_one_changed_byte_is_found_unless_hashes_are_skipped(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[17] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="damaged"):
        Bundle.open(folder)
    assert Bundle.open(folder, verify=False).manifest.name == "tiny"


def test_unreadable_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    edit(folder, lambda m: m["files"].update({"tokenizer.json": entry(folder / "tokenizer.json")}))
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert caught.value.param == "tokenizer.json"


def test_missing_special_token_in_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|src:fr|>", "<|src:xx|>"))
    edit(folder, lambda m: m["files"].update({"tokenizer.json": entry(path)}))
    with pytest.raises(BundleError, match="src:fr"):
        Bundle.open(folder)
