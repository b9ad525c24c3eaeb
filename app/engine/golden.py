"""Whether a bundle answers here as it did where it was exported.

The manifest carries a short prompt, the ids that greedy decoding made of it and their
log-probabilities. A decoder reads them again when it starts: a processor or a runtime whose kernels
compute something else is found before it answers anybody. How much is else, `export.bundle` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.bundle import Golden
from app.engine.request import Array, Candidates, Decoder, Logits
from app.errors import GoldenMismatch


class Reader(Protocol):
    """What is needed of a decoder; see `app.engine.session.OnnxDecoder`."""

    slots: int
    capacity: int

    def prefill(self, first: int, prompts: Sequence[Sequence[int]]) -> Logits: ...

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]) -> Logits: ...


def read(decoder: Reader, prompt: Sequence[int], ids: Sequence[int], rows: int = 1) -> Array:
    """Logits (len(ids), rows, vocabulary) before each of `ids`, in `rows` slots at once."""
    logits = [_array(decoder.prefill(0, [prompt] * rows))]
    for step, token in enumerate(ids[:-1]):
        lengths = np.full(rows, len(prompt) + step, np.int32)
        logits.append(_array(decoder.decode(np.full(rows, token, np.int64), lengths)))
    return np.stack(logits)


def _array(logits: Logits) -> Array:
    return np.stack([logits[row] for row in range(len(logits))])


def log_probabilities(logits: Array, ids: Sequence[int]) -> list[float]:
    """Natural, of each of `ids`; logits (len(ids), vocabulary)."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    total = np.log(np.exp(x).sum(axis=1))
    return [float(row[i] - norm) for row, i, norm in zip(x, ids, total, strict=True)]


def check_golden(decoder: Reader, golden: Golden) -> bool | None:
    """Raise GoldenMismatch if the answer is another; whether a row in company has the same bits.

    None where that cannot be told: with one slot, or fewer positions than the prompt and answer.
    """
    if decoder.capacity < len(golden.prompt) + len(golden.ids):
        return None
    alone = read(decoder, golden.prompt, golden.ids)
    found = log_probabilities(alone[:, 0], golden.ids)
    for at, (value, expected) in enumerate(zip(found, golden.log_probabilities, strict=True)):
        if not abs(value - expected) <= golden.tolerance:  # not a number fails too
            raise GoldenMismatch(
                f"the model computes something else here than where it was exported: token "
                f"{at + 1} of the bundle's golden answer has log-probability {value:.3f}, the "
                f"manifest says {expected:.3f} within {golden.tolerance:g}",
                param="golden",
            )
    if decoder.slots == 1:
        return None
    together = read(decoder, golden.prompt, golden.ids, min(decoder.slots, 3))
    return bool((together == alone).all())


def listed_alike(decoder: Decoder, prompt: Sequence[int]) -> bool:
    """Whether candidates have the same bits alone as beside a row that may say anything."""
    size, rows = decoder.vocabulary, min(decoder.slots, 3)
    few, all_ids = (Candidates(np.arange(0, size, step), size) for step in (16, 1))
    alone = decoder.prefill_among(0, [prompt], [few])
    together = decoder.prefill_among(0, [prompt] * rows, [few, all_ids, None][:rows])
    return bool((together[0] == alone[0]).all())
