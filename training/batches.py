"""From shards to batches: which examples an epoch holds, in which order, in which rows.

Pairs become rows `<src> <tgt> source <sep> target <end>` with a loss on the target only; rows of
about the same length share a batch, so that little padding is computed. Text becomes rows cut from
one long stream of documents with a loss everywhere. An epoch is a function of seed and number
alone: a cursor (epoch, index) is all that a resumed run needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.errors import CorpusError
from training.shards import Shard, Side

if TYPE_CHECKING:
    from training.mixture import Mixture

IGNORED = -100  # a target position without loss
Form = Literal["pairs", "task", "text", "masked", "infilling", "replaced"]
Teaching = Callable[..., dict[str, Tensor]]  # what teachers say of the rows of a batch
POOL = 64  # batches that are sorted by length together


@dataclass(frozen=True)
class Batch:
    """`ids` and `targets` (batch, time); `lengths` and `prefix` (batch,), both in tokens.

    `form` says what the rows are for and so which losses they have; `extra` holds what only some
    forms need, by name. `rest` are rows of other forms that belong to the same batch.
    """

    ids: Tensor
    targets: Tensor
    lengths: Tensor
    prefix: Tensor
    tag: str = ""  # "en-de", or the language of text
    form: Form = "pairs"
    extra: dict[str, Tensor] = field(default_factory=dict)
    rest: tuple[Batch, ...] = ()

    @property
    def parts(self) -> tuple[Batch, ...]:
        """Itself and the rest."""
        return (self, *self.rest)

    @property
    def read(self) -> int:
        """Tokens of all parts, without padding."""
        return sum(int(part.lengths.sum()) for part in self.parts)

    @property
    def padded(self) -> int:
        """Tokens of all parts, with padding."""
        return sum(part.ids.numel() for part in self.parts)

    def to(self, device: torch.device) -> Batch:
        ids, targets, lengths, prefix = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.ids, self.targets, self.lengths, self.prefix)
        )
        extra = {k: tensor.to(device, non_blocking=True) for k, tensor in self.extra.items()}
        return replace(
            self, ids=ids, targets=targets, lengths=lengths, prefix=prefix, extra=extra,
            rest=tuple(part.to(device) for part in self.rest),
        )  # fmt: skip


@dataclass(frozen=True)
class Tags:
    """Ids of the special tokens that rows are built from."""

    end: int
    separator: int
    source: dict[str, int]
    target: dict[str, int]
    tasks: dict[str, int] = field(default_factory=dict)
    mask: int = 1


class PairRows:
    """The directions of all pair shards as examples; `directions` are globs over "en-de".

    Examples of other text-to-text tasks have one direction: `<task> text <sep> answer <end>`.
    `noise` is the share of source tokens that batches made with a generator hide behind `<|mask|>`.
    """

    def __init__(self, shards: Sequence[Shard], weights: Sequence[float], tags: Tags,
                 max_tokens: int, directions: Sequence[str] = (),
                 noise: float = 0.0) -> None:  # fmt: skip
        self.shards, self.weights, self.tags, self.noise = shards, weights, tags, noise
        self.max_tokens, self.globs = max_tokens, directions or ("*",)
        self.sizes = [s.lengths[0::2] + s.lengths[1::2] + 4 for s in shards]
        self.teaching: Teaching | None = None

    def choose(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """An epoch's examples (n, 3): shard, pair, direction; every pass over a shard is whole."""
        chosen = []
        for i, (size, weight) in enumerate(zip(self.sizes, self.weights, strict=True)):
            fitting = np.flatnonzero(size <= self.max_tokens)
            for direction in self.directions_of(self.shards[i]):
                picked = sample(fitting, weight, rng)
                columns = (np.full_like(picked, i), picked, np.full_like(picked, direction))
                chosen.append(np.stack(columns, axis=1))
        examples = np.concatenate(chosen) if chosen else np.zeros((0, 3), np.int64)
        return examples[rng.permutation(len(examples))]

    def directions_of(self, shard: Shard) -> list[int]:
        """Which way a shard's pairs are read: 0 first to second language, 1 back."""
        if shard.header.task:
            return [0]
        ways = (0,) if shard.header.one_way else (0, 1)
        return [i for i in ways if any(fnmatchcase(way_of(shard, i), g) for g in self.globs)]

    def length_of(self, examples: NDArray[np.int64]) -> NDArray[np.int64]:
        lengths = np.zeros(len(examples), np.int64)
        for i, size in enumerate(self.sizes):
            mine = examples[:, 0] == i
            lengths[mine] = size[examples[mine, 1]]
        return lengths

    def row(self, example: NDArray[np.int64]) -> tuple[list[int], int]:
        """Ids of one example and how many of them are the prompt."""
        shard = self.shards[example[0]]
        pair, direction = int(example[1]), int(example[2])
        if shard.header.task:
            head = [self.tags.tasks[shard.header.task]]
        else:
            source, target = way_of(shard, direction).split("-")
            head = [self.tags.source[source], self.tags.target[target]]
        prompt = [*head, *shard[2 * pair + direction].tolist(), self.tags.separator]
        answer = [*shard[2 * pair + 1 - direction].tolist(), self.tags.end]
        return prompt + answer, len(prompt)

    def batches(self, examples: NDArray[np.int64], tokens: int) -> list[NDArray[np.int64]]:
        """Group examples so that rows x longest row stays within `tokens`; tasks apart."""
        tasks = np.array([bool(s.header.task) for s in self.shards], bool)[examples[:, 0]]
        if tasks.any() and not tasks.all():
            return self.batches(examples[~tasks], tokens) + self.batches(examples[tasks], tokens)
        lengths = self.length_of(examples)
        groups = []
        pool = max(1, POOL * tokens // max(1, int(lengths.mean()))) if len(lengths) else 1
        for start in range(0, len(examples), pool):
            order = start + np.argsort(lengths[start : start + pool], kind="stable")
            begin = 0
            for end in range(1, len(order) + 1):
                full = end < len(order) and (end - begin + 1) * lengths[order[end]] > tokens
                if full or end == len(order):
                    groups.append(examples[order[begin:end]])
                    begin = end
        return groups

    def collate(
        self, examples: NDArray[np.int64], tag: str = "", rng: np.random.Generator | None = None
    ) -> Batch:
        rows = [self.row(example) for example in examples]
        width = max(len(ids) for ids, _ in rows) - 1
        ids = np.zeros((len(rows), width), np.int64)
        targets = np.full((len(rows), width), IGNORED, np.int64)
        for i, (row, prompt) in enumerate(rows):
            ids[i, : len(row) - 1] = row[:-1]
            targets[i, prompt - 1 : len(row) - 1] = row[prompt:]
        lengths = np.array([len(row) - 1 for row, _ in rows], np.int64)
        prefix = np.array([prompt for _, prompt in rows], np.int64)
        extra = self.teaching(examples, targets != IGNORED) if self.teaching else {}
        if self.noise and rng is not None:
            extra = {**extra, "original": torch.from_numpy(ids)}
            ids = self._noisy(ids, prefix, rng)
        return Batch(
            torch.from_numpy(ids), torch.from_numpy(targets),
            torch.from_numpy(lengths), torch.from_numpy(prefix), tag,
            "task" if self.shards[examples[0, 0]].header.task else "pairs", extra,
        )  # fmt: skip

    def _noisy(
        self, ids: NDArray[np.int64], prefix: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Each token between a row's tags and its separator is hidden with the same chance."""
        tags = self.tags
        marks = np.array([*tags.source.values(), *tags.target.values(), *tags.tasks.values()])
        inside = np.arange(ids.shape[1]) < prefix[:, None] - 1
        hidden = inside & ~np.isin(ids, marks) & (rng.random(ids.shape) < self.noise)
        return np.where(hidden, tags.mask, ids)


def way_of(shard: Shard, direction: int) -> str:
    """What a shard's pairs are read for in a direction: "en-de", or the name of the task."""
    languages = shard.header.languages
    return shard.header.task or "-".join(reversed(languages) if direction else languages)


class TextRows:
    """Documents as one stream of an epoch, cut into rows of `width` + 1 tokens."""

    def __init__(self, shards: Sequence[Shard | Side], weights: Sequence[float], end: int,
                 width: int) -> None:  # fmt: skip
        self.shards, self.weights, self.end, self.width = shards, weights, end, width
        self.teaching: Teaching | None = None

    def choose(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """An epoch's documents (n, 2): shard, sequence; and where each starts in the stream."""
        chosen = [
            np.stack((np.full_like(picked, i), picked), axis=1)
            for i, (shard, weight) in enumerate(zip(self.shards, self.weights, strict=True))
            for picked in (sample(np.arange(len(shard)), weight, rng),)
        ]
        documents = np.concatenate(chosen) if chosen else np.zeros((0, 2), np.int64)
        documents = documents[rng.permutation(len(documents))]
        sizes = np.ones(len(documents), np.int64)  # the end token before each document
        for i, shard in enumerate(self.shards):
            mine = documents[:, 0] == i
            sizes[mine] += shard.lengths[documents[mine, 1]]
        return documents, np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))

    def collate(
        self, documents: NDArray[np.int64], starts: NDArray[np.int64], rows: NDArray[np.int64],
        tag: str = "",
    ) -> Batch:  # fmt: skip
        ids = np.empty((len(rows), self.width + 1), np.int64)
        for i, row in enumerate(rows):
            ids[i] = self.cut(documents, starts, int(row) * self.width)
        tensor = torch.from_numpy(ids)
        lengths = torch.full((len(rows),), self.width)
        extra = self.teaching(documents, starts, rows * self.width) if self.teaching else {}
        return Batch(tensor[:, :-1], tensor[:, 1:].contiguous(), lengths, lengths * 0, tag,
                     "text", extra)  # fmt: skip

    def cut(
        self, documents: NDArray[np.int64], starts: NDArray[np.int64], begin: int
    ) -> list[int]:
        """`width` + 1 tokens of the stream from a place on."""
        index = int(np.searchsorted(starts, begin, side="right")) - 1
        ids: list[int] = []
        skip = begin - int(starts[index])
        while len(ids) < skip + self.width + 1:
            shard, sequence = documents[index]
            ids += [self.end, *self.shards[shard][sequence].tolist()]
            index += 1
        return ids[skip : skip + self.width + 1]


def sample(
    items: NDArray[np.int64], passes: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """`passes` times through the items: whole passes, and a random part for the fraction."""
    whole, part = int(passes), passes - int(passes)
    some = rng.permutation(items)[: round(part * len(items))]
    return np.concatenate([items] * whole + [some])


@dataclass
class Cursor:
    """Where a run stands in its data: the next batch to read."""

    epoch: int = 0
    index: int = 0


class Stream:
    """All batches of a run, in order, from a cursor on."""

    def __init__(
        self, pairs: PairRows | None, text: TextRows | None, batch_tokens: int, seed: int,
        text_share: float = 0.0, mixture: Mixture | None = None,
    ) -> None:  # fmt: skip
        self.pairs, self.text, self.seed, self.mixture = pairs, text, seed, mixture
        self.batch_tokens, self.text_share = batch_tokens, text_share

    def __call__(self, cursor: Cursor, rank: int = 0, world: int = 1) -> Iterator[Batch | None]:
        """Yields for ever; moves `cursor` to the batch after the one it yields.

        Each of `world` ranks makes every `world`-th batch, and has None for the others.
        """
        turn = -1
        while True:
            rng = np.random.default_rng([self.seed, cursor.epoch])
            groups = (
                self.pairs.batches(self.pairs.choose(rng), self.batch_tokens) if self.pairs else []
            )
            documents, starts = self.text.choose(rng) if self.text else (None, None)
            plan = self._plan(groups, starts, rng)
            if not plan:
                raise CorpusError("the corpus gives no example that fits data.max_tokens")
            while cursor.index < len(plan):
                entry = plan[cursor.index]
                cursor.index += 1
                turn += 1
                draws = np.random.default_rng([self.seed, cursor.epoch, cursor.index])
                if turn % world != rank:
                    yield None
                elif isinstance(entry, tuple):
                    assert self.text is not None and documents is not None and starts is not None
                    if self.mixture is None:
                        yield self.text.collate(documents, starts, entry[0])
                    else:
                        yield self.mixture.batch(self.text, documents, starts, entry[0], draws)
                else:
                    assert self.pairs is not None
                    yield self.pairs.collate(entry, rng=draws)
            cursor.epoch, cursor.index = cursor.epoch + 1, 0

    def _plan(
        self, groups: list[NDArray[np.int64]], starts: NDArray[np.int64] | None,
        rng: np.random.Generator,
    ) -> list[NDArray[np.int64] | tuple[NDArray[np.int64]]]:  # fmt: skip
        plan: list[NDArray[np.int64] | tuple[NDArray[np.int64]]] = list(groups)
        if starts is not None and self.text is not None:
            rows = rng.permutation((int(starts[-1]) - 1) // self.text.width)
            size = max(1, self.batch_tokens // self.text.width)
            blocks = [(rows[i : i + size],) for i in range(0, len(rows), size)]
            if self.pairs:
                share = self.text_share / (1 - self.text_share)
                blocks = blocks[: round(len(groups) * share)]
            plan += blocks
        return [plan[i] for i in rng.permutation(len(plan))]
