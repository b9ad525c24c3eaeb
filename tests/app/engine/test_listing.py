"""Candidates: each row sees its own and no others, and has the same bits in any company."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.bundle import Bundle
from app.engine.device import DeviceDecoder
from app.engine.listed import ListedLogits
from app.engine.listing import Columns, least_columns
from app.engine.request import Beam, Candidates, Decoder, HostLogits, Only, Request, Sampling
from app.engine.sampling import greedy
from app.engine.session import OnnxDecoder
from app.errors import InvalidField
from tests.app.engine import driver
from tests.app.engine.listeners import Listener, a_request, answers, running
from tests.fakes import FakeDecoder, among


class Obvious(OnnxDecoder):
    """The slow and obvious way: logits of the whole vocabulary, of which each row keeps its own.

    In integers these are the head's without any listing; a float head adds them up in the order of
    the listed one, which is given all ids as candidates.
    """

    def __init__(self, bundle: Bundle, slots: int) -> None:
        vocabulary = bundle.manifest.model.vocabulary
        self.whole = bundle.manifest.model.precision != "fp32"
        self.every = Candidates(np.arange(vocabulary), vocabulary)
        super().__init__(bundle, slots=slots, threads=1, lists=True)

    def _all(self, only: Only) -> list[Candidates | None]:
        return [None if one is None or self.whole else self.every for one in only]

    def prefill_among(
        self, first: int, prompts: Sequence[Sequence[int]], only: Only, start: int = 0
    ) -> ListedLogits:
        return self._kept(super().prefill_among(first, prompts, self._all(only), start), only)

    def decode_among(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int32], only: Only
    ) -> ListedLogits:
        return self._kept(super().decode_among(tokens, lengths, self._all(only)), only)

    def _kept(self, every: ListedLogits, only: Only) -> ListedLogits:
        own = [every[row][one.ids] for row, one in enumerate(only) if one is not None]
        return ListedLogits(only, own, every._whole)


def listed(requests: list[Request], vocabulary: int, seed: int = 0) -> list[Request]:
    """Two of three have candidates, few or many, the end among them; each has a listener."""
    rng = np.random.default_rng(seed)
    made = []
    for i, one in enumerate(requests):
        size = [None, 12, vocabulary // 3][i % 3]
        ids = rng.choice(vocabulary, size, replace=False) if size else None
        only = None if ids is None else Candidates(np.union1d(ids, [0]), vocabulary)
        made.append(replace(one, candidates=only, listener=Listener()))
    return made


def run(decoder: Decoder, requests: list[Request], rng: random.Random | None = None) -> list[Any]:
    """Answers and hypotheses: one by one, or by random arrival."""
    with running(decoder) as engine:
        left = list(requests)
        while left:
            count = rng.choice([1, 3, 12]) if rng else 1
            engine.submit(left[:count])
            if not rng:
                answers(left[:1])
            elif rng.random() < 0.3:
                time.sleep(rng.random() * 0.01)
            left = left[count:]
        got = answers(requests)
    return [(found, one.listener.hypotheses)  # type: ignore[attr-defined]
            for found, one in zip(got, requests, strict=True)]  # fmt: skip


def test_any_company_any_arrival_the_same_answer_as_alone_and_as_the_obvious_way(
    listed_bundle: Bundle,
) -> None:
    """Greedy, sampled, searched, with options, with and without candidates."""
    vocabulary = listed_bundle.manifest.model.vocabulary

    def requests() -> list[Request]:
        return listed(driver.mixed(66, 1, vocabulary, 95), vocabulary)

    together = run(
        OnnxDecoder(listed_bundle, slots=16, spare=3, threads=2, lists=True), requests(),
        random.Random(7),
    )  # fmt: skip
    alone = run(OnnxDecoder(listed_bundle, slots=4, threads=1, lists=True), requests())
    assert together == alone
    assert alone == run(Obvious(listed_bundle, 4), requests())
    plain = run(OnnxDecoder(listed_bundle, slots=4, threads=1), [
        one for one in requests() if one.candidates is None
    ])  # fmt: skip
    assert plain == alone[::3], "those without candidates are as if there were none anywhere"
    for ((tokens, _), hypotheses), one in zip(alone, requests(), strict=True):
        outputs = [[t.id for t in tokens], *(h.ids for h in hypotheses)]
        for ids in outputs if one.candidates else ():
            assert set(ids[len(one.forced) :]) <= set(one.candidates.ids.tolist())  # type: ignore[union-attr]


def test_rows_with_one_prompt_and_no_candidate_in_common(listed_bundle: Bundle) -> None:
    """If a row saw another's candidates it would choose them: they share all but the mask."""
    decoder = OnnxDecoder(listed_bundle, slots=8, threads=2, lists=True)
    vocabulary = decoder.vocabulary
    parts = [Candidates(np.arange(k, vocabulary, 4), vocabulary) for k in range(4)]
    options = Sampling(logprobs=vocabulary)

    def request(k: int) -> Request:
        one = a_request(Listener(), (5, 6, 7), 12, options, frozenset())
        return replace(one, candidates=parts[k])

    together = [request(k) for k in (0, 1, 2, 3, 0)]
    with running(decoder) as engine:
        engine.submit(together)
        got = answers(together)
    assert got[0] == got[4]
    for k, (tokens, reason) in enumerate(got[:4]):
        assert reason == "length" and {token.id % 4 for token in tokens} == {k}
        for token in tokens:  # probabilities among its own, all of them and no others
            assert sorted(i for i, _ in token.top) == parts[k].ids.tolist()
            assert sum(np.exp(value) for _, value in token.top) == pytest.approx(1, abs=1e-4)
        with running(OnnxDecoder(listed_bundle, slots=1, threads=1, lists=True)) as engine:
            lone = request(k)
            engine.submit([lone])
            assert answers([lone]) == [got[k]]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_column_has_the_same_bits_beside_any_others(listed_bundle: Bundle, threads: int) -> None:
    decoder = OnnxDecoder(listed_bundle, slots=40, threads=threads, lists=True)
    rng, vocabulary = np.random.default_rng(2), decoder.vocabulary
    every = Candidates(np.arange(vocabulary), vocabulary)
    prompts = [rng.integers(0, vocabulary, 5).tolist() for _ in range(40)]
    tokens, lengths = rng.integers(0, vocabulary, 40), np.full(40, 5, np.int32)
    decoder.prefill(0, prompts)
    listed = decoder.decode_among(tokens, lengths, [every] * 40)
    whole = [listed[row] for row in range(40)]
    plain = decoder.decode(tokens, lengths)
    near = 1e-4 if listed_bundle.manifest.model.precision == "fp32" else 0
    np.testing.assert_allclose(np.stack(whole), plain, rtol=near, atol=near)
    for rows in (1, 2, 3, 17, 40):
        sizes = rng.integers(1, vocabulary, rows)
        only = [Candidates(np.sort(rng.choice(vocabulary, n, replace=False)), vocabulary)
                if n % 3 else None for n in sizes]  # fmt: skip
        found = decoder.decode_among(tokens[:rows], lengths[:rows], only)
        for row, one in enumerate(only):
            expected = plain[row] if one is None else one.spread(whole[row][one.ids])
            assert np.array_equal(found[row], expected), (rows, row)
        assert np.array_equal(decoder.decode(tokens[:rows], lengths[:rows]), plain[:rows])


def test_a_row_without_candidates_is_chosen_from_as_in_a_run_without_any(
    listed_bundle: Bundle,
) -> None:
    decoder = OnnxDecoder(listed_bundle, slots=3, threads=1, lists=True)
    few = Candidates(np.arange(3, decoder.vocabulary, 5), decoder.vocabulary)
    prompts = [[5, 6, 7], [8, 9], [4]]
    plain = decoder.prefill(0, prompts)
    assert isinstance(plain, HostLogits) and plain.sums is not None
    ids, logprobs = greedy(plain)
    found = decoder.prefill_among(0, prompts, [None, few, None]).best()
    assert (found[0][::2] == ids[::2]).all() and found[1][::2] == logprobs[::2]
    assert found[0][1] in few.ids
    [alone], [logprob] = decoder.prefill_among(0, [[8, 9]], [few]).best()
    assert (found[0][1], found[1][1]) == (alone, logprob)


def test_logits_that_are_not_finite_are_told() -> None:
    whole = np.zeros((3, 9), np.float32)
    whole[0, 4] = whole[1, 4] = np.nan
    only = [None, Candidates(np.array([2, 4]), 9), Candidates(np.array([3, 5]), 9)]
    found = among(whole, only).best()[1]
    assert np.isnan(found[:2]).all() and found[2] == pytest.approx(-np.log(2))


def test_a_gpu_refuses_candidates(fp16_bundle: Bundle) -> None:
    with pytest.raises(InvalidField, match="takes no shortlist") as caught:
        DeviceDecoder(fp16_bundle, slots=1, threads=1, device="cpu", lists=True)
    assert caught.value.param == "shortlist"
    decoder = DeviceDecoder(fp16_bundle, slots=1, threads=1, device="cpu")
    with running(decoder) as engine, pytest.raises(InvalidField, match="no candidates"):
        engine.submit([replace(a_request(Listener()), candidates=ids(1))])


@pytest.mark.parametrize("scaled", [True, False])
def test_columns_stand_where_their_places_say(scaled: bool) -> None:
    rng, size = np.random.default_rng(0), 3000
    table = rng.integers(-99, 99, (size, 8)).astype(np.int8 if scaled else np.float32)
    scales = rng.random(size).astype(np.float32) if scaled else None
    columns = Columns(table, scales, 128)
    running: list[Candidates] = []
    sizes = []
    for step in range(300):
        new = [Candidates(np.sort(rng.choice(size, 60, replace=False)), size)]
        columns.places(new, running=False)
        running = [*running, *new][-(step % 7 + 1) :]
        for one, places in zip(running, columns.places(running, running=True), strict=True):
            values = columns.values[:, places].T if scaled else columns.values[places]
            assert np.array_equal(values, table[one.ids])
            assert scales is None or np.array_equal(columns.scales[places], scales[one.ids])  # type: ignore[index]
        sizes.append(columns.size)
        assert columns.count <= columns.size and columns.size % 128 == 0
        assert len(columns._places) < 100, "those of sequences that left are forgotten"
    assert max(sizes) <= 1.5 * 8 * 60 + 128 and min(sizes) == 128, "it follows what is needed"
    every = Candidates(np.arange(size), size)
    columns.places([*running, every], running=True)
    assert columns.size >= size
    assert columns.places(running[:1], running=True)[0].size == 60 and columns.size <= 256


def test_least_columns_leave_every_thread_more_than_a_panel() -> None:
    assert least_columns(1, 8) == 128 and least_columns(6, 32) == 768
    assert least_columns(2, 1024) > 1024, "shared among threads by columns, not by rows"


def ids(*values: int) -> Candidates:
    return Candidates(np.array(values, np.int64), 96)


@pytest.mark.parametrize(
    ("candidates", "match"),
    [
        (Candidates(np.array([1]), 95), "of 95 ids"),
        (ids(), "at least one"),
        (ids(5, 5), "ascending"),
        (ids(7, 5), "ascending"),
        (Candidates(np.array([[1]]), 96), "ascending"),
        (Candidates(np.array([1], np.int32), 96), "ascending"),  # type: ignore[arg-type]
        (ids(5, 96), "id 96"),
        (ids(-1, 5), "id -1"),
    ],
)
def test_candidates_that_cannot_be_are_refused(candidates: Candidates, match: str) -> None:
    with running() as engine, pytest.raises(InvalidField, match=match) as caught:
        engine.submit([replace(a_request(Listener()), candidates=candidates)])
    assert caught.value.param == "candidates"


def test_a_decoder_that_lists_nothing_refuses_candidates() -> None:
    decoder = FakeDecoder()
    decoder.lists = False
    with running(decoder) as engine, pytest.raises(InvalidField, match="no candidates"):
        engine.submit([replace(a_request(Listener()), candidates=ids(1))])


def test_a_bundle_without_a_shortlist_cannot_list(int8_bundle: Bundle) -> None:
    with pytest.raises(InvalidField, match="exported with one") as caught:
        OnnxDecoder(int8_bundle, slots=1, threads=1, lists=True)
    assert caught.value.param == "shortlist"


@pytest.mark.parametrize("sampling", [
    Sampling(no_repeat_ngram=1), Sampling(0.8, no_repeat_ngram=1, seed=3), Sampling(logprobs=9),
])  # fmt: skip
def test_a_lone_candidate_comes_even_where_it_is_forbidden(sampling: Sampling) -> None:
    one = replace(a_request(Listener(), max_tokens=5, sampling=sampling), candidates=ids(7))
    beam = replace(one, listener=Listener(), sampling=Sampling(), beam=Beam(3, best=3))
    with running() as engine:
        engine.submit([one, beam])
        (tokens, reason), found = answers([one, beam])
    assert ([(t.id, t.logprob) for t in tokens], reason) == ([(7, 0.0)] * 5, "length")
    assert all(t.top == ((7, 0.0),) for t in tokens if sampling.logprobs)
    assert [t.id for t in found[0]] == [7] * 5 and len(beam.listener.hypotheses) == 1  # type: ignore[attr-defined]


def test_a_processor_whose_columns_are_not_alike_is_told(
    listed_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    class Sociable(OnnxDecoder):
        def prefill_among(
            self, first: int, prompts: Sequence[Sequence[int]], only: Only, start: int = 0
        ) -> ListedLogits:
            found = super().prefill_among(first, prompts, only, start)
            return among(np.stack([found[0] + np.float32(len(prompts) > 1)] * len(only)), only)

    assert OnnxDecoder(listed_bundle, slots=3, threads=1, lists=True).alike is True
    assert "differ in the last bits" not in caplog.text
    assert Sociable(listed_bundle, slots=3, threads=1, lists=True).alike is False
    assert "differ in the last bits" in caplog.text
