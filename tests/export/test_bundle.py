"""Bundles and checkpoints are written whole or not at all, and one becomes the other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from app.bundle import Bundle, ScoreEntry
from app.engine.session import OnnxDecoder
from export import bundle as module
from export.bundle import convert_bundle, export_bundle, restore_checkpoint
from export.errors import TargetExists
from export.verify import TorchOracle


def test_manifest_says_what_the_checkpoint_said(random_checkpoint: Path, tmp_path: Path) -> None:
    score = ScoreEntry(
        set="s", source="en", target="de", metric="BLEU", value=12.5, signature="nrefs:1"
    )
    target = tmp_path / "deep" / "name.of-it"
    manifest = export_bundle(
        random_checkpoint, target, precision="fp32", scores=[score], verify=False
    ).manifest
    assert manifest.name == "name.of-it" and manifest.scores == (score,)
    assert manifest.tokens.languages["zh"].source == 4
    assert manifest.tokens.languages["zh"].target == 8
    assert manifest.tokens.reserved == tuple(range(11, 64))
    assert len(manifest.pairs) == 12
    assert manifest.provenance.licences == ("CC0-1.0",)
    assert manifest.graph.cache_dtype == "float32"
    assert sorted(p.name for p in target.iterdir()) == [
        "manifest.json", "model.onnx", "tokenizer.json"
    ]  # fmt: skip
    assert [p.name for p in target.parent.iterdir()] == ["name.of-it"]


def test_a_pretrained_checkpoint_serves_generation_only(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(random_checkpoint, tmp_path / "c"))
    meta = json.loads((copy / "meta.json").read_text())
    del meta["templates"]["translate"], meta["pairs"]
    (copy / "meta.json").write_text(json.dumps(meta | {"stage": "pretrain"}))
    bundle = export_bundle(copy, tmp_path / "b", precision="int8", testset=tmp_path)
    assert bundle.manifest.pairs == () and list(bundle.manifest.templates) == ["generate"]
    assert "bits_per_byte" in bundle.manifest.verification
    assert restore_checkpoint(bundle, tmp_path / "r").meta["pairs"] == []


def test_another_inner_width_survives(random_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(random_checkpoint, tmp_path / "c"))
    config = json.loads((copy / "config.json").read_text()) | {"n_inner": 128}
    (copy / "config.json").write_text(json.dumps(config))
    tensors = load_file(copy / "model.safetensors")
    for name, value in tensors.items():
        if ".c_fc." in name:
            tensors[name] = np.ascontiguousarray(value[..., :128])
        elif name.endswith("mlp.c_proj.weight"):
            tensors[name] = np.ascontiguousarray(value[:128])
    save_file(tensors, copy / "model.safetensors")
    bundle = export_bundle(copy, tmp_path / "b", precision="fp32", verify=False)
    assert restore_checkpoint(bundle, tmp_path / "r").dimensions.inner == 128


def test_nothing_is_overwritten_unless_forced(random_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    export_bundle(random_checkpoint, target, precision="fp32", verify=False)
    before = (target / "manifest.json").read_bytes()
    with pytest.raises(TargetExists, match="--force"):
        export_bundle(random_checkpoint, target, precision="int8", verify=False)
    assert (target / "manifest.json").read_bytes() == before
    export_bundle(random_checkpoint, target, precision="int8", verify=False, force=True)
    assert Bundle.open(target).manifest.model.precision == "int8"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_force_spares_what_is_no_bundle(random_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(TargetExists, match="thesis"):
        export_bundle(random_checkpoint, tmp_path / "thesis", verify=False, force=True)
    assert (tmp_path / "thesis" / "chapter1.tex").is_file()


def test_a_failure_leaves_nothing_behind(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "make_manifest", explode)
    with pytest.raises(OSError, match="disk full"):
        export_bundle(random_checkpoint, tmp_path / "b", verify=False)
    assert not list(tmp_path.iterdir())


def test_restored_fp32_is_the_checkpoint(
    fp32_bundle: Bundle, random_checkpoint: Path, tmp_path: Path
) -> None:
    restored = restore_checkpoint(fp32_bundle, tmp_path / "c")
    original = module.load_checkpoint(random_checkpoint)
    assert restored.dimensions == original.dimensions
    for name, tensor in original.tensors.items():
        assert np.array_equal(restored.tensors[name], tensor)
    for key in ("languages", "pairs", "templates", "mask", "stage", "corpora", "tokenizer_sha256"):
        assert restored.meta[key] == original.meta[key]
    with pytest.raises(TargetExists):
        restore_checkpoint(fp32_bundle, tmp_path / "c")


def test_restored_int8_loads_with_transformers_and_answers_as_the_bundle(
    int8_bundle: Bundle, tmp_path: Path
) -> None:
    restore_checkpoint(int8_bundle.path, tmp_path / "c")
    ids = [3, 8, 100, 101, 102, 2]
    expected = TorchOracle(tmp_path / "c")(ids)[-1]
    ours = OnnxDecoder(int8_bundle, slots=1, threads=1).prefill(0, [ids])[0]
    assert np.abs(ours - expected).max() < 0.05 * np.abs(expected).max()
    again = export_bundle(tmp_path / "c", tmp_path / "half", precision="fp16", verify=False)
    assert again.manifest.graph.cache_dtype == "float16"
    assert json.loads((tmp_path / "c" / "meta.json").read_text())["restored_from"]


def test_ways_through_a_language_stay_in_another_precision(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    via = {"de-fr": "en"}
    one = export_bundle(random_checkpoint, tmp_path / "one", precision="fp32", via=via,
                        verify=False)  # fmt: skip
    two = convert_bundle(one, tmp_path / "two", precision="int4", verify=False)
    assert one.manifest.via == two.manifest.via == via


def test_a_bundle_in_another_precision_has_the_same_weights(
    int8_bundle: Bundle, random_checkpoint: Path, tmp_path: Path
) -> None:
    half = convert_bundle(int8_bundle, tmp_path / "half", precision="fp16")
    manifest, former = half.manifest, int8_bundle.manifest
    assert (manifest.name, manifest.model.precision) == ("half", "fp16")
    for part in ("tokens", "templates", "languages", "pairs", "limits", "provenance"):
        assert getattr(manifest, part) == getattr(former, part)
    assert manifest.golden is not None and "bits_per_byte_loss" in manifest.verification
    assert not any(key.startswith("torch") for key in manifest.verification)
    restored = [
        restore_checkpoint(bundle, tmp_path / bundle.manifest.model.precision).tensors
        for bundle in (int8_bundle, half)
    ]
    for name, tensor in restored[0].items():
        assert np.array_equal(tensor.astype(np.float16), restored[1][name].astype(np.float16))
    ids = [[3, 8, 100, 101, 102, 2]]
    ours, theirs = (OnnxDecoder(b, slots=1, threads=1).prefill(0, ids) for b in (half, int8_bundle))
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()
    with pytest.raises(TargetExists):
        convert_bundle(int8_bundle, tmp_path / "half", precision="fp16")
