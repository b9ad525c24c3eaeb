"""Where a bundle runs: what was asked for, or the CPU with a line that says why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from app.bundle import Bundle
from app.engine import placement
from app.engine.device import DeviceDecoder
from app.engine.placement import describe, open_decoder, same_answers
from app.engine.runtime import PROVIDERS
from app.engine.session import OnnxDecoder
from app.errors import InvalidField

Cuda = Callable[[Callable[..., Any]], None]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Make it look as if there were a GPU, with this for a decoder on it."""

    def pretend(decoder: Callable[..., Any]) -> None:
        monkeypatch.setattr(placement.ort, "get_available_providers", lambda: [*PROVIDERS.values()])
        monkeypatch.setattr(placement, "DeviceDecoder", decoder)

    return pretend


def on_cpu(bundle: Bundle, *, device: str, **options: Any) -> DeviceDecoder:
    assert device == "cuda"
    return DeviceDecoder(bundle, device="cpu", **options)


def failing(bundle: Bundle, **options: Any) -> DeviceDecoder:
    raise RuntimeError("CUDA out of memory")  # as the binding does


def test_auto_takes_the_gpu_where_a_session_comes_up(
    cuda: Cuda, fp16_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    cuda(on_cpu)
    with caplog.at_level(logging.INFO):
        decoder = open_decoder(fp16_bundle, slots=2, spare=1, threads=1)
    assert isinstance(decoder, DeviceDecoder) and (decoder.slots, decoder.spare) == (2, 1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("gpu", "bundle", "why"),
    [(None, "fp16_bundle", "has no CUDAExecutionProvider"),
     (on_cpu, "int8_bundle", "this one is int8; make one with `gpt2-mt export"),
     (failing, "fp16_bundle", "cannot be used: CUDA out of memory")],
)  # fmt: skip
def test_auto_falls_back_and_says_why(
    cuda: Cuda, gpu: Callable[..., Any] | None, bundle: str, why: str,
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if gpu is None:
        monkeypatch.setattr(placement.ort, "get_available_providers", lambda: [PROVIDERS["cpu"]])
    else:
        cuda(gpu)
    with caplog.at_level(logging.INFO):
        decoder = open_decoder(request.getfixturevalue(bundle), slots=2, threads=1)
    assert isinstance(decoder, OnnxDecoder)
    [record] = caplog.records
    assert record.message.startswith("device auto: running on the CPU, because ")
    assert why in record.message


def test_what_is_asked_for_and_cannot_be_had(
    cuda: Cuda, int8_bundle: Bundle, fp16_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(bundle: Bundle, choice: Any, match: str) -> None:
        with pytest.raises(InvalidField, match=match) as caught:
            open_decoder(bundle, choice, slots=1, threads=1)
        assert caught.value.param == "device"

    refused(int8_bundle, "tpu", "'tpu' is not one of")
    refused(int8_bundle, "cuda", "an fp16 bundle, this one is int8")
    older = fp16_bundle.manifest.graph.model_copy(update={"best_ids": None, "best_sums": None})
    manifest = fp16_bundle.manifest.model_copy(update={"graph": older})
    refused(replace(fp16_bundle, manifest=manifest), "cuda", "fp16 of an older version")
    cuda(failing)
    refused(fp16_bundle, "cuda", "out of memory")
    monkeypatch.undo()
    if PROVIDERS["cuda"] not in placement.ort.get_available_providers():
        refused(fp16_bundle, "cuda", "'gpu' extra")


def test_what_is_promised(int8_bundle: Bundle, fp16_bundle: Bundle) -> None:
    int8, half = (open_decoder(b, "cpu", slots=3, threads=1) for b in (int8_bundle, fp16_bundle))
    assert (same_answers(int8), same_answers(half)) == (True, False)
    assert same_answers(open_decoder(int8_bundle, "cpu", slots=1, threads=1)) is None
    int8.alike = False
    assert same_answers(int8) is False
    int8.alike, int8.device = True, "cuda"
    assert same_answers(int8) is False
    texts = {describe("cpu", same) for same in (True, False, None)}
    assert len(texts) == 3 and all(text.startswith("cpu; ") for text in texts)
