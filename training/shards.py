"""Tokenised corpora on disk: uint16 tokens, int64 offsets and a small JSON header per source.

Sources flow in through the cleaner and the tokenizer; shards flow out, written once and then
memory-mapped. A source of pairs holds its two sides in turn: sequence 2k and 2k + 1 are a pair.
A header names the tokenizer, so that a shard is never read with another vocabulary, and the digests
of the data, so that damage on disk is never learnt from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.corpus import Cleaner, Source, hash64
from training.errors import CorpusError

FORMAT = 3  # shards of another format are made anew
DATA = (".bin", ".idx")


@dataclass(frozen=True)
class Header:
    name: str
    languages: tuple[str, ...]
    tokenizer_sha256: str
    sequences: int
    tokens: int
    blake2b: dict[str, str]  # of the files .bin and .idx
    one_way: bool = False  # pairs are learnt from the first to the second language only
    task: str = ""


class Shard:
    """A memory-mapped shard; `shard[i]` is the i-th sequence of ids (uint16).

    Raises CorpusError naming the file that is missing, cut, altered or another shard's.
    """

    def __init__(self, path: Path) -> None:
        try:
            values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            self.header = Header(**{**values, "languages": tuple(values["languages"])})
            for suffix in DATA:
                if _digest(path.with_suffix(suffix)) != self.header.blake2b[suffix]:
                    raise ValueError(f"{suffix} is not the file that the header was written with")
            self.offsets: NDArray[np.int64] = np.fromfile(path.with_suffix(".idx"), np.int64)
            empty = self.header.tokens == 0
            self.tokens: NDArray[np.uint16] = (
                np.zeros(0, np.uint16) if empty else np.memmap(path.with_suffix(".bin"), np.uint16)
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"shard {path}: {error}") from None
        if len(self.offsets) != self.header.sequences + 1 or self.offsets[-1] != len(self.tokens):
            raise CorpusError(f"shard {path}: header and data disagree")

    def __len__(self) -> int:
        return self.header.sequences

    def __getitem__(self, index: int) -> NDArray[np.uint16]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)


class Side:
    """One language of a shard of pairs, read like a shard of text."""

    def __init__(self, shard: Shard, side: int) -> None:
        self.shard, self.side = shard, side
        self.lengths = shard.lengths[side::2]

    def __len__(self) -> int:
        return len(self.shard) // 2

    def __getitem__(self, index: int) -> NDArray[np.uint16]:
        return self.shard[2 * index + self.side]


def write_shard(
    path: Path, source: Source, sequences: Iterable[Sequence[int]], tokenizer_sha256: str
) -> Shard:
    """Write a shard; the header goes last, so an interrupted one is never taken for whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    offsets = [0]
    with path.with_suffix(".bin").open("wb") as file:
        for ids in sequences:
            file.write(np.asarray(ids, np.uint16).tobytes())
            offsets.append(offsets[-1] + len(ids))
    np.asarray(offsets, np.int64).tofile(path.with_suffix(".idx"))
    header = Header(
        source.name, source.languages, tokenizer_sha256, len(offsets) - 1, offsets[-1],
        {suffix: _digest(path.with_suffix(suffix)) for suffix in DATA}, source.one_way, source.task,
    )  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(asdict(header)), encoding="utf-8")
    return Shard(path)


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return file_digest(handle, "blake2b").hexdigest()


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    for block in batched_texts(texts):
        for encoding in tokenizer.encode_batch_fast(block, add_special_tokens=False):
            yield encoding.ids


def batched_texts(texts: Iterable[str], size: int = 4096) -> Iterator[list[str]]:
    block: list[str] = []
    for text in texts:
        block.append(text)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def held_out(texts: Sequence[str]) -> bool:
    """Whether a pair or document is one of those to validate on: one in 200.

    A pair is if the hash of either side says so: then no other pair of that text is learnt from,
    whatever the source or language. Corpora of many languages repeat most of their texts.
    """
    return any(hash64(text) % (200 * len(texts)) == 0 for text in texts)


def held_line(text: str) -> bool:
    """Whether a line of running text is held out where it is a side of a pair."""
    return held_out((text, text))


def prepare(
    sources: Sequence[Source], tokenizer: Tokenizer, tokenizer_sha256: str, cleaner: Cleaner,
    folder: Path, valid_examples: int,
) -> tuple[list[Shard], list[Shard]]:  # fmt: skip
    """Training and validation shards of every source.

    About one line in 200 is held out, chosen by its hash, at most `valid_examples` a source and
    none of machine translations; pairs beyond that are left out of both. Raises CorpusError for a
    file without a line.
    """
    train: list[Shard] = []
    valid: list[Shard] = []
    for source in sources:
        paired = source.columns == 2
        limit = 0 if source.one_way else valid_examples
        counts = cleaner.report.counts
        kept: list[str] = []
        held: list[str] = []
        units = cleaner.pairs(source) if paired else ((d,) for d in cleaner.documents(source))
        for texts in units:
            out = valid_examples > 0 and held_out(texts)
            room = len(held) < limit * len(texts)
            if out and not room and len(source.languages) == 2:
                counts[source.key]["kept"] -= 1
                counts[source.key]["held out"] += 1
            else:
                (held if out and room else kept).extend(texts)
        if source.key not in counts:
            raise CorpusError(f"{source.paths[0]}: is empty")
        stem = source.key.replace("/", "_")
        for texts_of, shards, part in ((kept, train, "train"), (held, valid, "valid")):
            path = folder / f"{stem}.{part}"
            shards.append(
                write_shard(
                    path.with_name(path.name + ".bin"),
                    source,
                    encode(tokenizer, texts_of),
                    tokenizer_sha256,
                )
            )
    return train, valid
