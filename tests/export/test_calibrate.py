"""Scales of the cache are those of the model's own keys and values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.bundle import KVCache, export_bundle
from export.calibrate import MARGIN, cache_scale, watch
from export.checkpoint import Checkpoint, load_checkpoint
from export.errors import CheckpointError
from export.quantize import LEVELS


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(random_checkpoint)


def test_peaks_are_what_torch_sees(checkpoint: Checkpoint) -> None:
    """What is cached, over rows of unlike lengths without padding."""
    import torch
    from transformers import GPT2LMHeadModel

    rng = np.random.default_rng(0)
    rows = [rng.integers(0, checkpoint.dimensions.vocabulary, n).tolist() for n in (3, 40, 17, 8)]
    peaks = watch(checkpoint, rows)
    model = GPT2LMHeadModel.from_pretrained(str(checkpoint.path), local_files_only=True).eval()
    width = checkpoint.dimensions.width
    cached = [np.zeros(2 * width, np.float32) for _ in peaks]
    for block, peak in zip(model.transformer.h, cached, strict=True):

        def see(m: object, x: object, y: torch.Tensor, peak: np.ndarray = peak) -> None:
            np.maximum(peak, y[0, :, width:].abs().amax(dim=0).numpy(), out=peak)

        block.attn.c_attn.register_forward_hook(see)
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    for peak, wanted_peak in zip(peaks, cached, strict=True):
        np.testing.assert_allclose(peak.ravel(), wanted_peak, rtol=1e-4)


def test_a_cache_scale_reaches_beyond_what_was_seen_and_is_never_zero() -> None:
    scale = cache_scale(np.array([[2.0, 0.0], [1.0, 4.0]], np.float32))
    assert scale.key.tolist() == pytest.approx([MARGIN * 2 / LEVELS, 1 / LEVELS])
    assert scale.value.tolist() == pytest.approx([MARGIN / LEVELS, MARGIN * 4 / LEVELS])
    with pytest.raises(CheckpointError, match="not finite"):
        cache_scale(np.array([[1.0], [np.inf]], np.float32))


@pytest.mark.parametrize("kv_cache", ["int8", "float32"])
def test_export_calibrates_what_is_asked_for(
    random_checkpoint: Path, tmp_path: Path, kv_cache: KVCache
) -> None:
    bundle = export_bundle(random_checkpoint, tmp_path / "b", kv_cache=kv_cache, verify=False)
    names = {tensor.name for tensor in onnx.load(str(bundle.model_path)).graph.initializer}
    assert ("h.0.attn.key.scale" in names) == (kv_cache == "int8")
    assert bundle.manifest.graph.cache_dtype == kv_cache
