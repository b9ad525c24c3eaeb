"""Corruption: exact rates, special tokens left alone, and what was there can be restored."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer

from training.corruption import (
    LONGEST,
    Vocabulary,
    boundary,
    infilling,
    pick,
    replacements,
    segments,
)
from training.errors import ConfigError
from training.tokenizer import train_tokenizer

END, MASK, SEP = 0, 1, 2


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def vocabulary() -> Vocabulary:
    """200 ids: 64 special ones, then ordinary ones of which every tenth ends a sentence."""
    ids = np.arange(200)
    return Vocabulary(END, MASK, SEP, ids >= 64, (ids >= 64) & (ids % 10 == 0))


def test_the_vocabulary_of_a_tokenizer(tokenizer: Tokenizer) -> None:
    found = Vocabulary.of(tokenizer)
    assert (found.end, found.mask, found.separator) == (0, 1, 2)
    assert not found.ordinary[:64].any() and found.ordinary[64:].all()
    dot, letter = (tokenizer.encode(x, add_special_tokens=False).ids[-1] for x in ("dog.", "x"))
    assert found.closing[dot] and not found.closing[letter]
    assert not found.closing[:64].any()
    with pytest.raises(ConfigError, match="no <.endoftext.>"):
        Vocabulary.of(Tokenizer.from_str(
            train_tokenizer(["x"], 400, ["en"]).to_str().replace("<|endoftext|>", "<|stop|>")
        ))  # fmt: skip


@pytest.mark.parametrize("spans", [False, True])
def test_the_share_picked_is_exact_and_allowed(spans: bool, rng: np.random.Generator) -> None:
    for size in (1, 3, 20, 128, 500):
        for rate in (0.05, 0.15, 0.5, 0.95):
            allowed = rng.random(size) < 0.8
            chosen = pick(allowed, rate, spans, rng)
            count = int(allowed.sum())
            assert not (chosen & ~allowed).any()
            assert chosen.sum() == min(count, max(1, round(rate * count)))
    assert not pick(np.zeros(9, bool), 0.5, spans, rng).any()


def test_every_place_is_picked_alike(rng: np.random.Generator) -> None:
    allowed = np.ones(40, bool)
    sums = sum(pick(allowed, 0.15, False, rng).astype(int) for _ in range(4000))
    assert np.abs(sums / 4000 - 0.15).max() < 0.03


def test_spans_are_longer_than_chance(rng: np.random.Generator) -> None:
    def mean_run(spans: bool) -> float:
        runs = []
        for _ in range(300):
            chosen = pick(np.ones(200, bool), 0.15, spans, rng)
            cuts = np.flatnonzero(np.diff(np.concatenate(([0], chosen.astype(int), [0]))))
            runs += (cuts[1::2] - cuts[::2]).tolist()
        return float(np.mean(runs))

    assert mean_run(False) < 1.3
    assert 3 < mean_run(True) < LONGEST  # min(geometric(0.2), 10) has a mean of 4.5


def test_replacements_are_ordinary_and_all_alike(
    vocabulary: Vocabulary, rng: np.random.Generator
) -> None:
    drawn = replacements(136 * 300, vocabulary, rng)
    counts = Counter(drawn.tolist())
    assert set(counts) == set(range(64, 200))
    assert min(counts.values()) > 200 and max(counts.values()) < 400
    assert len(replacements(0, vocabulary, rng)) == 0


def test_a_filled_hole_is_the_row(vocabulary: Vocabulary, rng: np.random.Generator) -> None:
    row = np.arange(64, 94)
    starts, sizes = [], []
    for _ in range(500):
        found = infilling(row, vocabulary, rng)
        assert len(found) == len(row) + 4 and found[0] == MASK and found[-1] == END
        separator, hole = np.flatnonzero(found == SEP)[0], np.flatnonzero(found == MASK)[1]
        prefix, suffix = found[1:separator], found[separator + 1 : hole]
        middle = found[hole + 1 : -1]
        assert np.concatenate((prefix, middle, suffix)).tolist() == row.tolist()
        starts.append(len(prefix))
        sizes.append(len(middle))
    assert min(sizes) == 1 and max(sizes) > 25 and min(starts) == 0 and max(starts) > 25


def test_parts_begin_after_a_sentence(vocabulary: Vocabulary, rng: np.random.Generator) -> None:
    document = np.arange(64, 164)  # 70, 80 ... end sentences
    found = {boundary(document, vocabulary, rng) for _ in range(200)}
    assert found == {i + 1 for i in range(25, 75) if (64 + i) % 10 == 0}
    assert {boundary(np.array([70, 71]), vocabulary, rng)} == {1}
    assert boundary(np.array([71, 72, 73, 70, 74]), vocabulary, rng) == 4  # outside the middle
    assert {boundary(np.full(4, 71), vocabulary, rng) for _ in range(50)} == {1, 2, 3}


def parts_of(row: np.ndarray) -> tuple[list[int], list[int]]:
    assert row[0] == END and (row == SEP).sum() == 1
    at = int(np.flatnonzero(row == SEP)[0])
    return row[1:at].tolist(), row[at + 1 :].tolist()


@pytest.mark.parametrize("size", [8, 30, 100])
@pytest.mark.parametrize("swapped", [False, True])
def test_segments_follow_or_do_not(
    size: int, swapped: bool, vocabulary: Vocabulary, rng: np.random.Generator
) -> None:
    document, other = np.arange(64, 64 + size), np.arange(64, 64 + size)[::-1].copy()
    truths = []
    for _ in range(400):
        row, follows = segments(document, None if swapped else other, 32, swapped, vocabulary, rng)
        first, second = parts_of(row)
        assert first and second and len(row) <= 32
        truths.append(follows)
        if follows:
            assert second[0] == first[-1] + 1
            assert first + second == list(range(first[0], second[-1] + 1))
        elif swapped:
            assert first[0] == second[-1] + 1
            assert second + first == list(range(second[0], first[-1] + 1))
        else:
            assert second == sorted(second, reverse=True)  # of the other document
            assert first == sorted(first)
    assert 0.4 < np.mean(truths) < 0.6


def test_length_does_not_tell_what_follows(
    vocabulary: Vocabulary, rng: np.random.Generator
) -> None:
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for _ in range(1500):
        one, two = (rng.integers(64, 200, int(rng.integers(20, 120))) for _ in range(2))
        row, follows = segments(one, two, 64, False, vocabulary, rng)
        sizes[follows].append(len(row))
    assert abs(np.mean(sizes[True]) - np.mean(sizes[False])) < 2.5
    full = [np.mean(np.array(sizes[truth]) == 64) for truth in (True, False)]
    assert abs(full[0] - full[1]) < 0.1


def test_cuts_do_not_tell_what_was_swapped(
    vocabulary: Vocabulary, rng: np.random.Generator
) -> None:
    """Both parts begin and end where sentences do, in either order."""
    document = np.arange(71, 171)  # ten sentences of ten tokens; a row holds three
    truths = set()
    for _ in range(300):
        row, follows = segments(document, None, 42, True, vocabulary, rng)
        truths.add(follows)
        for part in parts_of(row):
            assert part[0] % 10 == 1 and part[-1] % 10 == 0
    assert truths == {True, False}


def test_without_another_document_the_second_part_follows(
    vocabulary: Vocabulary, rng: np.random.Generator
) -> None:
    for _ in range(50):
        assert segments(np.arange(64, 90), None, 32, False, vocabulary, rng)[1]
