"""A teacher's words on disk: the k most probable tokens at every position that a student learns.

A teacher and the rows of a training shard flow in; ids (uint16) and log-probabilities (fp16) of
each position flow out and are put beside the tokens of a batch. What a batch needs and no earlier
one needed is computed when it is made, and kept: a run pays for what it reads, once. A file is
named by a digest of all it depends on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.batches import PairRows, TextRows, way_of
from training.errors import CorpusError, SaveError
from training.model import GPT, MaskMode
from training.shards import Shard
from training.teachers import Teacher

POSITIONS = 1024  # whose logits exist at one time
ENTRY = np.dtype([("item", "<i8"), ("start", "<i8"), ("count", "<i8"), ("crc", "<i8")])


@dataclass(frozen=True)
class Row:
    """Tokens that a teacher reads; what it predicts after `ids[first]` and all later is kept."""

    ids: list[int]
    first: int
    prefix: int = 0


class Words:
    """A file of words that grows; `words[i]` are item i's records, fields "ids" and "logs".

    A journal beside it has an entry an item: which, its first record, how many, their checksum. It
    is written after the records; what a killed writer left unfinished is cut off on opening.
    Raises SaveError when the disk takes no more, CorpusError for records that are damaged.
    """

    def __init__(self, path: Path, items: int, k: int) -> None:
        self.path, self.record = path, record(k)
        self.entries = np.zeros(items, ENTRY)  # count 0: not there yet
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("r+b" if path.exists() else "w+b", buffering=0)
            journal = path.with_suffix(".journal")
            self.journal = journal.open("r+b" if journal.exists() else "w+b", buffering=0)
            data = self.journal.read()
            found: NDArray[Any] = np.frombuffer(data, ENTRY, len(data) // ENTRY.itemsize)
            there = os.fstat(self.file.fileno()).st_size // self.record.itemsize
            good = (found["count"] > 0) & (found["start"] >= 0)
            good &= found["start"] + found["count"] <= there
            good &= (found["item"] >= 0) & (found["item"] < items)
            found = found[: len(good) if good.all() else int(good.argmin())]
            self.entries[found["item"]] = found
            self.kept = len(found)
            self.size = int((found["start"] + found["count"]).max(initial=0))
            os.truncate(self.journal.fileno(), self.kept * ENTRY.itemsize)
            os.truncate(self.file.fileno(), self.size * self.record.itemsize)

    def __contains__(self, item: int) -> bool:
        return bool(self.entries[item]["count"])

    def __getitem__(self, item: int) -> NDArray[Any]:
        _, start, count, crc = self.entries[item].tolist()
        size = self.record.itemsize
        data = os.pread(self.file.fileno(), count * size, start * size)
        if not count or len(data) != count * size or crc32(data) != crc:
            raise CorpusError(
                f"teacher words {self.path}: the records of row {item} are not those that were "
                "written; remove the file to have it made anew"
            )
        return np.frombuffer(data, self.record)

    def add(self, items: Sequence[int], records: Sequence[NDArray[Any]]) -> None:
        """Append the records of items that are not there, then their entries in one write."""
        counts = np.array([len(part) for part in records], np.int64)
        entries = np.zeros(len(items), ENTRY)
        entries["item"], entries["count"] = items, counts
        entries["start"] = self.size + np.cumsum(counts) - counts
        parts = [part.tobytes() for part in records]
        entries["crc"] = [crc32(part) for part in parts]
        with saving(self.path):
            _write(self.file.fileno(), b"".join(parts), self.size * self.record.itemsize)
            _write(self.journal.fileno(), entries.tobytes(), self.kept * ENTRY.itemsize)
        self.entries[entries["item"]] = entries
        self.size, self.kept = self.size + int(counts.sum()), self.kept + len(items)


def _write(file: int, data: bytes, place: int) -> None:
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written


def record(k: int) -> np.dtype[Any]:
    return np.dtype([("ids", "<u2", (k,)), ("logs", "<f2", (k,))])


def digest(*values: Any) -> str:
    """A short name for JSON values and arrays."""
    mark = blake2b(digest_size=12)
    for value in values:
        array = isinstance(value, np.ndarray)
        mark.update(value.data if array else json.dumps(value).encode() + b"\0")
    return mark.hexdigest()


Predict = Callable[[Sequence[Row]], list[NDArray[Any]]]


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Raises SaveError when the disk takes no more; blocks that were written stay."""
    try:
        yield
    except OSError as error:
        raise SaveError(f"{path}: could not be written: {error}") from None


def top_words(
    model: GPT, k: int, mask: MaskMode, tokens: int, autocast: AbstractContextManager[Any]
) -> Predict:
    """A predictor: the model's k most probable tokens after each kept token of each row."""

    @torch.inference_mode()
    def predict(rows: Sequence[Row]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = [np.zeros(0, record(k))] * len(rows)
        for group in _groups([len(row.ids) for row in rows], tokens):
            with autocast:
                hidden = _hidden(model, [rows[i] for i in group], mask)
                kept = [hidden[j, rows[i].first : len(rows[i].ids)] for j, i in enumerate(group)]
                best = [
                    model.logits(part).float().log_softmax(dim=-1).topk(k)
                    for part in torch.split(torch.cat(kept), POSITIONS)  # type: ignore[no-untyped-call]
                ]
            records = np.zeros(sum(map(len, kept)), record(k))
            records["ids"] = torch.cat([b.indices for b in best]).cpu().numpy()
            records["logs"] = torch.cat([b.values for b in best]).cpu().numpy()
            start = 0
            for i, part in zip(group, kept, strict=True):
                found[i] = records[start : start + len(part)]
                start += len(part)
        return found

    return predict


def _hidden(model: GPT, rows: Sequence[Row], mask: MaskMode) -> Tensor:
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
    lengths = torch.tensor([len(row.ids) for row in rows], device=model.device)
    prefix = torch.tensor([row.prefix for row in rows], device=model.device)
    hidden, _ = model(ids.to(model.device), mask=mask, lengths=lengths, prefix=prefix)
    return hidden  # type: ignore[no-any-return]


def _groups(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Rows of about the same length, as many as give at most `tokens` with their padding."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and (len(group) + 1) * lengths[i] > tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def windows(ids: list[int], context: int) -> list[Row]:
    """A document in rows of at most `context` tokens, each kept position with half of it behind."""
    rows = [Row(ids[:context], 0)]
    half, done = context // 2, context
    while done < len(ids):
        rows.append(Row(ids[done - half : done - half + context], half))
        done += context - half
    return rows


@dataclass(frozen=True, eq=False)
class Kept:
    """A teacher's words for a shard one way; `rows_of(i)` are what it reads of item i."""

    words: Words
    teacher: Teacher
    rows_of: Callable[[int], list[Row]]


@dataclass(frozen=True)
class Keeper:
    """Where words are kept and how they are made: k a position, `tokens` a forward pass.

    `rank` tells apart the files of processes that share the folder.
    """

    folder: Path
    k: int
    tokens: int
    autocast: AbstractContextManager[Any]
    dtype: torch.dtype
    rank: str = ""

    def open(
        self, teacher: Teacher, shard: Shard, way: str, about: Sequence[Any], items: int,
        rows_of: Callable[[int], list[Row]],
    ) -> Kept:  # fmt: skip
        """A teacher's words for a shard, one file a way; `about` is what else they depend on."""
        mark = digest(teacher.digest, teacher.mask, way, self.k, str(self.dtype), *about,
                      shard.tokens, shard.offsets)  # fmt: skip
        name = f"{shard.header.name.replace('/', '_')}.{way}.{mark}{self.rank}.bin"
        return Kept(Words(self.folder / name, items, self.k), teacher, rows_of)

    def fetch(self, wanted: Sequence[tuple[Kept, int]]) -> list[NDArray[Any]]:
        """The words of each item; what is not on disk yet is computed, a teacher at a time."""
        missing = dict.fromkeys((kept, item) for kept, item in wanted if item not in kept.words)
        for teacher in {id(kept.teacher): kept.teacher for kept, _ in missing}.values():
            mine = [(kept, item) for kept, item in missing if kept.teacher is teacher]
            rows = [kept.rows_of(item) for kept, item in mine]
            predict = top_words(teacher.model(), self.k, teacher.mask, self.tokens, self.autocast)
            parts = iter(predict([row for group in rows for row in group]))
            made = [np.concatenate([next(parts) for _ in group]) for group in rows]
            for kept in dict.fromkeys(kept for kept, _ in mine):
                places = [i for i, (other, _) in enumerate(mine) if other is kept]
                kept.words.add([mine[i][1] for i in places], [made[i] for i in places])
        return [kept.words[item] for kept, item in wanted]


class PairTeaching:
    """What a batch of pairs carries for its teachers: each row's way and, if kept, their words."""

    def __init__(
        self, pairs: PairRows, teachers: dict[str, Teacher], keeper: Keeper | None
    ) -> None:
        self.pairs, self.ways, self.keeper = pairs, list(teachers), keeper
        self.kept: dict[tuple[int, int], Kept] = {}
        for i, shard in enumerate(pairs.shards if keeper else ()):
            for direction in pairs.directions_of(shard):
                way = way_of(shard, direction)
                if way in teachers and not shard.header.task:
                    self.kept[i, direction] = self._open(i, direction, way, teachers[way])

    def _open(self, index: int, direction: int, way: str, teacher: Teacher) -> Kept:
        pairs, shard = self.pairs, self.pairs.shards[index]

        def rows_of(pair: int) -> list[Row]:
            ids, prompt = pairs.row(np.array([index, pair, direction]))
            return [Row(ids[:-1], prompt - 1, prompt)]

        assert self.keeper is not None
        return self.keeper.open(teacher, shard, way, [asdict(pairs.tags)], len(shard) // 2,
                                rows_of)  # fmt: skip

    def __call__(
        self, examples: NDArray[np.int64], chosen: NDArray[np.bool_]
    ) -> dict[str, Tensor]:
        """`examples` (rows, 3) as PairRows chooses them, `chosen` (rows, time) are the targets."""
        if self.pairs.shards[examples[0, 0]].header.task:
            return {}
        ways = [way_of(self.pairs.shards[i], direction) for i, _, direction in examples]
        places = [self.ways.index(way) if way in self.ways else -1 for way in ways]
        extra = {"way": torch.tensor(places)}
        if self.keeper is None:
            return extra
        ids, logs = _unknown(chosen.shape, self.keeper.k)
        taught = [row for row, (i, _, way) in enumerate(examples) if (i, way) in self.kept]
        wanted = [(self.kept[i, way], int(pair)) for i, pair, way in examples[taught]]
        for row, words in zip(taught, self.keeper.fetch(wanted), strict=True):
            ids[row, chosen[row]] = words["ids"]
            logs[row, chosen[row]] = words["logs"]
        return extra | {"word_ids": torch.from_numpy(ids), "word_logs": torch.from_numpy(logs)}


class TextTeaching:
    """The same for rows of text. Their words are kept by document, so that a teacher has read each
    from its start, or half a context of it."""

    def __init__(
        self, text: TextRows, teachers: dict[str, Teacher], keeper: Keeper | None
    ) -> None:
        self.text, self.keeper = text, keeper
        self.shards = [shard for shard in text.shards if isinstance(shard, Shard)]
        self.kept: dict[tuple[int, int], Kept] = {}
        codes = {code for shard in self.shards for code in shard.header.languages}
        mine = {code: teacher for code, teacher in teachers.items() if code in codes}
        # a row may hold several languages: its states have a teacher if all have the same
        same = mine.keys() == codes and len({t.folder for t in mine.values()}) == 1
        self.way = list(teachers).index(next(iter(mine))) if same else -1
        for i, shard in enumerate(self.shards if keeper else ()):
            for side, code in enumerate(shard.header.languages):
                if code in mine:
                    self.kept[i, side] = self._open(shard, side, code, mine[code])

    def _open(self, shard: Shard, side: int, code: str, teacher: Teacher) -> Kept:
        sides, end = len(shard.header.languages), self.text.end

        def rows_of(document: int) -> list[Row]:
            ids = [end, *shard[sides * document + side].tolist()]
            return windows(ids, teacher.config.context)

        assert self.keeper is not None
        return self.keeper.open(teacher, shard, code, [end], len(shard) // sides, rows_of)

    def __call__(
        self, documents: NDArray[np.int64], starts: NDArray[np.int64], begins: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """`documents` and `starts` as TextRows chooses them; rows begin at `begins`."""
        extra = {"way": torch.full((len(begins),), self.way)}
        if self.keeper is None:
            return extra
        width = self.text.width
        ids, logs = _unknown((len(begins), width), self.keeper.k)
        places: list[tuple[int, slice, slice]] = []  # a row, its part, the document's part
        wanted: list[tuple[Kept, int]] = []
        for row, begin in enumerate(begins):
            index = int(np.searchsorted(starts, begin, side="right")) - 1
            while starts[index] < begin + width:
                kept, document = self._of(*documents[index])
                first, last = max(begin, starts[index]), min(begin + width, starts[index + 1])
                if kept is not None:
                    wanted.append((kept, document))
                    places.append((row, slice(first - begin, last - begin),
                                   slice(first - starts[index], last - starts[index])))  # fmt: skip
                index += 1
        for (row, part, of), words in zip(places, self.keeper.fetch(wanted), strict=True):
            ids[row, part] = words["ids"][of]
            logs[row, part] = words["logs"][of]
        return extra | {"word_ids": torch.from_numpy(ids), "word_logs": torch.from_numpy(logs)}

    def _of(self, shard: int, sequence: int) -> tuple[Kept | None, int]:
        sides = max(1, len(self.shards[shard].header.languages))
        return self.kept.get((int(shard), int(sequence) % sides)), int(sequence) // sides


def _unknown(shape: tuple[int, ...], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.zeros((*shape, k), np.int64), np.full((*shape, k), -np.inf, np.float32)
