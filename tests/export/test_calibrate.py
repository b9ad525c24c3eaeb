"""Ranges are those of the model's own activations, and wild rows keep scales of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from app.bundle import Bundle
from export.bundle import Activations, KVCache, export_bundle
from export.calibrate import CACHE_MARGIN, COARSER, MARGIN, Range, cache_scale, calibrate, watch
from export.checkpoint import Checkpoint, load_checkpoint
from export.errors import CheckpointError
from export.quantize import LEVELS, Activation


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(random_checkpoint)


def seen(*batches: np.ndarray) -> Range:
    result = Range()
    for batch in batches:
        result.see(batch.astype(np.float32))
    return result


def test_ranges_are_what_torch_sees(checkpoint: Checkpoint) -> None:
    """Every product's input and what is cached, over rows of unlike lengths without padding."""
    import torch
    from transformers import GPT2LMHeadModel

    rng = np.random.default_rng(0)
    rows = [rng.integers(0, checkpoint.dimensions.vocabulary, n).tolist() for n in (3, 40, 17, 8)]
    ranges, peaks = watch(checkpoint, rows)
    model = GPT2LMHeadModel.from_pretrained(str(checkpoint.path), local_files_only=True).eval()
    expected = {name: Range() for name in ranges}
    for name, one in expected.items():
        module = model.transformer.get_submodule(name)
        module.register_forward_hook(lambda m, x, y, one=one: one.see(x[0][0].numpy()))
    width = checkpoint.dimensions.width
    cached = [np.zeros(2 * width, np.float32) for _ in peaks]
    for block, peak in zip(model.transformer.h, cached, strict=True):

        def see(m: object, x: object, y: torch.Tensor, peak: np.ndarray = peak) -> None:
            np.maximum(peak, y[0, :, width:].abs().amax(dim=0).numpy(), out=peak)

        block.attn.c_attn.register_forward_hook(see)
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    assert len(ranges) == 4 * checkpoint.dimensions.layers
    for name, one in ranges.items():
        assert one.rows == expected[name].rows == sum(map(len, rows)), name
        for part in ("low", "high", "squares"):
            value, wanted = getattr(one, part), getattr(expected[name], part)
            assert value == pytest.approx(wanted, rel=1e-4), (name, part)
    for peak, wanted_peak in zip(peaks, cached, strict=True):
        np.testing.assert_allclose(peak.ravel(), wanted_peak, rtol=1e-4)


def test_a_cache_scale_reaches_beyond_what_was_seen_and_is_never_zero() -> None:
    scale = cache_scale(np.array([[2.0, 0.0], [1.0, 4.0]], np.float32))
    assert scale.key.tolist() == pytest.approx([CACHE_MARGIN * 2 / LEVELS, 1 / LEVELS])
    assert scale.value.tolist() == pytest.approx([CACHE_MARGIN / LEVELS, CACHE_MARGIN * 4 / LEVELS])
    with pytest.raises(CheckpointError, match="not finite"):
        cache_scale(np.array([[1.0], [np.inf]], np.float32))


def test_one_scale_reaches_beyond_what_was_seen() -> None:
    x = np.random.default_rng(1).normal(0, 1, (50, 32))
    found = seen(x[:20], x[20:]).activation()
    assert found == Activation(pytest.approx(MARGIN * np.abs(x).max() / LEVELS), 128)


def test_what_is_hardly_negative_gets_the_steps_above() -> None:
    x = np.random.default_rng(2).normal(0, 1, (50, 32)).clip(-0.17)
    found = seen(x).activation()
    assert found is not None and 0 < found.zero_point < 32
    low, high = (0 - found.zero_point) * found.scale, (255 - found.zero_point) * found.scale
    assert low <= -0.17 + found.scale and high >= x.max()


@pytest.mark.parametrize(("factor", "fits"), [(COARSER / MARGIN - 0.4, True), (8.0, False)])
def test_a_few_wild_rows_forbid_one_scale(factor: float, fits: bool) -> None:
    x = np.sign(np.random.default_rng(3).normal(0, 1, (1000, 32)))
    x[0] *= factor
    assert (seen(x).activation() is not None) == fits


@pytest.mark.parametrize("x", [np.zeros((4, 8)), np.full((4, 8), np.inf), np.full((4, 8), np.nan)])
def test_nothing_to_go_by(x: np.ndarray) -> None:
    assert seen(x).activation() is None


def test_the_head_is_never_given_one_scale(checkpoint: Checkpoint, fp32_bundle: Bundle) -> None:
    found = calibrate(checkpoint, fp32_bundle, ["The weather is fine."]).activations
    assert found and "head" not in found
    assert found.keys() <= {
        f"h.{layer}.{part}"
        for layer in range(checkpoint.dimensions.layers)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


@pytest.mark.parametrize("activations", ["static", "token"])
@pytest.mark.parametrize("kv_cache", ["int8", "float32"])
def test_export_calibrates_what_is_asked_for(
    random_checkpoint: Path, tmp_path: Path, activations: Activations, kv_cache: KVCache
) -> None:
    bundle = export_bundle(
        random_checkpoint,
        tmp_path / "b",
        activations=activations,
        kv_cache=kv_cache,
        verify=False,
    )
    names = {tensor.name for tensor in onnx.load(str(bundle.model_path)).graph.initializer}
    assert ("h.0.attn.c_attn.step" in names) == (activations == "static")
    assert "unit.step" in names  # the head's
    assert ("h.0.attn.key.scale" in names) == (kv_cache == "int8")
    assert bundle.manifest.graph.cache_dtype == kv_cache
