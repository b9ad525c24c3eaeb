"""Mixtures: rows in their shares, corrupted as their form says, the same whoever asks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.batches import IGNORED, Batch, Cursor, Stream, TextRows
from training.config import ObjectivesConfig
from training.corpus import Source
from training.corruption import Vocabulary
from training.mixture import Documents, Mixture
from training.shards import Side, write_shard

WIDTH, SIZE = 32, 400
IDS = np.arange(SIZE)
VOCABULARY = Vocabulary(0, 1, 2, IDS >= 64, (IDS >= 64) & (IDS % 7 == 0))


@pytest.fixture
def text(tmp_path: Path) -> TextRows:
    """German ids are below 200, English ones above; the pairs hold both; no two documents alike."""
    rng = np.random.default_rng(1)

    def document(low: int) -> list[int]:
        return rng.integers(low, low + 136, int(rng.integers(12, 60))).tolist()

    german = [document(64) for _ in range(40)]
    english = [document(200) for _ in range(40)]
    pairs = [document(64 if i % 2 == 0 else 200) for i in range(40)]
    shards = [
        write_shard(tmp_path / f"{name}.bin", Source(name, languages, ()), rows, "")
        for name, languages, rows in (("d", ("de",), german), ("e", ("en",), english),
                                      ("p", ("de", "en"), pairs), ("short", ("en",), [[70]] * 9))
    ]  # fmt: skip
    return TextRows(shards, [1.0] * 4, 0, WIDTH)


@pytest.fixture
def documents(text: TextRows) -> Documents:
    return Documents(text, *text.choose(np.random.default_rng(3)))


def mixture(**weights: Any) -> Mixture:
    return Mixture(ObjectivesConfig(**weights), VOCABULARY)


def made(documents: Documents, form: Any, **weights: Any) -> Batch:
    rows = np.arange(documents.rows)
    return mixture(**weights).make(form, documents, rows, np.random.default_rng(7), "en")


def test_rows_are_shared_out(text: TextRows, documents: Documents) -> None:
    maker = mixture(masking=1.0, infilling=0.5, replaced=2.0, auxiliary_share=0.3)
    counts: Counter[str] = Counter()
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.permutation(documents.rows)[:40]
        batch = maker.batch(text, documents.chosen, documents.starts, rows, rng)
        own = Counter({part.form: len(part.ids) for part in batch.parts})
        assert own.total() == 40 and batch.form == "text"
        assert all(3 <= own[form] <= 6 for form in ("masked", "infilling", "replaced"))  # 4 each
        counts += own
    assert counts["text"] / counts.total() == pytest.approx(0.7, abs=0.02)
    for form in ("masked", "infilling", "replaced"):
        assert counts[form] / counts.total() == pytest.approx(0.1, abs=0.01)


def test_without_plain_text_all_rows_are_corrupted(text: TextRows, documents: Documents) -> None:
    maker = mixture(causal=0.0, masking=1.0, replaced=1.0)
    rows, rng = np.arange(40), np.random.default_rng(0)
    batch = maker.batch(text, documents.chosen, documents.starts, rows, rng)
    own = Counter({part.form: len(part.ids) for part in batch.parts})
    assert set(own) == {"masked", "replaced"} and own.total() == 40
    assert abs(own["masked"] - 20) <= 1
    assert batch.read == batch.padded == 40 * WIDTH


@pytest.mark.parametrize("spans", ["random", "span"])
def test_masked_rows(documents: Documents, spans: str) -> None:
    batch = made(documents, "masked", masking=1.0, mask_rate=0.2, mask_form=spans)
    clean = made(documents, "text").ids
    hidden = batch.ids == 1
    assert torch.equal(hidden, batch.targets != IGNORED)
    assert torch.equal(torch.where(hidden, batch.targets, batch.ids), clean)  # restored
    ordinary = (clean >= 64).sum(dim=1)
    assert hidden.sum(dim=1).tolist() == [round(0.2 * n) for n in ordinary.tolist()]
    assert (batch.targets[hidden] >= 64).all() and not batch.extra
    assert batch.lengths.tolist() == [WIDTH] * len(clean) and batch.tag == "en"


def test_replaced_rows(documents: Documents) -> None:
    batch = made(documents, "replaced", replaced=1.0, mask_rate=0.5)
    clean = made(documents, "text").ids
    ordinary = clean >= 64
    assert torch.equal(batch.targets, torch.where(ordinary, clean, IGNORED))
    assert torch.equal(batch.ids[~ordinary], clean[~ordinary]) and (batch.ids[ordinary] >= 64).all()
    fake = batch.ids != clean
    drawn = sum(round(0.5 * n) for n in ordinary.sum(dim=1).tolist())
    same = drawn - int(fake.sum())  # drew the original, which is then an original
    assert 0 < same < 5 * drawn / 336
    hidden = made(documents, "replaced", replaced=1.0, mask_rate=0.5, replacements="generator")
    assert torch.equal(hidden.targets, batch.targets)
    assert int((hidden.ids == 1).sum()) == drawn
    seen = hidden.ids != 1
    assert torch.equal(hidden.ids[seen], clean[seen])


def test_infilling_rows(documents: Documents) -> None:
    batch = made(documents, "infilling", infilling=1.0)
    clean = made(documents, "text").ids
    assert batch.ids.shape == (len(clean), WIDTH)
    for ids, targets, row in zip(batch.ids, batch.targets, clean, strict=True):
        whole = [*ids.tolist(), int(targets[-1])]
        hole = whole.index(1, 1)
        cut = whole.index(2)
        text = whole[1:cut] + whole[hole + 1 : -1] + whole[cut + 1 : hole]
        assert text == row[: WIDTH - 3].tolist()
        marked = [i for i, target in enumerate(targets.tolist()) if target == IGNORED]
        assert marked == [cut - 1, hole - 1]
        kept = targets != IGNORED
        assert torch.equal(targets[kept][:-1], ids[1:][kept[:-1]]) and targets[-1] == 0


def segments_of(batch: Batch) -> list[tuple[list[int], list[int], bool]]:
    found = []
    for ids, n, follows in zip(batch.ids, batch.lengths, batch.extra["follows"], strict=True):
        row = ids[:n].tolist()
        assert row[0] == 0 and not ids[n:].any()
        at = row.index(2)
        found.append((row[1:at], row[at + 1 :], bool(follows)))
    return found


def inside(part: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


@pytest.mark.parametrize("negatives", ["random", "swapped"])
def test_next_sentences(documents: Documents, negatives: str) -> None:
    weights = {"masking": 1.0, "next_sentence": 0.1, "negatives": negatives}
    maker = mixture(**weights)
    every = [documents[i].tolist() for i in range(len(documents.chosen))]
    truths = []
    for seed in range(6):
        rows = np.arange(documents.rows)
        batch = maker.make("masked", documents, rows, np.random.default_rng(seed))
        clean = replace(batch, ids=torch.where(batch.ids == 1, batch.targets, batch.ids))
        for first, second, follows in segments_of(clean):
            truths.append(follows)
            # a short segment may also stand in a document that it was not taken from
            onwards = [d for d in every if inside(first + second, d)]
            backwards = [d for d in every if inside(second + first, d)]
            if follows:
                assert onwards
            elif negatives == "swapped":
                assert backwards and not onwards
            else:
                assert not onwards
                assert (first[0] < 200) == (second[0] < 200)  # or the language would tell
    assert 0.42 < np.mean(truths) < 0.58


def test_segments_are_corrupted_too(documents: Documents) -> None:
    batch = made(documents, "replaced", replaced=1.0, next_sentence=1.0, mask_rate=0.3)
    special = (batch.ids < 64) & (torch.arange(batch.ids.shape[1]) < batch.lengths[:, None])
    assert special.sum(dim=1).tolist() == [2] * len(batch.ids)
    assert (batch.targets[batch.ids < 64] == IGNORED).all()
    fakes = (batch.ids != batch.targets) & (batch.targets != IGNORED)
    assert 0.25 < fakes.sum() / (batch.targets != IGNORED).sum() < 0.32


def test_documents_that_cannot_be_cut_are_rows_as_they_come(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "w.bin", Source("w", ("en",), ()), [[64 + i] for i in range(90)],
                        "")  # fmt: skip
    text = TextRows([shard], [1.0], 0, WIDTH)
    documents = Documents(text, *text.choose(np.random.default_rng(3)))
    batch = made(documents, "masked", masking=1.0, next_sentence=1.0)
    assert batch.ids.shape[1] == WIDTH and batch.extra["follows"].all()


def test_a_side_of_pairs_has_its_language(text: TextRows) -> None:
    sides = TextRows([Side(text.shards[2], 0), Side(text.shards[2], 1)], [1.0, 1.0], 0, WIDTH)  # type: ignore[arg-type]
    documents = Documents(sides, *sides.choose(np.random.default_rng(3)))
    for rows in (documents, Documents(text, *text.choose(np.random.default_rng(4)))):
        for i in range(len(rows.chosen)):
            if len(rows[i]) > 1:
                assert rows.language(i) == ("de" if rows[i][0] < 200 else "en")


def test_a_batch_depends_on_its_place_alone(text: TextRows) -> None:
    maker = mixture(masking=1.0, replaced=1.0, next_sentence=1.0)

    def batches(start: int, count: int) -> list[list[list[int]]]:
        stream = Stream(None, text, 512, 1, 0.0, maker)
        return [[part.ids.flatten().tolist() for part in batch.parts] for batch in
                islice(stream(Cursor(index=start)), count) if batch]  # fmt: skip

    whole = batches(0, 6)
    assert batches(3, 3) == whole[3:] and whole[0] != whole[1]
    stream = Stream(None, text, 512, 1, 0.0, maker)
    ranks = [list(islice(stream(Cursor(), rank, 2), 6)) for rank in (0, 1)]
    for i, parts in enumerate(whole):
        batch = ranks[i % 2][i]
        assert batch is not None and ranks[1 - i % 2][i] is None
        assert [part.ids.flatten().tolist() for part in batch.parts] == parts
