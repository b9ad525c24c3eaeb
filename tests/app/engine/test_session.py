"""The ONNX decoder: the same tokens give the same bits in any slot, company and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from app.bundle import Bundle
from app.engine.request import HostLogits
from app.engine.sampling import greedy as best_of
from app.engine.session import OnnxDecoder
from app.errors import BundleError, InvalidField

Logits = NDArray[np.float32]
# 33 and 65: one more than tiles of the attention kernel (twice the head size, here 16)
LENGTHS = [1, 2, 3, 5, 7, 11, 17, 1, 29, 40, 8, 65, 2, 64, 33, 6]


@pytest.fixture(params=["fp32", "int8", "int4"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    result: Bundle = request.getfixturevalue(f"{request.param}_bundle")
    return result


def make_prompts(vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, vocabulary, n).tolist() for n in LENGTHS]


def greedy(decoder: OnnxDecoder, prompt: Sequence[int], steps: int, slot: int = 0) -> list[Logits]:
    """Logits of `steps` greedy steps of one sequence alone."""
    out = [decoder.prefill(slot, [prompt])[0]]
    for i in range(steps - 1):
        token = np.array([out[-1].argmax()], np.int64)
        out.append(decoder.decode(token, np.array([len(prompt) + i], np.int32))[0])
    return out


def test_batch_equals_alone_bit_by_bit(bundle: Bundle) -> None:
    steps = 6
    alone = OnnxDecoder(bundle, slots=1, threads=1)
    prompts = make_prompts(alone.vocabulary)
    expected = [greedy(alone, prompt, steps) for prompt in prompts]
    decoder = OnnxDecoder(bundle, slots=len(prompts), threads=2)
    lengths = np.array(LENGTHS, np.int32)
    for size in (2, 3, len(prompts)):  # padded to the longest of the batch
        logits = decoder.prefill(0, prompts[:size])
        for row in range(size):
            assert np.array_equal(logits[row], expected[row][0])
    for step in range(1, steps):
        logits = decoder.decode(logits.argmax(axis=1), lengths + step - 1)
        for row in range(len(prompts)):
            assert np.array_equal(logits[row], expected[row][step])


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_a_run_of_the_first_rows_leaves_the_others_alone(bundle: Bundle, first: int) -> None:
    """What a run is padded with touches no slot; every number of rows has the same bits."""
    decoder = OnnxDecoder(bundle, slots=5, threads=2)
    prompts = make_prompts(decoder.vocabulary)[:5]
    lengths, tokens = np.array(LENGTHS[:5], np.int32), np.arange(20, 25)
    decoder.prefill(0, prompts)
    expected = decoder.decode(tokens, lengths)
    decoder.prefill(0, prompts)
    part = decoder.decode(tokens[:first], lengths[:first])
    assert np.array_equal(part, expected[:first])
    assert np.array_equal(decoder.decode(tokens, lengths), expected)


def test_the_graphs_sums_are_numpys_and_each_rows_own(bundle: Bundle) -> None:
    """Bit by bit alone and in company, and near those of the slow path."""
    alone = OnnxDecoder(bundle, slots=1, threads=2)
    prompts = make_prompts(alone.vocabulary)
    logits = OnnxDecoder(bundle, slots=len(prompts), threads=2).prefill(0, prompts)
    assert logits.sums is not None and logits[1:].sums is None
    for row, prompt in enumerate(prompts):
        single = alone.prefill(0, [prompt])
        assert single.sums is not None and single.sums[0] == logits.sums[row]
    ids, logprobs = best_of(logits)
    slow_ids, slow = best_of(np.array(logits))
    assert ids.tolist() == slow_ids.tolist()
    np.testing.assert_allclose(logprobs, slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_row_that_is_not_finite_has_no_log_probability(broken: float) -> None:
    rows = np.zeros((2, 5), np.float32)
    rows[1, 3] = broken
    logits = rows.view(HostLogits)
    logits.sums = np.full(2, 5.0, np.float32)
    _, logprobs = best_of(logits)
    assert logprobs[0] == pytest.approx(-np.log(5.0)) and np.isnan(logprobs[1])


@pytest.mark.parametrize("chunk", [2, 16, 32, 64])
def test_a_prompt_in_chunks_is_the_whole_prompt_bit_by_bit(bundle: Bundle, chunk: int) -> None:
    """Around the borders of chunks and of the kernel's tiles; logits and those that follow."""
    decoder = OnnxDecoder(bundle, slots=3, threads=2)
    rng = np.random.default_rng(3)
    for size in (3, 17, 31, 32, 33, 34, 63, 64, 65, 66, 95, 96, 97, 98, 127):
        prompt = rng.integers(0, decoder.vocabulary, size).tolist()
        whole = decoder.prefill(0, [prompt, [5, 6, 7]])[0]
        decoder.prefill(2, [prompt[:chunk]])
        row = whole
        for start in range(chunk, size, chunk):
            junk = np.full(3, 9, np.int64)  # others decode between two chunks, its row with them
            decoder.decode(junk, np.array([size, 3, start], np.int32))
            row = decoder.prefill(2, [prompt[start : start + chunk]], start)[0]
        assert np.array_equal(row, whole), size
        after = decoder.decode(np.full(3, 8, np.int64), np.array([size, 3, size], np.int32))
        assert size <= chunk or np.array_equal(after[0], after[2]), size


def test_prefill_refuses_a_start_that_it_cannot_go_on_from(fp32_bundle: Bundle) -> None:
    decoder = OnnxDecoder(fp32_bundle, slots=2, capacity=16, threads=1)
    decoder.prefill(0, [[5] * 8])
    assert np.isfinite(decoder.prefill(0, [[5] * 8], 8)).all()
    for prompts, start in (([[5]], 7), ([[5]], -2), ([[5], [5]], 8), ([[5] * 9], 8)):
        with pytest.raises(ValueError, match=r"start|prompt lengths"):
            decoder.prefill(0, prompts, start)


def test_any_slot_and_capacity(bundle: Bundle) -> None:
    prompts = make_prompts(bundle.manifest.model.vocabulary)
    expected = OnnxDecoder(bundle, slots=1, threads=2).prefill(0, [prompts[8]])[0]
    for capacity in (29, 64, 128):
        decoder = OnnxDecoder(bundle, slots=5, capacity=capacity, threads=2)
        for slot in range(5):
            assert np.array_equal(decoder.prefill(slot, [prompts[8]])[0], expected)


def test_move_and_later_prefill_leave_a_sequence_as_it_is(bundle: Bundle) -> None:
    decoder = OnnxDecoder(bundle, slots=4, threads=2)
    prompts = make_prompts(decoder.vocabulary)
    expected = greedy(decoder, prompts[5], 4)
    logits = decoder.prefill(0, [prompts[9], prompts[3], prompts[5]])
    decoder.move(2, 0, len(prompts[5]))
    decoder.prefill(1, [prompts[13], prompts[1]])  # overwrites slots 1 and 2
    row = logits[2]
    for step in range(1, 4):
        assert np.array_equal(row, expected[step - 1])
        tokens = np.array([row.argmax(), 5], np.int64)
        row = decoder.decode(tokens, np.array([len(prompts[5]) + step - 1, 64], np.int32))[0]
    assert np.array_equal(row, expected[3])


def test_a_copy_of_what_differs_is_a_whole_copy(bundle: Bundle) -> None:
    decoder = OnnxDecoder(bundle, slots=3, threads=2)
    prompt = make_prompts(decoder.vocabulary)[5]
    decoder.prefill(0, [prompt, [*prompt[:3], 9, 9]])
    decoder.move(0, 1, len(prompt), 3)  # forward, over a row with the same beginning
    decoder.move(0, 2, len(prompt))
    rows = decoder.decode(np.full(3, 7, np.int64), np.full(3, len(prompt), np.int32))
    assert np.array_equal(rows[0], rows[1]) and np.array_equal(rows[0], rows[2])


def test_decode_continues_what_prefill_of_the_whole_would_say(fp32_bundle: Bundle) -> None:
    decoder = OnnxDecoder(fp32_bundle, slots=2, threads=1)
    prompt = make_prompts(decoder.vocabulary)[9]
    whole = decoder.prefill(1, [prompt])[0]
    decoder.prefill(0, [prompt[:10]])
    for i in range(10, len(prompt)):
        row = decoder.decode(np.array([prompt[i]], np.int64), np.array([i], np.int32))[0]
    np.testing.assert_allclose(row, whole, rtol=1e-4, atol=1e-4)


def test_full_to_the_last_position(bundle: Bundle) -> None:
    decoder = OnnxDecoder(bundle, slots=2, capacity=8, threads=1)
    decoder.prefill(0, [[5] * 7, [6] * 8])
    logits = decoder.decode(np.array([9], np.int64), np.array([7], np.int32))
    assert np.isfinite(logits).all()
    with pytest.raises(ValueError, match="lengths"):
        decoder.decode(np.array([9], np.int64), np.array([8], np.int32))


def test_returned_logits_do_not_change_later(fp32_bundle: Bundle) -> None:
    decoder = OnnxDecoder(fp32_bundle, slots=1, threads=1)
    first = decoder.prefill(0, [[5, 6, 7]])
    kept = first.copy()
    second = decoder.decode(np.array([8], np.int64), np.array([3], np.int32))
    decoder.decode(np.array([9], np.int64), np.array([4], np.int32))
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("first", "prompts"),
    [(0, []), (0, [[]]), (0, [[1] * 129]), (2, [[1, 2]]), (-1, [[1, 2]]), (0, [[1], [-1]]),
     (0, [[10**6]]), (1, [[1], [1]])],
)  # fmt: skip
def test_prefill_refuses(fp32_bundle: Bundle, first: int, prompts: list[list[int]]) -> None:
    decoder = OnnxDecoder(fp32_bundle, slots=2, threads=1)
    with pytest.raises(ValueError, match=r"prefill|prompt|token ids"):
        decoder.prefill(first, prompts)


@pytest.mark.parametrize(
    ("tokens", "lengths"),
    [([], []), ([1], [0]), ([1], [128]), ([1], [-1]), ([1, 2, 3], [1, 1, 1]), ([1, 2], [1]),
     ([-1], [1]), ([10**6], [1])],
)  # fmt: skip
def test_decode_refuses(fp32_bundle: Bundle, tokens: list[int], lengths: list[int]) -> None:
    decoder = OnnxDecoder(fp32_bundle, slots=2, threads=1)
    with pytest.raises(ValueError, match=r"decode|lengths|token ids"):
        decoder.decode(np.array(tokens, np.int64), np.array(lengths, np.int32))


@pytest.mark.parametrize(("source", "target", "length"), [(0, 2, 1), (-1, 0, 1), (0, 1, 129)])
def test_move_refuses(fp32_bundle: Bundle, source: int, target: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"slot|length"):
        OnnxDecoder(fp32_bundle, slots=2, threads=1).move(source, target, length)


@pytest.mark.parametrize(
    ("options", "param"),
    [({"slots": 0}, "slots"), ({"capacity": 129}, "capacity"), ({"capacity": 1}, "capacity"),
     ({"threads": 0}, "threads")],
)  # fmt: skip
def test_options_are_checked(int8_bundle: Bundle, options: dict[str, int], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        OnnxDecoder(int8_bundle, **{"slots": 1, "threads": 1, **options})  # type: ignore[arg-type]
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("part", "changes", "named"),
    [
        ("model", {"layers": 3}, "past_key"),
        ("model", {"heads": 2, "head_size": 32}, "past_key"),
        ("model", {"vocabulary": 77}, "logits"),
        ("graph", {"ids": "nope"}, "input_ids"),
        ("graph", {"cache_dtype": "float16"}, "past_key"),
        ("limits", {"context": 4096}, "model.onnx|does not run"),
    ],
)
def test_a_manifest_that_does_not_fit_the_graph_is_refused(
    fp32_bundle: Bundle, part: str, changes: dict[str, object], named: str
) -> None:
    manifest = fp32_bundle.manifest
    changed = getattr(manifest, part).model_copy(update=changes)
    wrong = replace(fp32_bundle, manifest=manifest.model_copy(update={part: changed}))
    with pytest.raises(BundleError, match=named):
        OnnxDecoder(wrong, slots=1, threads=1)
