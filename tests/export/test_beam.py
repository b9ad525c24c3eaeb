"""The engine's beam search and the reference in torch find the same, on one tiny checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.bundle import Bundle
from app.engine.request import Beam, Finished, Hypothesis, Request, Sampling
from app.engine.scheduler import Scheduler
from app.engine.session import OnnxDecoder
from tests.fakes import ignore

PROMPTS = [(5, 9, 100, 200, 2), (4, 9, 300, 310, 311, 312, 2), (3, 8, 77, 2), (6, 9, 500, 401, 2)]


@pytest.mark.parametrize("likely", [False, True])  # whether the end is a token that it says often
@pytest.mark.parametrize(
    ("beam", "repeats"),
    [
        (Beam(4, 1.0, best=4), (3, 3)),
        (Beam(3, 0.6, early_stopping=False, best=2), (2, 1)),
        (Beam(5, 0.0, best=5), (0, 1)),
        (Beam(1), (1, 1)),
    ],
)
def test_engine_and_reference_find_the_same(
    fp32_bundle: Bundle,
    random_checkpoint: Path,
    beam: Beam,
    repeats: tuple[int, int],
    likely: bool,
) -> None:
    from training import decode
    from training.checkpoint import load_checkpoint

    model, _ = load_checkpoint(random_checkpoint)
    model.eval()
    limits = [12 + i for i in range(len(PROMPTS))]
    end = decode.greedy(model, PROMPTS[:1], limits[:1])[0][0][4] if likely else 0
    expected = decode.beam(
        model, PROMPTS, limits, beam.size, beam.length_penalty, end, n_best=beam.best,
        early_stopping=beam.early_stopping, no_repeat_ngram=repeats[0], ngram_repeats=repeats[1],
    )  # fmt: skip
    sampling = Sampling(no_repeat_ngram=repeats[0], ngram_repeats=repeats[1])
    base = Request((1,), 1, ignore, frozenset({end}), sampling, beam=beam)
    scheduler = Scheduler(OnnxDecoder(fp32_bundle, slots=12, threads=1))
    sequences = [
        scheduler.add(replace(base, prompt=prompt, max_tokens=limit))
        for prompt, limit in zip(PROMPTS, limits, strict=True)
    ]
    found: dict[object, tuple[Hypothesis, ...]] = {}
    while not scheduler.idle:
        for sequence, event in scheduler.step().events:
            if isinstance(event, Finished):
                found[sequence] = event.hypotheses
    assert any(h.reason == "stop" for hs in found.values() for h in hs) or not likely
    for sequence, wanted in zip(sequences, expected, strict=True):
        mine = found[sequence]
        assert [(h.ids, h.reason) for h in mine] == [(h.ids, h.reason) for h in wanted]
        assert [h.score for h in mine] == pytest.approx([h.score for h in wanted], abs=1e-3)
