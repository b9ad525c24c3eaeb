"""Sessions: threads from the cgroup, devices that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.engine import runtime
from app.engine.copies import copy_model
from app.engine.runtime import PROVIDERS, available_threads, create_session
from app.errors import InvalidField

MODEL = copy_model(1, "float32")


def test_threads_follow_the_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert available_threads(tmp_path) == 8
    for text, expected in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text)
        assert available_threads(tmp_path) == expected
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for text, expected in (("-1\n", 8), ("300000\n", 3)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(text)
        assert available_threads(tmp_path) == expected


@pytest.mark.parametrize(("device", "match"), [("tpu", "not one of"), ("cuda", "'gpu' extra")])
def test_a_device_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, device: str, match: str
) -> None:
    monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InvalidField, match=match) as caught:
        create_session(MODEL, device)  # type: ignore[arg-type]
    assert caught.value.param == "device"


def test_a_provider_that_fails_is_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime goes on with the CPU when the libraries of CUDA are missing; we do not."""
    on_cpu = create_session(MODEL, threads=1)
    monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: [*PROVIDERS.values()])
    monkeypatch.setattr(runtime.ort, "InferenceSession", lambda *a, **o: on_cpu)
    with pytest.raises(InvalidField, match="CUDAExecutionProvider failed"):
        create_session(MODEL, "cuda")
