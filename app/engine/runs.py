"""Runs of the decoder for sequences: with candidates where any of them has some, else without.

Sequences or rows flow in beside what the decoder is to read; out come each one's logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from app.engine.request import Decoder, Logits
from app.engine.sequence import Row
from app.engine.sequence import Sequence as Running


def prefill(
    decoder: Decoder,
    first: int,
    sequences: Iterable[Running],
    prompts: Sequence[Sequence[int]],
    start: int = 0,
) -> Logits:
    if any(only := [sequence.request.candidates for sequence in sequences]):
        return decoder.prefill_among(first, prompts, only, start)
    return decoder.prefill(first, prompts, start)


def decode(
    decoder: Decoder,
    rows: Iterable[Row],
    tokens: NDArray[np.int64],
    lengths: NDArray[np.int32],
) -> Logits:
    if any(only := [row.sequence.request.candidates for row in rows]):
        return decoder.decode_among(tokens, lengths, only)
    return decoder.decode(tokens, lengths)
