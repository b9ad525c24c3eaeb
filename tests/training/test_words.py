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
from training.words import Keeper, PairTeaching, TextTeaching, Words, windows

K = 5


@pytest.fixture
def teacher(model: GPT) -> Teacher:
    model.requires_grad_(False)
    return Teacher(Path("t"), model.device, model.config, "causal", "abc", {}, model)


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(tmp_path / "words", K, 64, nullcontext(), torch.float32)


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


def some_records(seed: int, count: int) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    records = np.zeros(count, words.record(K))
    records["ids"] = rng.integers(0, 2**16, (count, K))
    records["logs"] = -rng.random((count, K))
    return records


def fill(folder: Path, items: Sequence[int], file: Words | None = None) -> Words:
    file = file or Words(folder / "some.bin", 40, K)
    file.add(items, [some_records(i, i % 3 + 1) for i in items])
    return file


def test_a_file_grows_and_is_there_after_a_kill(tmp_path: Path) -> None:
    file = fill(tmp_path, [3, 11, 4])
    fill(tmp_path, [7], file)
    with (tmp_path / "some.bin").open("ab") as half:
        half.write(b"records whose entry was not written")
    with (tmp_path / "some.journal").open("ab") as half:
        half.write(b"half an entry")
    again = fill(tmp_path, [0, 39])
    for other in (again, Words(tmp_path / "some.bin", 40, K)):
        for item in (3, 11, 4, 7, 0, 39):
            np.testing.assert_array_equal(other[item], some_records(item, item % 3 + 1))
        assert 5 not in other and sum(item in other for item in range(40)) == 6


def test_entries_without_their_records_are_made_anew(tmp_path: Path) -> None:
    fill(tmp_path, [3, 11, 5])
    data = (tmp_path / "some.bin").read_bytes()
    (tmp_path / "some.bin").write_bytes(data[:-1])  # a part of item 5's last record
    file = Words(tmp_path / "some.bin", 40, K)
    assert 3 in file and 11 in file and 5 not in file
    fill(tmp_path, [5], file)
    assert (tmp_path / "some.bin").read_bytes() == data


def test_only_what_is_read_is_computed_and_only_once(
    tmp_path: Path, teacher: Teacher, keeper: Keeper, tags: Tags, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    forward = GPT.forward

    def counted(self: GPT, ids: torch.Tensor, *rest: Any, **more: Any) -> Any:
        read.append(len(ids))
        return forward(self, ids, *rest, **more)

    monkeypatch.setattr(GPT, "forward", counted)
    shard = some_shard(tmp_path, ("en", "de"), 60, 6)

    def batches(start: int) -> list[torch.Tensor]:
        pairs = PairRows([shard], [1.0], tags, 18)
        pairs.teaching = PairTeaching(pairs, {"*": teacher, "en-de": teacher}, keeper)
        groups = pairs.batches(pairs.choose(np.random.default_rng(0)), 100)
        return [pairs.collate(group).extra["word_logs"] for group in groups[start : start + 3]]

    first = batches(0)
    taught = sum(int((logs[:, :, 0] > -torch.inf).any(1).sum()) for logs in first)
    assert 0 < sum(read) == taught
    read.clear()
    for one, other in zip(first, batches(0), strict=True):  # a resumed run
        assert torch.equal(one, other)
    assert not read
    batches(2)
    assert read


def test_a_disk_that_takes_no_more_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SaveError, match="some.bin: could not be written"):
        Words(tmp_path / "file" / "some.bin", 4, K)
    full = Words(tmp_path / "some.bin", 40, K)
    refused = pytest.raises(SaveError, match="some.bin: could not be written")
    with Path("/dev/full").open("r+b", buffering=0) as full.file, refused:
        fill(tmp_path, [3], full)
    assert 3 not in full


def test_damage_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path, [3, 11])
    data = bytearray((tmp_path / "some.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "some.bin").write_bytes(data)
    file = Words(tmp_path / "some.bin", 40, K)
    np.testing.assert_array_equal(file[11], some_records(11, 3))
    with pytest.raises(CorpusError, match=r"some.bin: the records of row 3 .* made anew"):
        file[3]


def test_another_teacher_or_way_is_another_file(
    tmp_path: Path, teacher: Teacher, keeper: Keeper, tags: Tags
) -> None:
    shard = some_shard(tmp_path, ("en", "de"), 20, 6)
    for digest in ("abc", "abc", "def"):
        teacher.digest = digest
        for way in ("de-en", "en-de"):
            PairTeaching(PairRows([shard], [1.0], tags, 18), {way: teacher}, keeper)
    assert len(list(keeper.folder.glob("s.??-??.*.bin"))) == 4
