"""The stated size of the KV cache against the arrays that a decoder really allocates."""

from __future__ import annotations

import pytest

from app.bundle import Bundle
from app.engine.memory import MAX_SLOTS, CacheSize, fit_cache
from app.engine.session import OnnxDecoder
from app.errors import SettingsError
from app.settings import Settings


@pytest.mark.parametrize(("slots", "capacity"), [(1, None), (3, 128), (5, 29)])
def test_the_size_is_that_of_the_arrays(
    fp32_bundle: Bundle, slots: int, capacity: int | None
) -> None:
    decoder = OnnxDecoder(fp32_bundle, slots=slots, capacity=capacity, threads=1)
    size = CacheSize.of(fp32_bundle.manifest, slots, capacity)
    assert size.bytes == sum(array.nbytes for array in decoder._caches._arrays)


def test_slots_for_prefixes_count(fp32_bundle: Bundle) -> None:
    decoder = OnnxDecoder(fp32_bundle, slots=3, spare=2, threads=1)
    size = fit_cache(fp32_bundle.manifest, None, 1, spare=2)  # seven in all
    assert (size.slots, size.spare) == (5, 2)
    assert str(size).startswith("5 + 2 slots x 128 tokens x 1,024 bytes = 0.9 MB")
    assert sum(a.nbytes for a in decoder._caches._arrays) == 5 * size.bytes // 7
    with pytest.raises(SettingsError, match="hold 0.*beside 9 for prefixes and padding"):
        fit_cache(fp32_bundle.manifest, None, 1, spare=9)


def test_half_precision_takes_half(fp32_bundle: Bundle) -> None:
    manifest = fp32_bundle.manifest
    graph = manifest.graph.model_copy(update={"cache_dtype": "float16"})
    half = CacheSize.of(manifest.model_copy(update={"graph": graph}), 4)
    assert 2 * half.bytes == CacheSize.of(manifest, 4).bytes == 4 * 128 * 1024


def test_an_int8_cache_takes_a_quarter(int8_bundle: Bundle, fp32_bundle: Bundle) -> None:
    size = CacheSize.of(int8_bundle.manifest, 4)
    assert str(size).startswith("4 + 1 slots")  # one for rows that only pad a run
    assert 4 * size.bytes == CacheSize.of(fp32_bundle.manifest, 5).bytes
    decoder = OnnxDecoder(int8_bundle, slots=4)
    assert sum(a.nbytes for a in decoder._caches._arrays) == size.bytes


def test_slots_follow_from_the_limit(fp32_bundle: Bundle) -> None:
    manifest = fp32_bundle.manifest  # 131,072 bytes a slot
    assert fit_cache(manifest, None, None).slots == 32
    assert fit_cache(manifest, 40, None).slots == 40
    assert fit_cache(manifest, None, 10).slots == 76
    assert fit_cache(manifest, None, 10_000).slots == 1024
    assert fit_cache(manifest, 76, 10).slots == 76
    with pytest.raises(SettingsError, match="slots 77 and cache_mb 10 contradict.*hold 76"):
        fit_cache(manifest, 77, 10)
    assert fit_cache(manifest, None, 10, engines=2).slots == 38
    assert fit_cache(manifest, 33, None, engines=2).slots == 17
    with pytest.raises(SettingsError, match="slots 78 and cache_mb 10 contradict.*hold 76"):
        fit_cache(manifest, 77, 10, engines=2)
    model = manifest.model.model_copy(update={"layers": 200})
    with pytest.raises(SettingsError, match="slots 1 and cache_mb 1 contradict.*hold 0"):
        fit_cache(manifest.model_copy(update={"model": model}), None, 1)


def test_the_setting_allows_as_many_slots_as_fit_is_bound_to() -> None:
    (bound,) = [m.le for m in Settings.model_fields["slots"].metadata if hasattr(m, "le")]
    assert bound == MAX_SLOTS
