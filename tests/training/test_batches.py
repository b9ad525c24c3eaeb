"""Batches: every example once an epoch, rows within the budget, targets, text, and the cursor."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from training.batches import IGNORED, Batch, Cursor, PairRows, Stream, Tags, TextRows, sample
from training.corpus import Source
from training.errors import CorpusError
from training.shards import Shard, write_shard

TOKENS = 600


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def sequences(count: int, seed: int) -> list[list[int]]:
    """Sequences as long as real sentences are (log-normal, about 20 tokens), all unlike."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(rng.lognormal(2.9, 0.6, count).astype(int), 2, 200)
    return [[64 + i // 400, 64 + i % 400, *rng.integers(64, 464, n - 2)] for i, n in
            enumerate(sizes)]  # fmt: skip


@pytest.fixture
def pair_shards(tmp_path: Path) -> list[Shard]:
    return [
        write_shard(tmp_path / f"{name}.bin", Source(name, ("en", "de"), ()), rows, "")
        for name, rows in (("a", sequences(600, 1)), ("b", sequences(80, 2)), ("none", []))
    ]


@pytest.fixture
def pairs(pair_shards: list[Shard], tags: Tags) -> PairRows:
    return PairRows(pair_shards, [1.0, 2.5, 1.0], tags, 100)


def texts_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Of each row its ids and its targets without padding."""
    rows = []
    for ids, targets, length in zip(batch.ids, batch.targets, batch.lengths, strict=True):
        assert not ids[length:].any() and (targets[length:] == IGNORED).all()
        rows.append((ids[:length].tolist(), targets[:length].tolist()))
    return rows


# -- sample


@pytest.mark.parametrize(
    ("passes", "total"), [(0.0, 0), (0.3, 30), (1.0, 100), (2.25, 225), (0.004, 0), (0.006, 1)]
)
def test_sample_takes_whole_passes_and_a_part(
    rng: np.random.Generator, passes: float, total: int
) -> None:
    items = np.arange(1000, 1100)
    counts = Counter(sample(items, passes, rng).tolist())
    assert counts.total() == total and set(counts) <= set(items.tolist())
    whole = int(passes)
    assert all(count in (whole, whole + 1) for count in counts.values())
    assert len(counts) == (100 if whole else total)


def test_the_part_is_drawn_anew(rng: np.random.Generator) -> None:
    items = np.arange(100)
    assert sample(items, 0.5, rng).tolist() != sample(items, 0.5, rng).tolist()


# -- pairs


def test_every_example_comes_once_per_pass_and_direction(
    pairs: PairRows, pair_shards: list[Shard], rng: np.random.Generator
) -> None:
    groups = pairs.batches(pairs.choose(rng), TOKENS)
    counts = Counter(tuple(example) for group in groups for example in group.tolist())
    for shard, low, high in ((0, 1, 1), (1, 2, 3)):
        sizes = pair_shards[shard].lengths
        for pair in range(len(pair_shards[shard]) // 2):
            fits = sizes[2 * pair] + sizes[2 * pair + 1] + 4 <= 100
            for direction in (0, 1):
                count = counts.pop((shard, pair, direction), 0)
                assert low <= count <= high if fits else count == 0
    assert not counts


def test_rows_stay_within_the_budget_and_padding_is_small(
    pairs: PairRows, rng: np.random.Generator
) -> None:
    batches = [pairs.collate(group) for group in pairs.batches(pairs.choose(rng), TOKENS)]
    computed = sum(batch.ids.numel() for batch in batches)
    real = sum(int(batch.lengths.sum()) for batch in batches)
    assert max(batch.ids.numel() for batch in batches) <= TOKENS
    assert 1 - real / computed < 0.06
    assert computed / len(batches) > 0.8 * TOKENS  # the budget is used


def test_batches_of_like_lengths_come_in_no_order_of_length(
    pairs: PairRows, tags: Tags
) -> None:
    widths = [b.ids.shape[1] for b in islice(Stream(pairs, None, TOKENS, 1)(Cursor()), 40)]
    assert widths != sorted(widths) and len(set(widths)) > 10


def test_a_row_is_tags_source_separator_target_end(
    pairs: PairRows, pair_shards: list[Shard]
) -> None:
    source, target = pair_shards[0][6].tolist(), pair_shards[0][7].tolist()
    there, prompt = pairs.row(np.array([0, 3, 0]))
    assert there == [3, 6, *source, 2, *target, 0] and prompt == len(source) + 3
    back, prompt = pairs.row(np.array([0, 3, 1]))
    assert back == [4, 5, *target, 2, *source, 0] and prompt == len(target) + 3


def test_targets_come_after_the_separator_only(pairs: PairRows, rng: np.random.Generator) -> None:
    for group in pairs.batches(pairs.choose(rng), TOKENS)[:20]:
        batch = pairs.collate(group, "en-de")
        assert batch.tag == "en-de"
        rows = zip(group, batch.prefix, texts_of(batch), strict=True)
        for example, prefix, (ids, targets) in rows:
            whole, prompt = pairs.row(example)
            assert ids == whole[:-1] and prefix == prompt and ids[prompt - 1] == 2
            assert targets == [IGNORED] * (prompt - 1) + whole[prompt:]


def test_machine_translations_have_one_direction_and_tasks_their_own_rows(
    tmp_path: Path, tags: Tags, rng: np.random.Generator
) -> None:
    sources = [
        Source("a", ("en", "de"), ()), Source("b", ("en", "de"), (), one_way=True),
        Source("c", ("de", "en"), (), one_way=True), Source("d", (), (), task="case"),
    ]  # fmt: skip
    shards = [write_shard(tmp_path / f"{s.name}.bin", s, sequences(40, i), "")
              for i, s in enumerate(sources)]  # fmt: skip
    tags = replace(tags, tasks={"case": 9})

    def directions(*globs: str) -> Counter[tuple[int, ...]]:
        rows = PairRows(shards, [1.0] * 4, tags, 999, globs)
        return Counter(map(tuple, rows.choose(rng)[:, [0, 2]].tolist()))

    assert directions() == {(0, 0): 20, (0, 1): 20, (1, 0): 20, (2, 0): 20, (3, 0): 20}
    assert directions("en-*") == {(0, 0): 20, (1, 0): 20, (3, 0): 20}
    rows = PairRows(shards, [1.0] * 4, tags, 999)
    text, answer = shards[3][4].tolist(), shards[3][5].tolist()
    assert rows.row(np.array([3, 2, 0])) == ([9, *text, 2, *answer, 0], len(text) + 2)
    forms: Counter[str] = Counter()
    for group in rows.batches(rows.choose(rng), TOKENS):
        batch = rows.collate(group)
        assert {bool(i == 3) for i in group[:, 0]} == {batch.form == "task"}
        forms[batch.form] += len(group)
    assert forms == {"pairs": 80, "task": 20}


# -- text


@pytest.fixture
def text(tmp_path: Path, pair_shards: list[Shard]) -> TextRows:
    mono = write_shard(tmp_path / "m.bin", Source("mono/m", ("en",), ()), sequences(50, 3), "")
    return TextRows([mono, pair_shards[1]], [1.0, 1.0], 0, 32)


def test_text_rows_cover_the_stream_of_documents(text: TextRows, rng: np.random.Generator) -> None:
    documents, starts = text.choose(rng)
    assert Counter(map(tuple, documents.tolist())) == Counter(
        [(0, i) for i in range(50)] + [(1, i) for i in range(80)]
    )
    stream: list[int] = []
    for (shard, index), start in zip(documents, starts[:-1], strict=True):
        assert start == len(stream)
        stream += [0, *text.shards[shard][index].tolist()]
    assert starts[-1] == len(stream)
    rows = np.arange((len(stream) - 1) // 32)
    batch = text.collate(documents, starts, rows, "en")
    assert batch.ids.flatten().tolist() == stream[: 32 * len(rows)]
    assert batch.targets.flatten().tolist() == stream[1 : 32 * len(rows) + 1]
    assert len(stream) - 32 * len(rows) <= 32  # no more than a row is left out
    assert batch.lengths.tolist() == [32] * len(rows) and not batch.prefix.any()


# -- streams


def key_of(batch: Batch) -> tuple[list[int], list[int]]:
    return batch.ids.flatten().tolist(), batch.targets.flatten().tolist()


def test_an_epoch_of_a_stream_holds_every_row_once(pairs: PairRows, text: TextRows) -> None:
    stream, cursor = Stream(pairs, text, TOKENS, 1, text_share=0.2), Cursor()
    seen: Counter[tuple[int, ...]] = Counter()
    for batch in stream(cursor):
        if cursor.epoch == 1:
            break
        if batch.prefix.any():
            seen.update(tuple(ids) for ids, _ in texts_of(batch))
    expected = Counter(
        tuple(pairs.row(e)[0][:-1]) for e in pairs.choose(np.random.default_rng([1, 0]))
    )
    assert seen == expected


def test_text_takes_its_share_of_batches(pairs: PairRows, text: TextRows) -> None:
    def texts(share: float) -> tuple[int, int]:
        cursor, counts = Cursor(), Counter[bool]()
        for batch in Stream(pairs, text, 128, 1, share)(cursor):
            if cursor.epoch:
                break
            counts[bool(batch.prefix.any())] += 1
        return counts[False], counts[True]

    some, of = texts(0.05)
    assert some == round(of * 0.05 / 0.95) > 10
    assert texts(0.0)[0] == 0


def test_epochs_and_seeds_differ(pairs: PairRows) -> None:
    first = [key_of(b) for b in islice(Stream(pairs, None, TOKENS, 1)(Cursor()), 5)]
    later = [key_of(b) for b in islice(Stream(pairs, None, TOKENS, 1)(Cursor(epoch=1)), 5)]
    other = [key_of(b) for b in islice(Stream(pairs, None, TOKENS, 2)(Cursor()), 5)]
    assert first != later and first != other and later != other


def test_a_cursor_resumes_at_the_batch_after(pairs: PairRows, text: TextRows) -> None:
    stream, cursor = Stream(pairs, text, 3000, 1, text_share=0.3), Cursor()
    batches, cursors = [], [asdict(cursor)]
    for batch in islice(stream(cursor), 60):
        batches.append(key_of(batch))
        cursors.append(asdict(cursor))
    assert cursors[-1]["epoch"] >= 1
    turn = next(i for i, c in enumerate(cursors) if c["epoch"] == 1)
    for start in (0, 1, 7, turn - 1, turn, turn + 1):  # around the end of the epoch too
        resumed = [key_of(b) for b in islice(stream(Cursor(**cursors[start])), 4)]
        assert resumed == batches[start : start + 4], start


def test_a_corpus_without_fitting_examples_is_named(pair_shards: list[Shard], tags: Tags) -> None:
    for stream in (
        Stream(PairRows(pair_shards, [1.0] * 3, tags, 5), None, TOKENS, 1),
        Stream(PairRows([], [], tags, 100), None, TOKENS, 1),
        Stream(None, TextRows(pair_shards, [0.0] * 3, 0, 32), TOKENS, 1),
        Stream(None, TextRows([], [], 0, 32), TOKENS, 1),
    ):
        with pytest.raises(CorpusError, match="no example that fits data.max_tokens"):
            next(stream(Cursor()))


# -- noise on sources


def test_noise_hides_a_share_of_source_tokens_alone(
    pair_shards: list[Shard], tags: Tags, rng: np.random.Generator
) -> None:
    rows = PairRows(pair_shards, [1.0] * 3, tags, 100, noise=0.2)
    hidden = tokens = 0
    for group in rows.batches(rows.choose(rng), TOKENS):
        clean, noisy = rows.collate(group), rows.collate(group, rng=rng)
        assert torch.equal(noisy.extra["original"], clean.ids) and not clean.extra
        assert torch.equal(noisy.targets, clean.targets)
        inside = torch.arange(clean.ids.shape[1]) < clean.prefix[:, None] - 1
        inside[:, :2] = False  # the tags
        changed = noisy.ids != clean.ids
        assert not (changed & ~inside).any() and (noisy.ids[changed] == tags.mask).all()
        hidden, tokens = hidden + int(changed.sum()), tokens + int(inside.sum())
    assert hidden / tokens == pytest.approx(0.2, abs=0.01)


def test_noise_depends_on_a_batch_s_place_alone(pair_shards: list[Shard], tags: Tags) -> None:
    noisy, clean = (
        Stream(PairRows(pair_shards, [1.0] * 3, tags, 100, noise=noise), None, TOKENS, 1)
        for noise in (0.3, 0.0)
    )
    first = [key_of(b) for b in islice(noisy(Cursor()), 4)]
    assert [key_of(b) for b in islice(noisy(Cursor(index=2)), 2)] == first[2:]
    plain = list(islice(clean(Cursor()), 4))
    assert [key_of(b) for b in plain] != first and not any(b.extra for b in plain)
    originals = [b.extra["original"] for b in islice(noisy(Cursor()), 4)]
    assert all(torch.equal(a, b.ids) for a, b in zip(originals, plain, strict=True))
