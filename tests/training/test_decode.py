"""Greedy and beam search: with the cache as without, together as alone, as by brute force."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch

from tests.training.helpers import greedy_without_cache
from training.beam import Hypothesis
from training.decode import beam, forbidden, greedy
from training.errors import ConfigError
from training.model import GPT, MaskMode, ModelConfig

PROMPTS = [[5, 9, 33], [7], [80, 2, 41, 13, 6], [1, 2, 3], [60, 60, 60], [11, 12, 13, 14, 15, 16]]
LIMITS = [8, 12, 5, 1, 0, 18]


def end_that_stops_some(model: GPT) -> int:
    """A token that greedy search emits in the middle of an answer."""
    return greedy_without_cache(model, PROMPTS[0], 8, end=-1)[0][4]


def test_cache_and_batch_change_nothing(model: GPT) -> None:
    end = end_that_stops_some(model)
    expected = [
        greedy_without_cache(model, prompt, limit, end)
        for prompt, limit in zip(PROMPTS, LIMITS, strict=True)
    ]
    assert {reason for _, reason in expected} == {"stop", "length"}
    assert greedy(model, PROMPTS, LIMITS, end) == expected
    assert len(expected[1][0]) == 12 or expected[1][1] == "stop"
    for prompt, limit, one in zip(PROMPTS, LIMITS, expected, strict=True):
        assert greedy(model, [prompt], [limit], end) == [one]


@pytest.mark.parametrize(("n", "often"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 2)])
def test_ngrams_come_as_often_as_they_may(model: GPT, n: int, often: int) -> None:
    limits = [24 - len(p) - i % 3 for i, p in enumerate(PROMPTS)]
    rule = {"no_repeat_ngram": n, "ngram_repeats": often}
    together = greedy(model, PROMPTS, limits, -1, **rule)
    assert together != greedy(model, PROMPTS, limits, -1)
    for prompt, limit, one in zip(PROMPTS, limits, together, strict=True):
        assert one == greedy_without_cache(model, prompt, limit, -1, **rule)
        counts = Counter(tuple(one[0][i : i + n]) for i in range(len(one[0]) - n + 1))
        asked = Counter(tuple(prompt[i : i + n]) for i in range(len(prompt) - n + 1))
        assert all(count <= max(often, asked[gram]) for gram, count in counts.items())


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_mixed_lengths_equal_one_by_one(model: GPT, mask: MaskMode) -> None:
    together = greedy(model, PROMPTS, LIMITS, 0, mask)
    assert together == [
        greedy(model, [p], [n], 0, mask)[0] for p, n in zip(PROMPTS, LIMITS, strict=True)
    ]


def test_the_prefix_mask_reads_the_prompt_in_both_directions(model: GPT) -> None:
    prompt, ids = PROMPTS[5], list(PROMPTS[5])
    with torch.no_grad():
        while len(ids) < 14:
            lengths = torch.tensor([len(ids)])
            hidden, _ = model(torch.tensor([ids]), "prefix", lengths, torch.tensor([len(prompt)]))
            ids.append(int(model.logits(hidden[0, -1]).argmax()))
    assert greedy(model, [prompt], [8], -1, "prefix")[0][0] == ids[6:]
    assert greedy(model, [prompt], [8], -1, "causal")[0][0] != ids[6:]


def test_the_end_is_not_part_of_the_answer(model: GPT) -> None:
    end = end_that_stops_some(model)
    (ids, reason), = greedy(model, [PROMPTS[0]], [8], end)
    assert reason == "stop" and end not in ids and len(ids) <= 4


def test_a_row_may_fill_the_context(model: GPT) -> None:
    (ids, reason), = greedy(model, [PROMPTS[0]], [model.config.context - 3], end=-1)
    assert len(ids) == 21 and reason == "length"


def test_an_empty_prompt_is_named(model: GPT) -> None:
    with pytest.raises(ConfigError, match="prompt 1 is empty"):
        greedy(model, [[1], []], [2, 2])
    with pytest.raises(ConfigError, match="prompt 0: 25 tokens exceed the model's context of 24"):
        greedy(model, [[1] * 25], [1])


def test_no_prompts_no_answers(model: GPT) -> None:
    assert greedy(model, [], []) == beam(model, [], [], 3) == []


@torch.no_grad()
def next_logs(model: GPT, prompt: list[int], ids: tuple[int, ...], mask: MaskMode) -> list[float]:
    """Log-probabilities of what follows, the whole sequence read anew."""
    whole = torch.tensor([[*prompt, *ids]])
    lengths, prefix = torch.tensor([whole.shape[1]]), torch.tensor([len(prompt)])
    hidden, _ = model(whole, mask, lengths, prefix)
    logs: list[float] = model.logits(hidden[0, -1]).double().log_softmax(-1).tolist()
    return logs


def penalty(length: int, alpha: float) -> float:
    return ((5 + max(length, 1)) / 6) ** alpha


def slow_beam(
    model: GPT, prompt: list[int], limit: int, size: int, alpha: float, end: int,
    mask: MaskMode = "causal", early: bool = True, best: int = 1, n: int = 0, often: int = 1,
) -> list[tuple[tuple[int, ...], float, str]]:  # fmt: skip
    """One prompt, no cache, every continuation looked at."""
    live, done = [(0.0, ())], []
    while live and limit:
        everything = []
        for total, ids in live:
            banned = forbidden(ids, prompt, n, often)
            for token, log in enumerate(next_logs(model, prompt, ids, mask)):
                if token not in banned:
                    everything.append((total + log, (*ids, token)))
        everything.sort(key=lambda pair: -pair[0])
        for total, ids in everything[:size]:
            if ids[-1] == end:
                done.append((ids[:-1], total / penalty(len(ids), alpha), "stop"))
        live = [pair for pair in everything if pair[1][-1] != end][:size]
        if len(live[0][1]) == limit:
            done += [(ids, total / penalty(len(ids), alpha), "length") for total, ids in live]
            live = []
        done.sort(key=lambda entry: -entry[1])
        if early and len(done) >= size:
            break
        if not early and len(done) >= best and live:
            hopes = [live[0][0] / penalty(m, alpha) for m in range(len(live[0][1]) + 1, limit + 1)]
            if done[best - 1][1] >= max(hopes):
                break
    return done[:best]


def same(found: list[Hypothesis], expected: list[tuple[tuple[int, ...], float, str]]) -> None:
    assert [(h.ids, h.reason) for h in found] == [(ids, reason) for ids, _, reason in expected]
    assert [h.score for h in found] == pytest.approx([s for _, s, _ in expected], abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_wide_enough_finds_the_best_there_is(alpha: float) -> None:
    torch.manual_seed(4)
    tiny = GPT(ModelConfig(vocabulary=5, layers=1, width=16, heads=1, context=8)).eval()
    with torch.no_grad():
        tiny.transformer["wte"].weight.mul_(30)
    for prompt in ([1], [3, 2], [4, 4, 1]):
        everything = []
        for length in range(4):
            for ids in product(range(1, 5), repeat=length):
                steps = [*ids, 0] if length < 3 else list(ids)
                total = sum(next_logs(tiny, prompt, ids[:i], "causal")[t]
                            for i, t in enumerate(steps))  # fmt: skip
                score = total / penalty(len(steps), alpha)
                everything.append((ids, score, "stop" if length < 3 else "length"))
        everything.sort(key=lambda entry: -entry[1])
        assert len(everything) == 1 + 4 + 16 + 64
        found, = beam(tiny, [prompt], [3], 85, alpha, n_best=10, early_stopping=False)
        same(found, everything[:10])


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize(
    ("size", "alpha", "early", "best"),
    [(1, 1.0, True, 1), (2, 1.0, True, 2), (4, 0.6, False, 1), (5, 0.0, False, 3),
     (4, 2.0, True, 4), (2, 2.0, False, 1)],
)
def test_beams_are_those_of_the_slow_way(
    model: GPT, mask: MaskMode, size: int, alpha: float, early: bool, best: int
) -> None:
    end = end_that_stops_some(model)
    together = beam(model, PROMPTS, LIMITS, size, alpha, end, mask, best, early)
    for prompt, limit, found in zip(PROMPTS, LIMITS, together, strict=True):
        if limit:
            same(found, slow_beam(model, prompt, limit, size, alpha, end, mask, early, best))
        alone, = beam(model, [prompt], [limit], size, alpha, end, mask, best, early)
        assert [h.ids for h in alone] == [h.ids for h in found]
        assert len({h.ids for h in found}) == len(found) == (best if limit else 1)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert {h.reason for hypotheses in together for h in hypotheses} == {"stop", "length"}


def test_ngrams_are_forbidden_to_beams_too(model: GPT) -> None:
    limits = [12, 14, 10, 9, 9, 8]
    rule = {"no_repeat_ngram": 2, "ngram_repeats": 1}
    together = beam(model, PROMPTS, limits, 3, 1.0, -1, **rule)
    assert together != beam(model, PROMPTS, limits, 3, 1.0, -1)
    for prompt, limit, found in zip(PROMPTS, limits, together, strict=True):
        same(found, slow_beam(model, prompt, limit, 3, 1.0, -1, n=2))


def test_a_beam_of_one_is_greedy_and_tells_the_log_probability(model: GPT) -> None:
    end = end_that_stops_some(model)
    for alpha, early in ((1.0, True), (0.0, False)):
        found = beam(model, PROMPTS, LIMITS, 1, alpha, end, early_stopping=early)
        plain = greedy(model, PROMPTS, LIMITS, end)
        assert [(list(h.ids), h.reason) for (h,) in found] == plain
    for prompt, (best,) in zip(PROMPTS, found, strict=True):
        ids = [*best.ids, *([end] if best.reason == "stop" else [])]
        logs = [next_logs(model, prompt, best.ids[:i], "causal")[t] for i, t in enumerate(ids)]
        assert best.total == pytest.approx(sum(logs), abs=1e-4)
        assert best.mean == pytest.approx(sum(logs) / max(1, len(ids)), abs=1e-4)
    assert found[4][0] == Hypothesis((), 0.0, 0.0, "length")  # no room


def test_a_wider_beam_finds_what_greedy_does_not(model: GPT) -> None:
    one, wide = (beam(model, PROMPTS, LIMITS, size, 0.0, -1) for size in (1, 6))
    gains = [b.total - a.total for (a,), (b,) in zip(one, wide, strict=True)]
    assert min(gains) >= -1e-4 and max(gains) > 0.01


def test_beam_sizes_that_make_no_sense_are_named(model: GPT) -> None:
    for size, best, alpha in ((0, 1, 1.0), (2, 3, 1.0), (2, 0, 1.0), (2, 1, -1.0)):
        with pytest.raises(ConfigError, match=f"beam = {size}, n_best = {best}"):
            beam(model, [[1]], [2], size, alpha, n_best=best)
