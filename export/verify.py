"""Whether a bundle answers as its checkpoint does: what `export` checks before it writes.

The fused fp32 graph is compared with torch and with optimum's graph (logits, greedy ids) unless it
comes of a bundle, which has been; every bundle with itself (alone or in a batch, cache or no
cache), and other precisions with fp32 (BLEU on a folder of test sets, else bits per byte). In: a
checkpoint, the bundle and the fp32 one. Out: the facts measured, for the manifest;
`VerificationFailed` names the first that is out of bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.bundle import Bundle
from app.engine.session import OnnxDecoder
from app.text.tokenizer import TextTokenizer
from export.checkpoint import Checkpoint
from export.errors import VerificationFailed
from export.likelihood import bundle_loss

Facts = dict[str, float | int | str | None]
Logits = NDArray[np.float32]

PROMPTS, STEPS, ROWS = 64, 24, 16
RELATIVE: Final = 1e-4  # of the largest logit: fp32 graph against torch and optimum
NEAR_TIE: Final = 1e-3  # a top-2 gap below which either of two tokens may be called the best
CACHE_RELATIVE: Final = {"fp32": 1e-4, "int8": 0.1, "int4": 0.1, "fp16": 0.02}
DRIFT: Final = 0.2  # root mean square of the logits' error over that of the logits, both centred
BLEU_LOSS: Final = {"int8": 0.3, "int4": 1.0, "fp16": 0.3}
MIN_SENTENCES, SENTENCES = 1000, 1200  # needed, and taken where there are as many
BITS_LOSS: Final = {"int8": 0.01, "int4": 0.03, "fp16": 0.01}

SAMPLE: Final = (
    "Everyone has the right to freedom of thought, conscience and religion.",
    "The weather was bad, so we stayed at home and read.",
    "Could you tell me how to get to the station, please?",
    "Jeder hat das Recht auf Bildung. Die Bildung ist unentgeltlich.",
    "Das Wetter war schlecht, deshalb blieben wir zu Hause und lasen.",
    "Können Sie mir bitte sagen, wie ich zum Bahnhof komme?",
    "Toute personne a droit à la liberté de pensée, de conscience et de religion.",
    "Il faisait mauvais, alors nous sommes restés à la maison pour lire.",
    "Pourriez-vous me dire comment aller à la gare, s'il vous plaît ?",
    "人人有思想、良心和宗教自由的权利。",
    "天气不好，所以我们待在家里看书。",
    "请问去火车站怎么走？",
)


def verify_bundle(
    source: Checkpoint,
    bundle: Bundle,
    reference: Bundle,
    *,
    testset: str | Path | None = None,
    texts: Sequence[str] = (),
    oracles: bool = True,
) -> Facts:
    """Measure everything; raises `VerificationFailed` at the first figure out of bounds.

    `reference` is the fp32 bundle of the same checkpoint: `bundle` itself if it is one. With
    `oracles` torch and optimum, which must be installed, are compared with.
    """
    prompts = sample_prompts(bundle, texts)
    facts: Facts = {}
    if oracles:
        facts |= check_oracles(source, reference, prompts)
    facts |= check_company(bundle, prompts)
    if reference is not bundle:
        facts |= check_drift(bundle, reference, prompts)
        if testset is not None and bundle.manifest.pairs:
            facts |= check_bleu(bundle, reference, Path(testset))
        else:
            facts |= check_bits(bundle, reference, samples(texts))
    return facts


def samples(texts: Sequence[str]) -> Sequence[str]:
    """The texts that are not blank, or the built-in ones."""
    return [text for text in texts if text.strip()] or SAMPLE


def sample_prompts(bundle: Bundle, texts: Sequence[str], count: int = PROMPTS) -> list[list[int]]:
    """Prompts of all tasks and many lengths, made of the texts (or of built-in ones)."""
    manifest, tokenizer, texts = bundle.manifest, TextTokenizer.of(bundle), samples(texts)
    room = max(1, min(96, manifest.limits.context - STEPS - 9))
    prompts: list[list[int]] = []
    for i in range(count):
        ids = tokenizer.encode(texts[i % len(texts)], param="texts")
        ids = ids[: 1 + (i * 7) % max(1, min(len(ids), room))]
        if manifest.pairs and i % 4:
            first, second = manifest.pairs[i % len(manifest.pairs)]
            prompts.append(list(tokenizer.translation_prompt(first, second, ids)))
        elif tokenizer.has_task("generate"):
            prompts.append(list(tokenizer.generation_prompt(ids)))
        else:
            prompts.append([manifest.tokens.end, *ids])
    return prompts


@dataclass(frozen=True, slots=True)
class Trace:
    """A greedy run: prompt, ids generated, and the logits (steps, vocabulary) they came from."""

    prompt: list[int]
    ids: list[int]
    logits: Logits


def greedy(decoder: OnnxDecoder, prompts: Sequence[list[int]], steps: int = STEPS) -> list[Trace]:
    """Greedy runs of a fixed number of steps, all prompts in one batch."""
    logits = decoder.prefill(0, prompts)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    all_logits = [logits]
    for step in range(steps - 1):
        logits = decoder.decode(logits.argmax(axis=1), lengths + step)
        all_logits.append(logits)
    stacked = np.stack(all_logits, axis=1)  # (rows, steps, vocabulary)
    ids = stacked.argmax(axis=2)
    return [Trace(list(p), ids[i].tolist(), stacked[i]) for i, p in enumerate(prompts)]


def batched(prompts: Sequence[list[int]], size: int = ROWS) -> Iterator[Sequence[list[int]]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def check_oracles(source: Checkpoint, reference: Bundle, prompts: Sequence[list[int]]) -> Facts:
    """Logits and greedy ids of the fused fp32 graph against torch and optimum."""
    from export.portable import PortableOracle

    decoder = OnnxDecoder(reference, slots=ROWS)
    traces = [trace for group in batched(prompts) for trace in greedy(decoder, group)]
    facts: Facts = {"greedy_prompts": len(traces), "greedy_steps": STEPS}
    for name, oracle in (
        ("torch", TorchOracle(source.path)),
        ("optimum", PortableOracle(source.path)),
    ):
        worst, ties = 0.0, 0
        for trace in traces:
            expected = oracle([*trace.prompt, *trace.ids[:-1]])[len(trace.prompt) - 1 :]
            worst = max(worst, _relative(trace.logits, expected))
            ties += _near_ties(name, trace, expected)
        facts[f"{name}_relative_error"] = float(f"{worst:.3g}")
        facts[f"{name}_near_ties"] = ties
        _demand(f"relative error of logits against {name}", worst, RELATIVE)
    return facts


class TorchOracle:
    """Logits of the checkpoint at all positions of one sequence, by transformers' GPT-2."""

    def __init__(self, checkpoint: str | Path) -> None:
        from transformers import GPT2LMHeadModel

        self._model: Any = GPT2LMHeadModel.from_pretrained(str(checkpoint), local_files_only=True)
        self._model.eval()

    def __call__(self, ids: Sequence[int]) -> Logits:
        import torch

        with torch.no_grad():
            logits: Logits = self._model(torch.tensor([list(ids)])).logits[0].float().numpy()
        return logits


def _near_ties(name: str, trace: Trace, expected: Logits) -> int:
    """Steps at which the oracle prefers another token by a hair; by more is a failure."""
    ties = 0
    for step, token in enumerate(trace.ids):
        gap = float(expected[step].max() - expected[step][token])
        if gap > 0:
            _demand(f"top-2 gap where greedy ids differ from {name}", gap, NEAR_TIE)
            ties += 1
    return ties


def check_company(bundle: Bundle, prompts: Sequence[list[int]]) -> Facts:
    """Rows of a batch against the same rows alone (bit by bit), and cache against no cache."""
    group = [prompts[i] for i in range(0, len(prompts), max(1, len(prompts) // ROWS))][:ROWS]
    together = greedy(OnnxDecoder(bundle, slots=len(group)), group)
    single = OnnxDecoder(bundle, slots=1)
    different, worst = 0, 0.0
    for trace in together:
        alone = greedy(single, [trace.prompt])[0]
        if bundle.manifest.model.precision != "fp16":  # fp16 is for GPUs, and promises nothing here
            different += int((alone.logits != trace.logits).any(axis=1).sum())
        whole = single.prefill(0, [[*trace.prompt, *trace.ids[:-1]]])
        worst = max(worst, _relative(trace.logits[-1:], whole))
    _demand("steps whose logits change in a batch", different, 0)
    _demand("relative error, cache against none", worst, _limit(CACHE_RELATIVE, bundle))
    return {
        "batch_rows": len(together),
        "batch_steps_changed": different,
        "cache_relative_error": float(f"{worst:.3g}"),
    }


def check_drift(bundle: Bundle, reference: Bundle, prompts: Sequence[list[int]]) -> Facts:
    """How far the logits of the first step are from those of fp32: gross damage, of any sign."""
    ours, theirs = (
        np.concatenate([decoder.prefill(0, group) for group in batched(prompts)])
        for decoder in (OnnxDecoder(bundle, slots=ROWS), OnnxDecoder(reference, slots=ROWS))
    )
    ours = ours - ours.mean(axis=1, keepdims=True)
    theirs = theirs - theirs.mean(axis=1, keepdims=True)
    drift = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    _demand("error of logits against fp32", drift, DRIFT)
    return {"logits_drift": float(f"{drift:.3g}")}


def bits_per_byte(bundle: Bundle, texts: Sequence[str]) -> float:
    return bundle_loss(bundle, texts).per_byte


def check_bits(bundle: Bundle, reference: Bundle, texts: Sequence[str]) -> Facts:
    ours, theirs = bits_per_byte(bundle, texts), bits_per_byte(reference, texts)
    loss = ours / theirs - 1
    _demand(f"loss of bits per byte against fp32 ({theirs:.4f})", loss, _limit(BITS_LOSS, bundle))
    return {
        "bits_per_byte": round(ours, 5),
        "fp32_bits_per_byte": round(theirs, 5),
        "bits_per_byte_loss": round(loss, 5),
    }


def check_bleu(bundle: Bundle, reference: Bundle, folder: Path) -> Facts:
    """BLEU against fp32 on at least 1,000 sentences, averaged over directions."""
    from export.evaluate import evaluate, select
    from export.translator import BundleTranslator

    served = {f"{a}-{b}" for a, b in bundle.manifest.pairs}
    sizes = [len(test.sources) for test in select(folder, served)]
    limits = range(10, max(sizes) + 10, 10)
    limit = next((n for n in limits if _total(sizes, n) >= SENTENCES), max(sizes))
    if (total := _total(sizes, limit)) < MIN_SENTENCES:
        raise VerificationFailed(f"number of sentences in {str(folder)!r}", total, MIN_SENTENCES)
    tests = select(folder, served, limit=limit)
    means = []
    for one in (bundle, reference):
        with BundleTranslator(one) as translate:
            rows = evaluate(translate, tests)
        means.append(float(np.mean([row.bleu for row in rows])))
    loss = means[1] - means[0]
    _demand(f"loss of BLEU against fp32 ({means[1]:.2f})", loss, _limit(BLEU_LOSS, bundle))
    return {
        "bleu_sentences": total,
        "bleu": round(means[0], 2),
        "fp32_bleu": round(means[1], 2),
        "bleu_loss": round(loss, 3),
    }


def _total(sizes: Sequence[int], limit: int) -> int:
    return sum(min(size, limit) for size in sizes)


def _relative(ours: Logits, expected: Logits) -> float:
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


def _limit(limits: Mapping[str, float], bundle: Bundle) -> float:
    return limits[bundle.manifest.model.precision]


def _demand(check: str, value: float, limit: float) -> None:
    if not value <= limit:  # not a number fails too
        raise VerificationFailed(check, f"{value:.4g}", f"{limit:g}")
