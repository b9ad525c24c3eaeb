"""Verification passes an honest bundle, and no dishonest one is ever written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from app.bundle import Bundle
from export import bundle as module
from export import translator, verify
from export.bundle import build_model, export_bundle
from export.checkpoint import Checkpoint
from export.errors import VerificationFailed
from training import scores


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4", "fp16"])
def test_honest_bundles_pass(random_checkpoint: Path, tmp_path: Path, precision: str) -> None:
    bundle = export_bundle(random_checkpoint, tmp_path / "b", precision=precision)  # type: ignore[arg-type]
    facts = bundle.manifest.verification
    assert facts["greedy_prompts"] == 64
    assert facts["torch_relative_error"] < 1e-4 and facts["optimum_relative_error"] < 1e-4
    assert facts["batch_steps_changed"] == 0 and facts["batch_rows"] == 16
    assert ("bits_per_byte" in facts) == (precision != "fp32")


def tampered(precision: str, name: str, factor: float):
    """A `build_model` that changes one tensor when it builds the given precision."""

    def build(source: Checkpoint, asked: str, *scales: Any, **more: Any) -> onnx.ModelProto:
        if asked == precision:
            changed = {**source.tensors, name: source.tensors[name] * np.float32(factor)}
            source = replace(source, tensors=changed)
        return build_model(source, asked, *scales, **more)  # type: ignore[arg-type]

    return build


@pytest.mark.parametrize(
    ("precision", "name", "factor", "check"),
    [
        ("fp32", "h.1.attn.c_proj.bias", 1.01, "torch"),
        ("int8", "h.0.mlp.c_fc.weight", -1.0, "against fp32"),
        ("int4", "h.0.mlp.c_fc.weight", -1.0, "against fp32"),
    ],
)
def test_a_wrong_graph_is_not_written(
    random_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    name: str,
    factor: float,
    check: str,
) -> None:
    monkeypatch.setattr(module, "build_model", tampered(precision, name, factor))
    with pytest.raises(VerificationFailed, match=check) as caught:
        export_bundle(random_checkpoint, tmp_path / "b", precision=precision)  # type: ignore[arg-type]
    assert caught.value.user_error
    assert not list(tmp_path.iterdir())


def test_answers_that_depend_on_company_are_found(
    fp32_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder whose logits change by one bit in a batch."""

    class Sociable(verify.OnnxDecoder):
        def decode(self, tokens, lengths):  # type: ignore[no-untyped-def]
            logits = super().decode(tokens, lengths)
            return np.nextafter(logits, np.float32(np.inf)) if len(tokens) > 1 else logits

    monkeypatch.setattr(verify, "OnnxDecoder", Sociable)
    prompts = verify.sample_prompts(fp32_bundle, verify.SAMPLE)
    with pytest.raises(VerificationFailed, match="batch"):
        verify.check_company(fp32_bundle, prompts)


def test_prompts_are_of_mixed_length_and_all_tasks(fp32_bundle: Bundle) -> None:
    prompts = verify.sample_prompts(fp32_bundle, verify.SAMPLE)
    assert len(prompts) == 64
    assert len({len(prompt) for prompt in prompts}) > 15
    assert {prompt[0] for prompt in prompts} == {0, 3, 4, 5, 6}


def test_bits_per_byte_is_the_mean_surprise(fp32_bundle: Bundle, random_checkpoint: Path) -> None:
    texts = ["Das Wetter ist schön.", "今天天气很好。", "x"]
    oracle, tokenizer = verify.TorchOracle(random_checkpoint), verify.TextTokenizer.of(fp32_bundle)
    bits = 0.0
    for text in texts:
        ids = [0, *tokenizer.encode(text, param="text"), 0]
        logits = oracle(ids[:-1]).astype(np.float64)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        bits -= logits[np.arange(len(ids) - 1), ids[1:]].sum() / np.log(2)
    expected = bits / sum(len(text.encode()) for text in texts)
    assert verify.bits_per_byte(fp32_bundle, texts) == pytest.approx(expected, rel=1e-5)


def test_a_text_longer_than_the_context_is_cut_not_refused(fp32_bundle: Bundle) -> None:
    assert np.isfinite(verify.bits_per_byte(fp32_bundle, ["weather " * 200]))


def test_a_loss_of_bits_is_found(
    int8_bundle: Bundle, fp32_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = {int8_bundle.path: 2.03, fp32_bundle.path: 2.0}
    monkeypatch.setattr(verify, "bits_per_byte", lambda bundle, texts: bits[bundle.path])
    with pytest.raises(VerificationFailed, match="bits per byte"):
        verify.check_bits(int8_bundle, fp32_bundle, verify.SAMPLE)
    bits[int8_bundle.path] = 2.01
    assert verify.check_bits(int8_bundle, fp32_bundle, [])["bits_per_byte_loss"] == 0.005


@pytest.mark.parametrize(("int8_bleu", "passes"), [(19.8, True), (19.6, False)])
def test_a_loss_of_bleu_is_found(
    int8_bundle: Bundle,
    fp32_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    int8_bleu: float,
    passes: bool,
) -> None:
    """With 1,200 sentences in two directions, and scores made up."""
    for code in ("en", "de"):
        (tmp_path / f"mini.{code}").write_text("Hallo\n" * 600)
    seen: list[int] = []

    class Silent(translator.BundleTranslator):
        def __call__(self, lines, source, target):  # type: ignore[no-untyped-def]
            seen.append(len(lines))
            return [(self._tokenizer.decode([]), "stop")] * len(lines)

    bleus = iter([int8_bleu, int8_bleu, 20.0, 20.0])
    monkeypatch.setattr(translator, "BundleTranslator", Silent)
    real = scores.score
    monkeypatch.setattr(scores, "score", lambda *rest: replace(real(*rest), bleu=next(bleus)))
    if passes:
        facts = verify.check_bleu(int8_bundle, fp32_bundle, tmp_path)
        assert facts["bleu_sentences"] == sum(seen) / 2 == 1200
        assert facts["bleu_loss"] == 0.2
    else:
        with pytest.raises(VerificationFailed, match="BLEU"):
            verify.check_bleu(int8_bundle, fp32_bundle, tmp_path)


def test_too_few_sentences_to_tell(
    int8_bundle: Bundle, fp32_bundle: Bundle, tmp_path: Path
) -> None:
    for code in ("en", "de"):
        (tmp_path / f"mini.{code}").write_text("Hallo\n" * 400)
    with pytest.raises(VerificationFailed, match="800"):
        verify.check_bleu(int8_bundle, fp32_bundle, tmp_path)


def test_not_a_number_fails() -> None:
    with pytest.raises(VerificationFailed):
        verify._demand("x", float("nan"), 1.0)
