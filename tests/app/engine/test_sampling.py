"""Sampling: fast paths against obvious references and transformers, rows alone and in a batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.engine.request import Sampling
from app.engine.sampling import (
    Sampler,
    choose,
    draw,
    followers,
    forbidden,
    greedy,
    is_plain,
    largest,
    likeliest,
    nucleus,
    penalised,
)

END = (0, 2)


def logits(rows: int, vocabulary: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, vocabulary)) * 4).astype(np.float32)


def slow_largest(x: NDArray[np.float64], k: int) -> list[int]:
    kth = sorted(x.tolist(), reverse=True)[k - 1]
    return [i for i, value in enumerate(x.tolist()) if value >= kth]


def slow_nucleus(weights: NDArray[np.float64], top_p: float) -> list[int]:
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    target, total, kept = top_p * float(weights.sum()), 0.0, []
    for i in order:
        kept.append(i)
        total += weights[i]
        if total >= target:
            break
    return sorted(kept)


def slow_draw(weights: NDArray[np.float64], u: float) -> int:
    target, total = u * math.fsum(weights), 0.0
    for i, weight in enumerate(weights.tolist()):
        total += weight
        if total > target:
            return i
    return int(np.flatnonzero(weights)[-1])


@pytest.mark.parametrize("vocabulary", [7, 128, 1000, 16384])
def test_greedy_is_argmax_and_log_softmax(vocabulary: int) -> None:
    x = logits(9, vocabulary)
    ids, logprobs = greedy(x)
    assert ids.tolist() == x.argmax(1).tolist()
    exact = x.astype(np.float64)
    for row, token, logprob in zip(exact, ids, logprobs, strict=True):
        reference = row[token] - row.max() - math.log(np.exp(row - row.max()).sum())
        assert logprob == pytest.approx(reference, abs=2e-6)


def test_ties_go_to_the_lowest_id() -> None:
    x = np.zeros((2, 300), np.float32)
    x[1, [50, 20, 290]] = 3.0
    assert greedy(x)[0].tolist() == [0, 20]


def test_a_row_that_is_not_finite_is_marked_and_harms_no_other() -> None:
    x = logits(4, 500)
    x[0, 3], x[1, 3], x[2] = np.nan, np.inf, -np.inf
    rows = [Sampler(Sampling(1.0)) for _ in range(4)]
    ids, logprobs = choose(x, rows)
    assert [math.isnan(p) for p in logprobs] == [True, True, True, False]
    alone = choose(x[3:], [Sampler(Sampling(1.0))])
    assert (ids[3], logprobs[3]) == (alone[0][0], alone[1][0])


@pytest.mark.parametrize("vocabulary", [40, 128 * 20, 128 * 20 + 77])
def test_largest_equals_sorting(vocabulary: int) -> None:
    for seed in range(6):
        x = logits(1, vocabulary, seed)[0].astype(np.float64)
        if seed % 2:
            x = np.round(x)  # many ties
        for k in (1, 2, 19, 20, 21, 39, vocabulary):
            assert largest(x, k).tolist() == slow_largest(x, k)


def test_nucleus_equals_sorting() -> None:
    for seed in range(4):
        for scale in (0.05, 0.5, 3.0):  # flat rows need the whole sort, peaked ones do not
            x = logits(1, 5000, seed)[0].astype(np.float64) * scale
            if seed == 3:
                x = np.round(x)
            weights = np.exp(x - x.max())
            for top_p in (0.0, 0.3, 0.9, 0.999):
                assert nucleus(weights, top_p).tolist() == slow_nucleus(weights, top_p)


@pytest.mark.parametrize("vocabulary", [3, 256, 257, 5000])
def test_draw_equals_walking(vocabulary: int) -> None:
    rng = np.random.default_rng(1)
    weights = np.exp(logits(1, vocabulary)[0].astype(np.float64))
    weights[rng.random(vocabulary) < 0.3] = 0.0
    weights[0] = 0.0
    for u in [0.0, *rng.random(150).tolist(), 1 - 2.0**-53]:
        index = draw(weights, u)
        assert index == slow_draw(weights, u)
        assert weights[index] > 0


def test_draw_follows_the_weights() -> None:
    sampler = Sampler(Sampling(1.0, seed=3))
    weights = np.array([1.0, 0.0, 2.0, 5.0])
    counts = np.bincount([draw(weights, sampler.uniform()) for _ in range(8000)], minlength=4)
    assert counts[1] == 0
    assert np.abs(counts / 8000 - weights / 8).max() < 0.02


OPTIONS = [
    Sampling(0.7, seed=1),
    Sampling(1.3, top_k=40, seed=2),
    Sampling(1.0, top_p=0.9, seed=3),
    Sampling(0.9, top_k=300, top_p=0.95, repetition_penalty=1.3, seed=4),
    Sampling(0.0, repetition_penalty=1.5),
    Sampling(0.9, min_p=0.05, presence_penalty=0.6, frequency_penalty=-0.4, seed=5),
    Sampling(0.0, logit_bias=((7, 30.0), (9, -5.0)), no_repeat_ngram=1, min_tokens=9),
]


def test_a_row_alone_equals_the_row_in_a_batch() -> None:
    x = logits(32, 16384)

    def states() -> list[Sampler | None]:
        options = [None, *OPTIONS]
        wanted = [options[i % len(options)] for i in range(32)]
        return [None if o is None else Sampler(o, [1, 5, 5, 800], [9, 9], END) for o in wanted]

    together = states()
    first, second = choose(x, together), choose(x[::-1], together[::-1])
    for i, state in enumerate(states()):
        for step, batch in ((i, first), (31 - i, second)):
            row = np.array(x[i : i + 1], copy=True)
            ids, logprobs = choose(row, [state])
            assert (ids[0], logprobs[0]) == (batch[0][step], batch[1][step])


def test_the_log_probability_is_the_models_own() -> None:
    x = logits(1, 3000)
    exact = x[0].astype(np.float64)
    reference = exact - exact.max() - math.log(np.exp(exact - exact.max()).sum())
    for option in OPTIONS:
        ids, logprobs = choose(x, [Sampler(option, [int(x.argmax())])])
        assert logprobs[0] == pytest.approx(reference[ids[0]], abs=1e-5)


def test_same_seed_same_stream_one_number_per_token() -> None:
    row = logits(1, 400)[0]
    one, two = Sampler(Sampling(1.0, top_k=5, seed=-9)), Sampler(Sampling(1.0, seed=-9))
    for _ in range(5):
        one.pick(row)
        two.pick(row)
    assert one.uniform() == two.uniform()
    assert Sampler(Sampling(seed=1)).uniform() != Sampler(Sampling(seed=2)).uniform()


def test_extreme_options() -> None:
    row = logits(1, 4000)[0]
    best = int(row.argmax())
    with np.errstate(all="ignore"):
        for option in (
            Sampling(1e-30), Sampling(5.0, top_k=1), Sampling(5.0, top_p=0.0), Sampling(1e-320)
        ):
            assert Sampler(option).pick(row) == best
    assert 0 <= Sampler(Sampling(1e30, top_k=10**9)).pick(row) < 4000


def test_equal_to_transformers() -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(0)
    for seed in range(5):
        row = logits(1, 3000, seed)[0]
        history = rng.integers(0, 3000, 60)
        scores, ids = torch.from_numpy(row)[None].double(), torch.from_numpy(history)[None]
        scores = process.RepetitionPenaltyLogitsProcessor(1.4)(ids, scores)
        x = penalised(row.astype(np.float64), history, 1.4)
        np.testing.assert_allclose(x, scores[0].numpy(), rtol=1e-12)
        scores = process.TemperatureLogitsWarper(0.8)(ids, scores)
        scores = process.TopKLogitsWarper(100)(ids, scores)
        scores = process.TopPLogitsWarper(0.9)(ids, scores)
        scores = process.MinPLogitsWarper(0.02)(ids, scores)
        x = (x - x.max()) / 0.8
        top = largest(x, 100)
        kept = top[nucleus(np.exp(x[top]), 0.9)]
        kept = kept[np.exp(x[kept]) >= 0.02]
        assert kept.tolist() == torch.isfinite(scores[0]).nonzero()[:, 0].tolist()
        weights = np.exp(x[kept])
        np.testing.assert_allclose(
            weights / weights.sum(), torch.softmax(scores[0], -1)[kept].numpy(), rtol=1e-9
        )


@pytest.mark.parametrize(("n", "often"), [(1, 1), (2, 1), (4, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_ngrams_come_as_often_as_they_may(n: int, often: int, temperature: float) -> None:
    """Equal to looking through prompt and output at each step; in company as alone."""
    rng = np.random.default_rng(n)
    prompt = [0, 1, 0, 1, 0, 1, 0, 1, 2, 2, 2, 2, 2, 2]
    options = Sampling(temperature, no_repeat_ngram=n, ngram_repeats=often, seed=5)
    sampler, free = Sampler(options, prompt), Sampler(Sampling(temperature, seed=5))
    output: list[int] = []
    changed = 0

    def count(ids: list[int], ngram: list[int]) -> int:
        return sum(ids[i : i + n] == ngram for i in range(len(ids) - n + 1))

    for _ in range(60):
        row = rng.normal(size=(1, 50)).astype(np.float32)
        row[0, :3] += 6.0  # three tokens that would come again and again
        masked = row[0].copy()
        for token in range(50):
            ngram = [*output[len(output) - n + 1 :], token]
            if len(output) >= n and 0 < count(output, ngram) >= max(often, count(prompt, ngram)):
                masked[token] = -np.inf
        expected = free.pick(masked)
        company = np.concatenate([row, rng.normal(size=(2, 50)).astype(np.float32)])
        ids, logprobs = choose(company, [sampler, None, None])
        assert ids[0] == expected
        changed += ids[0] != row[0].argmax()
        total = np.exp(row[0] - row[0].max()).sum()
        assert logprobs[0] == pytest.approx(row[0, ids[0]] - row[0].max() - np.log(total), abs=1e-4)
        output.append(int(ids[0]))
    assert changed
    counts = Counter(tuple(output[i : i + n]) for i in range(len(output) - n + 1))
    assert all(c <= max(often, count(prompt, list(gram))) for gram, c in counts.items())
    assert max(counts.values()) >= often


def slow_token(
    row: NDArray[np.float32], o: Sampling, prompt: list[int], output: list[int], free: Sampler
) -> int:
    """By the words of `Sampling`, over plain lists; `free` lends its stream."""
    x = [float(value) for value in row]
    for token, bias in o.logit_bias:
        x[token] += bias
    for token in {*prompt, *output}:
        x[token] = x[token] * o.repetition_penalty if x[token] < 0 else (
            x[token] / o.repetition_penalty
        )
    for token in set(output):
        x[token] -= o.frequency_penalty * output.count(token) + o.presence_penalty
    n = o.no_repeat_ngram
    for token in range(len(x)):
        if token in END and len(output) < o.min_tokens:
            x[token] = -math.inf
        if n:
            gram = [*output[len(output) - n + 1 :], token] if len(output) >= n - 1 else []
            said = sum(output[i : i + n] == gram for i in range(len(output)))
            given = sum(prompt[i : i + n] == gram for i in range(len(prompt)))
            if len(output) >= n and said and said >= max(o.ngram_repeats, given):
                x[token] = -math.inf
    if o.temperature == 0:
        return x.index(max(x))
    ids = list(range(len(x)))
    if 0 < o.top_k < len(x):
        ids = slow_largest(np.array(x), o.top_k)
    top = max(x[i] for i in ids)
    weights = [math.exp((x[i] - top) / o.temperature) for i in ids]
    if o.top_p < 1:
        kept = slow_nucleus(np.array(weights), o.top_p)
        ids, weights = [ids[k] for k in kept], [weights[k] for k in kept]
    kept = [k for k, weight in enumerate(weights) if weight >= o.min_p * max(weights)]
    return ids[kept[slow_draw(np.array([weights[k] for k in kept]), free.uniform())]]


CHOICES = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 100]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    seed=st.integers(0, 9),
    no_repeat_ngram=st.sampled_from([0, 1, 2, 3]),
    ngram_repeats=st.sampled_from([1, 2]),
    min_p=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -0.2]),
    logit_bias=st.sampled_from([(), ((3, 4.0),), ((0, 9.0), (5, -100.0))]),
    min_tokens=st.sampled_from([0, 4, 100]),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(o=CHOICES, seed=st.integers(0, 99), forced=st.lists(st.integers(3, 30), max_size=3))
def test_every_option_together_equals_the_obvious_way(
    o: Sampling, seed: int, forced: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    prompt, output = [3, 4, 3, 4, 3, 4, 9], list(forced)
    sampler, free = Sampler(o, prompt, forced, END), Sampler(o)
    for _ in range(12):
        row = rng.normal(size=(1, 31)).astype(np.float32) * 2
        row[0, :5] += 2
        expected = slow_token(row[0], o, prompt, output, free)
        ids, logprobs = choose(row, [sampler])
        assert ids[0] == expected
        if is_plain(o):
            assert expected == row.argmax()
        exact = row[0].astype(np.float64)
        assert logprobs[0] == pytest.approx(
            exact[expected] - math.log(np.exp(exact).sum()), abs=1e-5
        )
        output.append(expected)


def test_the_likeliest_are_those_of_the_whole_row_sorted() -> None:
    for vocabulary in (5, 3000):
        x = np.round(logits(4, vocabulary) * 2) / 2  # ties
        ids, logprobs = choose(x, [None, Sampler(Sampling(2.0)), Sampler(Sampling(2.0)), None])
        for row, token, logprob in zip(x, ids.tolist(), logprobs, strict=True):
            exact = row.astype(np.float64)
            whole = exact - exact.max() - math.log(np.exp(exact - exact.max()).sum())
            order = sorted(range(vocabulary), key=lambda i: (-exact[i], i))
            for count in (1, 4, 20):
                found = likeliest(row, count, token, logprob)
                assert [i for i, _ in found] == order[:count]
                assert [p for _, p in found] == pytest.approx([whole[i] for i in order[:count]])
                assert dict(found).get(token, logprob) == logprob, "one number for one token"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2), max_size=14), st.integers(1, 4), st.integers(1, 3))
def test_forbidden_equals_counting(output: list[int], n: int, often: int) -> None:
    prompt = (0, 1, 0, 1, 0, 1, 2, 2)
    options = Sampling(no_repeat_ngram=n, ngram_repeats=often)

    def count(ids: Sequence[int], gram: list[int]) -> int:
        return sum(list(ids[i : i + n]) == gram for i in range(len(ids)))

    expected = []
    for token in range(3):
        gram = [*output, token][-n:]
        said = count(output, gram)
        if len(gram) == n and said and said >= max(often, count(prompt, gram)):
            expected.append(token)
    sampler = Sampler(options, prompt, output[:5])
    for token in output[5:]:
        sampler.note(token)
    assert sorted(sampler.forbidden()) == expected
    found = followers(output, output[len(output) - n + 1 :]) if len(output) >= n else ()
    assert sorted(forbidden(options, prompt, tuple(output), END, found)) == expected
