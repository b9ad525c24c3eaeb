"""A decoder that computes something else than the exporter's does not start."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from app.bundle import Bundle, Golden
from app.engine import session
from app.engine.golden import check_golden, log_probabilities
from app.engine.session import OnnxDecoder
from app.errors import BundleError, GoldenMismatch


@pytest.fixture(params=["fp32", "int8", "int4"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    result: Bundle = request.getfixturevalue(f"{request.param}_bundle")
    return result


def golden_of(bundle: Bundle) -> Golden:
    assert bundle.manifest.golden is not None
    return bundle.manifest.golden


def with_golden(bundle: Bundle, golden: Golden | None) -> Bundle:
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"golden": golden}))


def test_answers_as_it_did_at_export(bundle: Bundle) -> None:
    golden = golden_of(bundle)
    decoder = OnnxDecoder(bundle, slots=4, threads=2)
    assert decoder.alike is True
    logits = decoder.prefill(1, [golden.prompt])
    for at, token in enumerate(golden.ids):
        assert logits[0].argmax() == token
        log_probability = log_probabilities(logits, [token])[0]
        assert log_probability == pytest.approx(golden.log_probabilities[at], abs=1e-3)
        decoder.move(1, 0, len(golden.prompt) + at)
        length = np.array([len(golden.prompt) + at], np.int32)
        logits = decoder.decode(np.array([token]), length)
        decoder.move(0, 1, len(golden.prompt) + at + 1)


@pytest.mark.parametrize("at", [0, -1])
def test_another_answer_is_refused(bundle: Bundle, at: int) -> None:
    golden = golden_of(bundle)
    values = list(golden.log_probabilities)
    values[at] -= 1.5 * golden.tolerance
    wrong = golden.model_copy(update={"log_probabilities": tuple(values)})
    with pytest.raises(GoldenMismatch, match="golden answer") as caught:
        OnnxDecoder(with_golden(bundle, wrong), slots=1, threads=1)
    assert isinstance(caught.value, BundleError) and caught.value.param == "golden"
    assert f"{values[at]:.3f}" in caught.value.detail


def test_not_a_number_is_refused(fp32_bundle: Bundle) -> None:
    class Broken(OnnxDecoder):
        def prefill(self, first, prompts, start=0):  # type: ignore[no-untyped-def]
            return super().prefill(first, prompts, start) * np.float32(np.nan)

    with pytest.raises(GoldenMismatch):
        Broken(fp32_bundle, slots=1, threads=1)


def test_what_cannot_be_told(fp32_bundle: Bundle) -> None:
    golden = golden_of(fp32_bundle)
    short = len(golden.prompt) + len(golden.ids) - 1
    assert OnnxDecoder(fp32_bundle, slots=1, threads=1).alike is None
    assert OnnxDecoder(fp32_bundle, slots=2, capacity=short, threads=1).alike is None
    assert OnnxDecoder(with_golden(fp32_bundle, None), slots=2, threads=1).alike is None


def test_a_processor_whose_rows_are_not_alike_is_told(
    fp32_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Sociable(OnnxDecoder):
        def decode(self, tokens, lengths):  # type: ignore[no-untyped-def]
            logits = super().decode(tokens, lengths)
            return np.nextafter(logits, np.float32(np.inf)) if len(tokens) > 1 else logits

    with caplog.at_level(logging.WARNING):
        decoder = Sociable(fp32_bundle, slots=3, threads=1)
    assert decoder.alike is False and "differ in the last bits" in caplog.text
    caplog.clear()
    monkeypatch.setattr(session, "check_golden", lambda decoder, golden: True)
    with caplog.at_level(logging.WARNING):
        OnnxDecoder(fp32_bundle, slots=3, threads=1)
    assert not caplog.records


def test_one_row_is_enough_to_refuse(int8_bundle: Bundle) -> None:
    """The check itself, without a session: logits that are all alike."""

    class Flat:
        slots, capacity = 1, 128

        def prefill(self, first, prompts):  # type: ignore[no-untyped-def]
            return np.zeros((len(prompts), int8_bundle.manifest.model.vocabulary), np.float32)

        def decode(self, tokens, lengths):  # type: ignore[no-untyped-def]
            return np.zeros((len(tokens), int8_bundle.manifest.model.vocabulary), np.float32)

    with pytest.raises(GoldenMismatch, match="token 1 "):
        check_golden(Flat(), golden_of(int8_bundle))
