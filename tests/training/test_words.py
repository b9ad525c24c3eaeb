"""A teacher's words on disk are those of a direct forward, resumable, checked and put in place."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training import words
from training.batches import PairRows, Tags, TextRows
from training.corpus import Source
from training.errors import CorpusError, SaveError
from training.model import GPT
from training.shards import Shard, write_shard
from training.teachers import Teacher
from training.words import Keeper, PairTeaching, Row, TextTeaching, Words, windows, write_words

K = 5


@pytest.fixture
def teacher(model: GPT) -> Teacher:
    model.requires_grad_(False)
    return Teacher(Path("t"), model.device, model.config, "causal", "abc", {}, model)


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(tmp_path / "words", K, 64, nullcontext(), torch.float32, progress=False)


def some_shard(folder: Path, languages: tuple[str, ...], sequences: int, longest: int) -> Shard:
    rng = np.random.default_rng(5)
    ids = [rng.integers(10, 97, rng.integers(1, longest + 1)).tolist() for _ in range(sequences)]
    return write_shard(folder / "shard.train.bin", Source("s", languages, ()), ids, "sha")


def direct(model: GPT, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best (positions, k) ids and log-probabilities after every token."""
    with torch.inference_mode():
        hidden, _ = model(torch.tensor([ids]))
        best = model.logits(hidden[0]).log_softmax(dim=-1).topk(K)
    return best.indices, best.values


def test_words_of_pairs_are_those_of_a_direct_forward(
    tmp_path: Path, teacher: Teacher, keeper: Keeper, tags: Tags
) -> None:
    shard = some_shard(tmp_path, ("en", "de"), 60, 9)
    pairs = PairRows([shard], [1.0], tags, 18)
    pairs.teaching = PairTeaching(pairs, {"en-de": teacher}, keeper)
    examples = pairs.choose(np.random.default_rng(0))
    assert 0 < len(examples) < 60  # some do not fit
    for group in pairs.batches(examples, 200):
        batch = pairs.collate(group)
        chosen = batch.targets >= 0
        assert (batch.extra["word_logs"][~chosen] == -torch.inf).all()
        for row, example in enumerate(group):
            logs = batch.extra["word_logs"][row, chosen[row]]
            way = int(batch.extra["way"][row])
            assert way == (0 if example[2] == 0 else -1)
            if way < 0:
                assert (logs == -torch.inf).all()
                continue
            ids, prompt = pairs.row(example)
            best, values = direct(teacher.model(), ids[:-1])
            torch.testing.assert_close(logs, values[prompt - 1 :], atol=4e-3, rtol=1e-3)
            found = batch.extra["word_ids"][row, chosen[row]]
            assert float((found == best[prompt - 1 :]).float().mean()) > 0.95  # ties of fp32


def test_words_of_text_go_with_its_tokens(
    tmp_path: Path, teacher: Teacher, keeper: Keeper
) -> None:
    shard = some_shard(tmp_path, ("de",), 30, 60)  # longer than the context of 24
    text = TextRows([shard], [1.0], 0, 20)
    text.teaching = TextTeaching(text, {"en-de": teacher, "de": teacher}, keeper)
    documents, starts = text.choose(np.random.default_rng(0))
    rows = np.arange((int(starts[-1]) - 1) // 20)
    batch = text.collate(documents, starts, rows)
    assert (batch.extra["way"] == 1).all()
    assert (batch.extra["word_logs"][..., 0] > -torch.inf).all()
    place = 0
    flat = batch.extra["word_logs"].flatten(0, 1)
    for _, document in documents:
        ids = [0, *shard[document].tolist()]
        seen = direct(teacher.model(), ids[:24])[1]
        count = min(len(seen), len(flat) - place)
        torch.testing.assert_close(flat[place : place + count], seen[:count], atol=4e-3, rtol=1e-3)
        place += len(ids)
    assert place > len(flat)


def test_both_sides_of_pairs_read_as_text(
    tmp_path: Path, teacher: Teacher, keeper: Keeper
) -> None:
    shard = some_shard(tmp_path, ("en", "de"), 40, 12)
    text = TextRows([shard], [1.0], 0, 16)
    text.teaching = TextTeaching(text, {"de": teacher}, keeper)
    documents, starts = text.choose(np.random.default_rng(0))
    batch = text.collate(documents, starts, np.arange((int(starts[-1]) - 1) // 16))
    assert (batch.extra["way"] == -1).all()  # English has no teacher
    known = (batch.extra["word_logs"][..., 0] > -torch.inf).flatten()
    german = np.concatenate([[s % 2 == 1] * (len(shard[s]) + 1) for _, s in documents])
    np.testing.assert_array_equal(known, german[: len(known)])


@pytest.mark.parametrize("length", [1, 24, 25, 36, 37, 60])
def test_windows_keep_every_position_once(length: int) -> None:
    ids = list(range(length))
    rows = windows(ids, 24)
    assert [i for row in rows for i in row.ids[row.first :]] == ids
    for row in rows[1:]:
        assert row.first == 12 and len(row.ids) <= 24


# -- files


def predictor(counts: list[int], stop_after: int = 10**9) -> words.Predict:
    def predict(rows: Sequence[Row]) -> list[NDArray[Any]]:
        counts.append(len(rows))
        if len(counts) > stop_after:
            raise KeyboardInterrupt
        found = []
        for row in rows:
            records = np.zeros(len(row.ids) - row.first, words.record(K))
            records["ids"] = np.array(row.ids[row.first :])[:, None] + np.arange(K)
            records["logs"] = -np.arange(K)
            found.append(records)
        return found

    return predict


def rows_of(item: int) -> list[Row]:
    return [Row([item, item + 1, item + 2][: item % 3 + 1], 0)]


SIZES = np.array([(i % 3 + 1) * (i % 5 > 0) for i in range(95)])


def test_a_writer_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "BLOCK", 10)
    whole = write_words(tmp_path / "whole.bin", SIZES, rows_of, predictor([]), K)
    assert len(whole[5]) == 0
    assert whole[7]["ids"].tolist() == [[7, 8, 9, 10, 11], [8, 9, 10, 11, 12]]
    path = tmp_path / "stopped.bin"
    with pytest.raises(KeyboardInterrupt):
        write_words(path, SIZES, rows_of, predictor([], 3), K)
    assert not path.exists()
    with (tmp_path / "stopped.bin.partial").open("ab") as file:
        file.write(b"half a block")
    counts: list[int] = []
    again = write_words(path, SIZES, rows_of, predictor(counts), K)
    assert len(counts) == 7  # three of ten blocks were there
    assert path.read_bytes() == (tmp_path / "whole.bin").read_bytes()
    assert all(np.array_equal(again[i], whole[i]) for i in range(95))
    write_words(path, SIZES, rows_of, predictor(counts, 0), K)  # is there: nothing is predicted
    assert len(counts) == 7
    assert not list(tmp_path.glob("*.partial"))


def test_a_disk_that_takes_no_more_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SaveError, match="some.bin: could not be written"):
        write_words(tmp_path / "file" / "some.bin", SIZES, rows_of, predictor([]), K)


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "some.bin"
    for suffix, change in (
        (".bin", lambda b: b[:40] + b"!" + b[41:]),
        (".bin", lambda b: b[:-30]),
        (".bin", lambda b: b""),
        (".idx", lambda b: b[:8] + b"\1" + b[9:]),
        (".idx", lambda b: b""),
        (".json", lambda b: b"{}"),
        (".json", lambda b: b[:20]),
    ):
        for file in tmp_path.iterdir():
            file.unlink()
        write_words(path, SIZES, rows_of, predictor([]), K)
        file = path.with_suffix(suffix)
        file.write_bytes(change(file.read_bytes()))
        with pytest.raises(CorpusError, match=r"some.bin: .*written anew"):
            Words(path)


def test_another_teacher_or_size_is_another_file(
    tmp_path: Path, teacher: Teacher, keeper: Keeper, tags: Tags
) -> None:
    shard = some_shard(tmp_path, ("en", "de"), 20, 6)
    for digest in ("abc", "abc", "def"):
        teacher.digest = digest
        for size in (18, 20):
            PairTeaching(PairRows([shard], [1.0], tags, size), {"de-en": teacher}, keeper)
    assert len(list(keeper.folder.glob("s.de-en.*.bin"))) == 4
