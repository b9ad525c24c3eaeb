"""A teacher's words on disk: the k most probable tokens at every position that a student learns.

A teacher and the rows of a training shard flow in; ids (uint16) and log-probabilities (fp16) of
each position flow out, written once and then memory-mapped, and are put beside the tokens of a
batch. A file is named by a digest of all it depends on. Writing goes block by block and goes on
where it was stopped; the header, with a checksum, comes last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from training.batches import PairRows, TextRows, way_of
from training.errors import CorpusError, SaveError
from training.model import GPT, MaskMode
from training.shards import Shard
from training.teachers import Teacher

BLOCK = 1024  # items between two writes
POSITIONS = 1024  # whose logits exist at one time


@dataclass(frozen=True)
class Row:
    """Tokens that a teacher reads; what it predicts after `ids[first]` and all later is kept."""

    ids: list[int]
    first: int
    prefix: int = 0


class Words:
    """A memory-mapped file of words; `words[i]` are item i's records, fields "ids" and "logs"."""

    def __init__(self, path: Path) -> None:
        try:
            header = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            self.offsets: NDArray[np.int64] = np.fromfile(path.with_suffix(".idx"), np.int64)
            self.top_k = int(header["top_k"])
            self.records = (
                np.memmap(path, record(self.top_k), mode="r") if header["records"]
                else np.zeros(0, record(self.top_k))
            )  # fmt: skip
            whole = len(self.records) == header["records"] == self.offsets[-1]
            if not whole or checksum(path) != header["checksum"]:
                raise ValueError("its data are not those that were written")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise CorpusError(
                f"teacher words {path}: {error}; remove the file to have it written anew"
            ) from None

    def __getitem__(self, item: int) -> NDArray[Any]:
        return self.records[self.offsets[item] : self.offsets[item + 1]]


def record(k: int) -> np.dtype[Any]:
    return np.dtype([("ids", "<u2", (k,)), ("logs", "<f2", (k,))])


def checksum(path: Path) -> str:
    """Of the records and the offsets."""
    parts = []
    for file in (path, path.with_suffix(".idx")):
        with file.open("rb") as handle:
            parts.append(file_digest(handle, "blake2b").hexdigest()[:32])
    return ".".join(parts)


def digest(*values: Any) -> str:
    """A short name for JSON values and arrays."""
    mark = blake2b(digest_size=12)
    for value in values:
        array = isinstance(value, np.ndarray)
        mark.update(value.data if array else json.dumps(value).encode() + b"\0")
    return mark.hexdigest()


Predict = Callable[[Sequence[Row]], list[NDArray[Any]]]


def write_words(
    path: Path, sizes: NDArray[np.int64], rows_of: Callable[[int], list[Row]], predict: Predict,
    k: int, title: str = "", progress: bool = False,
) -> Words:  # fmt: skip
    """The words of items 0..n-1, item i having `sizes[i]` records; made unless they are there.

    `rows_of(i)` are an item's rows; an item of size 0 is not asked for.
    """
    if path.with_suffix(".json").exists():
        return Words(path)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
    partial = path.with_name(path.name + ".partial")
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        done = _whole_blocks(partial, offsets, record(k).itemsize)
        with partial.open("ab") as file, tqdm(
            total=len(sizes), initial=done, desc=title, unit="row", disable=not progress
        ) as bar:
            for start in range(done, len(sizes), BLOCK):
                items = range(start, min(start + BLOCK, len(sizes)))
                rows = [row for i in items if sizes[i] for row in rows_of(i)]
                records = np.concatenate([np.zeros(0, record(k)), *predict(rows)])
                if len(records) != offsets[items.stop] - offsets[start]:
                    raise ValueError(f"{len(records)} records for rows {start} to {items.stop}")
                file.write(records.tobytes())
                file.flush()
                bar.update(len(items))
            os.fsync(file.fileno())
        partial.replace(path)
        offsets.tofile(path.with_suffix(".idx"))
        header = {"title": title, "top_k": k, "records": int(offsets[-1]),
                  "checksum": checksum(path)}  # fmt: skip
        whole = path.with_suffix(".json.partial")
        whole.write_text(json.dumps(header) + "\n", encoding="utf-8")
        whole.replace(path.with_suffix(".json"))
    return Words(path)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Raises SaveError when the disk takes no more; blocks that were written stay."""
    try:
        yield
    except OSError as error:
        raise SaveError(f"{path}: could not be written: {error}") from None


def _whole_blocks(partial: Path, offsets: NDArray[np.int64], size: int) -> int:
    """How many items a stopped writer left in whole blocks; what is beyond them is cut off."""
    if not partial.exists():
        return 0
    written = partial.stat().st_size // size
    items = int(np.searchsorted(offsets, written, side="right")) - 1
    items = items if items == len(offsets) - 1 else items // BLOCK * BLOCK
    os.truncate(partial, int(offsets[items]) * size)
    return items


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


@dataclass(frozen=True)
class Keeper:
    """Where words are kept and how they are made: k a position, `tokens` a forward pass."""

    folder: Path
    k: int
    tokens: int
    autocast: AbstractContextManager[Any]
    dtype: torch.dtype
    progress: bool = True

    def write(
        self, teacher: Teacher, shard: Shard, way: str, about: Sequence[Any],
        sizes: NDArray[np.int64], rows_of: Callable[[int], list[Row]],
    ) -> Words:  # fmt: skip
        """A teacher's words for a shard, one file a way; `about` is what else they depend on."""
        mark = digest(teacher.digest, teacher.mask, way, self.k, str(self.dtype), *about,
                      shard.tokens, shard.offsets)  # fmt: skip
        name = f"{shard.header.name.replace('/', '_')}.{way}.{mark}.bin"

        def predict(rows: Sequence[Row]) -> list[NDArray[Any]]:
            model = teacher.model()
            return top_words(model, self.k, teacher.mask, self.tokens, self.autocast)(rows)

        title = f"words of {teacher.folder.name} for {shard.header.name}, {way}"
        return write_words(
            self.folder / name, sizes, rows_of, predict, self.k, title, self.progress
        )


class PairTeaching:
    """What a batch of pairs carries for its teachers: each row's way and, if kept, their words."""

    def __init__(
        self, pairs: PairRows, teachers: dict[str, Teacher], keeper: Keeper | None
    ) -> None:
        self.pairs, self.ways, self.keeper = pairs, list(teachers), keeper
        self.words: dict[tuple[int, int], Words] = {}
        for i, shard in enumerate(pairs.shards if keeper else ()):
            for direction in pairs.directions_of(shard):
                way = way_of(shard, direction)
                if way in teachers and not shard.header.task:
                    self.words[i, direction] = self._write(i, direction, way, teachers[way])

    def _write(self, index: int, direction: int, way: str, teacher: Teacher) -> Words:
        pairs, shard = self.pairs, self.pairs.shards[index]
        fits = pairs.sizes[index] <= pairs.max_tokens
        sizes = (shard.lengths[1 - direction :: 2] + 1) * fits

        def rows_of(pair: int) -> list[Row]:
            ids, prompt = pairs.row(np.array([index, pair, direction]))
            return [Row(ids[:-1], prompt - 1, prompt)]

        tags = asdict(pairs.tags)
        assert self.keeper is not None
        return self.keeper.write(teacher, shard, way, [tags, pairs.max_tokens], sizes, rows_of)

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
        for row, (i, pair, direction) in enumerate(examples):
            words = self.words.get((int(i), int(direction)))
            if words is not None:
                ids[row, chosen[row]] = words[int(pair)]["ids"]
                logs[row, chosen[row]] = words[int(pair)]["logs"]
        return extra | {"word_ids": torch.from_numpy(ids), "word_logs": torch.from_numpy(logs)}


class TextTeaching:
    """The same for rows of text. Their words are kept by document, so that a teacher has read each
    from its start, or half a context of it."""

    def __init__(
        self, text: TextRows, teachers: dict[str, Teacher], keeper: Keeper | None
    ) -> None:
        self.text, self.keeper = text, keeper
        self.shards = [shard for shard in text.shards if isinstance(shard, Shard)]
        self.words: dict[tuple[int, int], Words] = {}
        codes = {code for shard in self.shards for code in shard.header.languages}
        mine = {code: teacher for code, teacher in teachers.items() if code in codes}
        # a row may hold several languages: its states have a teacher if all have the same
        same = mine.keys() == codes and len({t.folder for t in mine.values()}) == 1
        self.way = list(teachers).index(next(iter(mine))) if same else -1
        for i, shard in enumerate(self.shards if keeper else ()):
            for side, code in enumerate(shard.header.languages):
                if code in mine:
                    self.words[i, side] = self._write(shard, side, code, mine[code])

    def _write(self, shard: Shard, side: int, code: str, teacher: Teacher) -> Words:
        sides, end = len(shard.header.languages), self.text.end

        def rows_of(document: int) -> list[Row]:
            ids = [end, *shard[sides * document + side].tolist()]
            return windows(ids, teacher.config.context)

        sizes = shard.lengths[side::sides] + 1
        assert self.keeper is not None
        return self.keeper.write(teacher, shard, code, [end], sizes, rows_of)

    def __call__(
        self, documents: NDArray[np.int64], starts: NDArray[np.int64], begins: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """`documents` and `starts` as TextRows chooses them; rows begin at `begins`."""
        extra = {"way": torch.full((len(begins),), self.way)}
        if self.keeper is None:
            return extra
        width = self.text.width
        ids, logs = _unknown((len(begins), width), self.keeper.k)
        for row, begin in enumerate(begins):
            index = int(np.searchsorted(starts, begin, side="right")) - 1
            while starts[index] < begin + width:
                words = self._of(*documents[index])
                first, last = max(begin, starts[index]), min(begin + width, starts[index + 1])
                if words is not None:
                    part = words[first - starts[index] : last - starts[index]]
                    ids[row, first - begin : last - begin] = part["ids"]
                    logs[row, first - begin : last - begin] = part["logs"]
                index += 1
        return extra | {"word_ids": torch.from_numpy(ids), "word_logs": torch.from_numpy(logs)}

    def _of(self, shard: int, sequence: int) -> NDArray[Any] | None:
        sides = max(1, len(self.shards[shard].header.languages))
        words = self.words.get((int(shard), int(sequence) % sides))
        return None if words is None else words[int(sequence) // sides]


def _unknown(shape: tuple[int, ...], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.zeros((*shape, k), np.int64), np.full((*shape, k), -np.inf, np.float32)
