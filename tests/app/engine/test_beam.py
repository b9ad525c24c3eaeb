"""Beam search against a plain one that reads every hypothesis anew, and against trying them all."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.beam import BeamSearch
from app.engine.request import Beam, Event, Failed, Finished, Hypothesis, Request, Sampling, Token
from app.engine.sampling import greedy
from app.engine.scheduler import Scheduler
from tests.fakes import END, FakeDecoder, RunFailed, ignore


def run(request: Request, decoder: FakeDecoder) -> list[Event]:
    scheduler, events = Scheduler(decoder), []
    scheduler.add(request)
    while not scheduler.idle:
        events += [event for _, event in scheduler.step().events]
        scheduler.check()
    assert scheduler.active == 0
    return events


def search(request: Request, vocabulary: int = 96) -> tuple[Hypothesis, ...]:
    events = run(request, FakeDecoder(slots=request.slots, vocabulary=vocabulary))
    end = events.pop()
    assert isinstance(end, Finished)
    best = end.hypotheses[0]
    assert events == [Token(i, p) for i, p in zip(best.ids, best.logprobs, strict=True)]
    assert end.reason == best.reason
    return end.hypotheses


def logprobs_after(decoder: FakeDecoder, ids: list[int]) -> list[float]:
    """Of every token, by reading all of the ids."""
    logits = decoder.prefill(0, [ids])
    best, top = greedy(logits)
    return [top[0] + (float(value) - float(logits[0, best[0]])) for value in logits[0]]


def banned(token: int, output: list[int], request: Request) -> bool:
    o, n = request.sampling, request.sampling.no_repeat_ngram
    if token in request.end_ids and len(output) < o.min_tokens:
        return True
    gram = [*output, token][-n:] if n else []

    def count(ids: list[int]) -> int:
        return sum(ids[i : i + n] == gram for i in range(len(ids)))

    said = count(output) if n and len(gram) == n else 0
    return said > 0 and said >= max(o.ngram_repeats, count(list(request.prompt)))


def slow_search(request: Request, vocabulary: int = 96) -> tuple[list[Hypothesis], int]:
    """As `app.engine.beam` says, all continuations of all; and the copies of caches it takes."""
    beam, decoder = request.beam, FakeDecoder(slots=1, vocabulary=vocabulary)
    assert beam is not None
    start = len(request.forced)
    live = [(0.0, list(request.forced), [0.0] * start)]
    finished: list[Hypothesis] = []
    copies = 0

    def score(total: float, n: int) -> float:
        return total / ((5 + n) / 6) ** beam.length_penalty

    while live:
        ranked = []
        for place, (total, output, logprobs) in enumerate(live):
            for token, own in enumerate(logprobs_after(decoder, [*request.prompt, *output])):
                if not banned(token, output, request):
                    ranked.append((-(total + own), place, token, output, [*logprobs, own]))
        ranked.sort(key=lambda one: one[:3])
        for cost, _, token, output, logprobs in ranked[: beam.size]:
            if token in request.end_ids:
                ids, n = tuple(output), len(logprobs) - start
                finished.append(Hypothesis(ids, tuple(logprobs[:-1]), score(-cost, n), "stop"))
        going = [one for one in ranked if one[2] not in request.end_ids][: beam.size]
        live = [(-cost, [*output, token], lp) for cost, _, token, output, lp in going]
        if live and len(live[0][1]) == request.max_tokens:
            for total, output, lp in live:
                n = len(output) - start
                finished.append(Hypothesis(tuple(output), tuple(lp), score(total, n), "length"))
            live = []
        finished.sort(key=lambda one: -one.score)
        if beam.early_stopping:
            live = [] if len(finished) >= beam.size else live
        elif live and len(finished) >= beam.best:
            lengths = range(len(live[0][1]) + 1, request.max_tokens + 1)
            hopes = max(score(live[0][0], n - start) for n in lengths)
            live = [] if finished[beam.best - 1].score >= hopes else live
        if live:
            copies += len(going) - len({place for _, place, _, _, _ in going})
    return finished[: beam.best], copies


REQUESTS = st.builds(
    lambda prompt, limit, end, forced, sampling, beam: Request(
        tuple(prompt), len(forced) + limit, ignore, frozenset(end), sampling, None,
        tuple(forced), replace(beam, best=min(beam.best, beam.size)),
    ),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.integers(1, 12),
    st.sampled_from([(), (0,), (0, 3, 4)]),
    st.lists(st.integers(1, 5), max_size=3),
    st.builds(
        Sampling,
        no_repeat_ngram=st.sampled_from([0, 1, 2, 3]),
        ngram_repeats=st.sampled_from([1, 2]),
        min_tokens=st.sampled_from([0, 4, 100]),
    ),
    st.builds(
        Beam,
        size=st.integers(1, 6),
        length_penalty=st.sampled_from([0.0, 0.6, 1.0, 3.0, -1.0]),
        early_stopping=st.booleans(),
        best=st.integers(1, 6),
    ),
)  # fmt: skip


@settings(max_examples=250, deadline=None, derandomize=True)
@given(REQUESTS)
def test_equal_to_the_plain_search(request: Request) -> None:
    expected, _ = slow_search(request, 21)
    assert list(search(request, 21)) == expected, "ids, log-probabilities and scores, bit by bit"


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_a_beam_wide_enough_finds_the_best_of_all(length_penalty: float) -> None:
    """Every sequence of three tokens and less, of four in all."""
    request = Request(
        (2, 3), 3, ignore, END, beam=Beam(27, length_penalty, early_stopping=False, best=9)
    )
    decoder, found = FakeDecoder(slots=1, vocabulary=4), []
    for length in range(4):
        for ids in itertools.product((1, 2, 3), repeat=length):
            whole = [*ids, 0] if length < 3 else ids
            total = 0.0
            for i, token in enumerate(whole):
                total += logprobs_after(decoder, [2, 3, *ids[:i]])[token]
            found.append((total / ((5 + len(whole)) / 6) ** length_penalty, ids))
    found.sort(key=lambda one: -one[0])
    hypotheses = search(request, 4)
    assert [one.ids for one in hypotheses] == [ids for _, ids in found[:9]]
    assert [one.score for one in hypotheses] == pytest.approx([score for score, _ in found[:9]])


def test_a_wider_beam_is_no_worse_and_differs_from_greedy() -> None:
    narrow, wide = (
        [
            search(Request((7, i), 12, ignore, END, beam=Beam(size, 1.0, size == 1)))[0]
            for i in range(1, 20)
        ]
        for size in (1, 8)
    )
    assert sum(one.score for one in wide) > sum(one.score for one in narrow)
    assert any(a.ids != b.ids for a, b in zip(narrow, wide, strict=True))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_size_one_is_greedy(n: int) -> None:
    options = Sampling(no_repeat_ngram=n, min_tokens=3)
    for i in range(1, 30):
        greedily = Request((i, 9), 25, ignore, END, options, None, (4,))
        events = run(greedily, FakeDecoder(slots=1))
        found = run(replace(greedily, beam=Beam(1)), FakeDecoder(slots=1))
        assert found[:-1] == events[:-1]
        ends = events[-1], found[-1]
        assert all(isinstance(end, Finished) for end in ends)
        assert ends[0].reason == ends[1].reason  # type: ignore[union-attr]


@pytest.mark.parametrize("forced", [(), (4, 8)])
@pytest.mark.parametrize("n", [0, 2])
def test_branches_are_greedy_behind_the_likeliest_first_tokens(
    forced: tuple[int, ...], n: int
) -> None:
    options, ends = Sampling(no_repeat_ngram=n), frozenset((0, 3, 4))
    lengths = set()
    for i in range(1, 12):
        greedily = Request((i, 9), 20, ignore, ends, options, None, forced)
        found = search(replace(greedily, beam=Beam(5, 1.0, best=5, branch=True)))
        decoder = FakeDecoder(slots=1)
        first = logprobs_after(decoder, [i, 9, *forced])
        ranked = sorted(range(len(first)), key=lambda token: -first[token])
        going = [token for token in ranked if token not in ends][:5]
        expected = [() for token in ranked[:5] if token in ends]
        scores = [first[token] / ((5 + 1) / 6) for token in ranked[:5] if token in ends]
        for token in going:
            *told, end = run(replace(greedily, forced=(*forced, token)), FakeDecoder(slots=1))
            assert isinstance(end, Finished)
            ids = [event.id for event in told if isinstance(event, Token)]
            logs = [event.logprob for event in told if isinstance(event, Token)]
            total = first[token] + sum(logs)
            if end.reason == "stop":
                after = logprobs_after(decoder, [i, 9, *ids])
                total += max(after[token] for token in ends)
            count = len(ids) - len(forced) + (end.reason == "stop")
            expected.append(tuple(ids[len(forced):]))
            scores.append(total / ((5 + count) / 6))
        best = sorted(zip(scores, expected, strict=True), reverse=True)[:5]
        assert [one.ids[len(forced):] for one in found] == [ids for _, ids in best]
        assert [one.score for one in found] == pytest.approx([score for score, _ in best])
        lengths |= {len(one.ids) for one in found}
    assert len(lengths) > 3


def test_no_cache_is_copied_that_need_not_be() -> None:
    for i in range(1, 10):
        request = Request((5, i), 15, ignore, frozenset(), beam=Beam(5))
        decoder = FakeDecoder(slots=5)
        run(request, decoder)
        assert decoder.moved == slow_search(request)[1] > 4


def test_a_copy_begins_where_two_hypotheses_differ() -> None:
    class Watched(FakeDecoder):
        def move(self, source: int, target: int, length: int, start: int = 0) -> None:
            kept = self._cache[target, :start].tolist()
            assert kept == self._cache[source, :start].tolist()
            assert start == 0 or self._cache[source, start] != self._cache[target, start]
            starts.append(start)
            super().move(source, target, length, start)

    starts: list[int] = []
    run(Request((5, 6, 7), 15, ignore, frozenset(), beam=Beam(5)), Watched(slots=5))
    assert starts[:4] == [0] * 4 and min(starts[4:]) >= 3 and max(starts) > 5


def test_where_nothing_may_come_the_search_ends() -> None:
    """Five tokens, each once: the sixth place is empty, and the end is forbidden for longer."""
    options = Sampling(no_repeat_ngram=1, min_tokens=50)
    request = Request((1,), 40, ignore, END, options, beam=Beam(3, best=3))
    hypotheses = search(request, 6)
    assert {one.reason for one in hypotheses} == {"length"}
    assert sorted(hypotheses[0].ids) == [1, 2, 3, 4, 5]


def test_logits_that_are_not_finite_fail_the_whole_search() -> None:
    class Broken(FakeDecoder):
        def decode(self, *inputs):  # type: ignore[no-untyped-def]
            logits = super().decode(*inputs)
            logits[-1, 3] = np.nan
            return logits

    events = run(Request((5,), 9, ignore, END, beam=Beam(3)), Broken(slots=4))
    assert len(events) == 1 and isinstance(events[0], Failed)


@pytest.mark.parametrize("phase", ["prefill", "decode", "move"])
def test_a_failure_at_any_call_changes_nothing(phase: str) -> None:
    request = Request((5, 8), 10, ignore, frozenset(), beam=Beam(4, best=4))
    whole = FakeDecoder(slots=4)
    expected = run(request, whole)
    calls = [i for i, (name, _) in enumerate(whole.calls, 1) if name == phase]
    for at in calls:

        def hook(name: str, call: int, at: int = at) -> None:
            if call == at:
                raise RunFailed

        assert run(request, FakeDecoder(slots=4, hook=hook))[:-1] == expected[:-1]


def test_the_score_of_a_step_is_the_papers() -> None:
    """One step by hand: sums, and ((5 + n) / 6) ** alpha for what ends."""
    one = BeamSearch(Beam(2, 0.5, best=2), Sampling(), (1,), (), END, 2)
    row = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    assert one.advance([(row, 0, math.log(0.5))]) == [0, 0]
    assert [branch.output for branch in one.live] == [(1,), (2,)]
    assert one.best[0].score == pytest.approx(math.log(0.5))
    assert one.advance([(row, 0, math.log(0.5))] * 2) == []
    stopped = math.log(0.3 * 0.5) / (7 / 6) ** 0.5
    assert [h.ids for h in one.best] == [(), (1,)]
    assert one.best[1].score == pytest.approx(stopped)
