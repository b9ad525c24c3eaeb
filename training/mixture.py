"""The text rows of pretraining, shared out among its objectives: plain ones and corrupted ones.

Rows of a stream of documents flow in, one batch flows out whose parts have a form each. Rows that
restore or judge tokens are cut from the stream, or, with next-sentence prediction, are two
segments of documents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from training.batches import IGNORED, Batch, Form, TextRows
from training.config import ObjectivesConfig
from training.corruption import (
    Ids,
    Vocabulary,
    infilling,
    pick,
    replacements,
    segments,
)
from training.shards import Side

GOLDEN = (5**0.5 - 1) / 2  # its multiples, less their whole part, fill [0, 1) evenly
SHORTEST, TRIES = 8, 100  # tokens of a document that is cut in two; draws of another document


@dataclass(frozen=True)
class Documents:
    """An epoch's documents, as `TextRows.choose` gives them, and the rows to cut from them."""

    text: TextRows
    chosen: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Whole rows of the stream."""
        return (int(self.starts[-1]) - 1) // self.text.width

    def cut(self, row: int, size: int) -> Ids:
        """The first `size` (at most a row and one) tokens of a row of the stream."""
        ids = self.text.cut(self.chosen, self.starts, row * self.text.width)[:size]
        return np.array(ids, np.int64)

    def at(self, row: int) -> int:
        """The document at a row's beginning, or the next that can be cut in two; -1 if none can."""
        begin = int(np.searchsorted(self.starts, row * self.text.width, side="right")) - 1
        for place in range(begin, begin + len(self.chosen)):
            index = place % len(self.chosen)
            if self._size(index) >= SHORTEST:
                return index
        return -1

    def other(self, index: int, rng: np.random.Generator) -> int:
        """Another document of the same language that can be cut in two; -1 if none was found."""
        language = self.language(index)
        for _ in range(TRIES):
            other = int(rng.integers(len(self.chosen)))
            if (
                self.language(other) == language
                and self._size(other) >= SHORTEST
                and (self.chosen[other] != self.chosen[index]).any()
            ):
                return other
        return -1

    def __getitem__(self, index: int) -> Ids:
        shard, sequence = self.chosen[index]
        ids: Ids = self.text.shards[shard][sequence].astype(np.int64)
        return ids

    def language(self, index: int) -> str:
        shard, sequence = self.chosen[index]
        rows = self.text.shards[shard]
        if isinstance(rows, Side):
            languages, place = rows.shard.header.languages, rows.side
        else:  # a shard of pairs holds its sides in turn
            languages = rows.header.languages
            place = int(sequence) % len(languages)
        return languages[place]

    def _size(self, index: int) -> int:
        return int(self.starts[index + 1] - self.starts[index]) - 1


class Mixture:
    """Makes batches of the forms that the weights in `config` ask for."""

    def __init__(self, config: ObjectivesConfig, vocabulary: Vocabulary) -> None:
        self.config, self.vocabulary = config, vocabulary
        named: tuple[tuple[Form, float], ...] = (
            ("masked", config.masking), ("infilling", config.infilling),
            ("replaced", config.replaced),
        )  # fmt: skip
        self.auxiliary: list[Form] = [form for form, weight in named if weight]
        part = (config.auxiliary_share if config.causal else 1.0) / max(1, len(self.auxiliary))
        plain: list[Form] = ["text"] if config.causal else []
        self.forms = [*self.auxiliary, *plain]
        self.borders = np.arange(1, len(self.forms)) * part  # the last form has the rest

    def batch(
        self, text: TextRows, chosen: NDArray[np.int64], starts: NDArray[np.int64],
        rows: NDArray[np.int64], rng: np.random.Generator,
    ) -> Batch:  # fmt: skip
        """Rows of all forms, in shares as near to those asked for as whole rows can be."""
        documents = Documents(text, chosen, starts)
        place = (rng.random() + np.arange(len(rows)) * GOLDEN) % 1
        which = np.searchsorted(self.borders, place, side="right")
        parts = [
            self.make(form, documents, rows[which == i], rng)
            for i, form in enumerate(self.forms) if (which == i).any()
        ]  # fmt: skip
        return replace(parts[-1], rest=tuple(parts[:-1]))

    def make(
        self, form: Form, documents: Documents, rows: NDArray[np.int64], rng: np.random.Generator,
        tag: str = "",
    ) -> Batch:  # fmt: skip
        """A batch of one form."""
        if form == "text":
            text = documents.text
            return text.collate(documents.chosen, documents.starts, rows, tag)
        if form == "infilling":
            return self._infilling(documents, rows, rng, tag)
        cut, follows = self._clean(documents, rows, rng)
        lengths = np.array([len(row) for row in cut], np.int64)
        ids = np.full((len(cut), int(lengths.max())), self.vocabulary.end, np.int64)
        targets = np.full(ids.shape, IGNORED, np.int64)
        for i, row in enumerate(cut):
            ids[i, : len(row)], targets[i, : len(row)] = self._corrupted(form, row, rng)
        extra = {"follows": torch.from_numpy(follows)} if self.config.next_sentence else {}
        return Batch(
            torch.from_numpy(ids), torch.from_numpy(targets), torch.from_numpy(lengths),
            torch.zeros(len(cut), dtype=torch.int64), tag, form, extra,
        )  # fmt: skip

    def _clean(
        self, documents: Documents, rows: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[list[Ids], NDArray[np.bool_]]:
        """Rows of one stream, or of two segments each; and whether the second follows the first."""
        width, swapped = documents.text.width, self.config.negatives == "swapped"
        follows = np.ones(len(rows), bool)
        if not self.config.next_sentence:
            return [documents.cut(int(row), width) for row in rows], follows
        cut = []
        for i, row in enumerate(rows):
            index = documents.at(int(row))
            if index < 0:  # nothing but single words: there is nothing to cut in two
                cut.append(documents.cut(int(row), width))
                continue
            other = -1 if swapped else documents.other(index, rng)
            ids, follows[i] = segments(
                documents[index], documents[other] if other >= 0 else None, width, swapped,
                self.vocabulary, rng,
            )  # fmt: skip
            cut.append(ids)
        return cut, follows

    def _corrupted(self, form: Form, row: Ids, rng: np.random.Generator) -> tuple[Ids, Ids]:
        """Ids with a share hidden or replaced, and targets: of the hidden tokens only, or, where
        each token is judged, of all ordinary ones."""
        config, vocabulary = self.config, self.vocabulary
        ordinary = vocabulary.ordinary[row]
        chosen = pick(ordinary, config.mask_rate, config.mask_form == "span", rng)
        ids = row.copy()
        if form == "replaced" and config.replacements == "random":
            ids[chosen] = replacements(int(chosen.sum()), vocabulary, rng)
        else:
            ids[chosen] = vocabulary.mask
        return ids, np.where(ordinary if form == "replaced" else chosen, row, IGNORED)

    def _infilling(
        self, documents: Documents, rows: NDArray[np.int64], rng: np.random.Generator, tag: str
    ) -> Batch:
        """The marks have no loss: where a hole is cannot be known, and no text has such tokens."""
        width = documents.text.width
        ids = np.stack([
            infilling(documents.cut(int(row), width - 3), self.vocabulary, rng) for row in rows
        ])  # (rows, width + 1)
        targets = ids[:, 1:].copy()
        marks = (targets == self.vocabulary.mask) | (targets == self.vocabulary.separator)
        targets[marks] = IGNORED
        lengths = torch.full((len(rows),), width)
        return Batch(
            torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(targets), lengths, lengths * 0,
            tag, "infilling",
        )  # fmt: skip
