"""Greedy decoding: with the cache as without, together as one by one."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from training.decode import greedy, greedy_without_cache
from training.errors import ConfigError
from training.model import GPT, MaskMode

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


def test_no_prompts_no_answers(model: GPT) -> None:
    assert greedy(model, [], []) == []
