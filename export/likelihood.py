"""How probable text is to a model: bits over tokens and bytes, for bundles and checkpoints alike.

Lines flow in, each read as one document between two end tokens; a `TextLoss` flows out. Bits per
byte compares models of unlike vocabularies, perplexity only those of the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.bundle import MANIFEST, Bundle
from app.engine.session import OnnxDecoder
from app.text.tokenizer import TextTokenizer

ROWS = 16


class TextLoss(NamedTuple):
    """Bits that the model needs for the text, and the text's size."""

    bits: float
    tokens: int
    bytes: int

    @property
    def per_byte(self) -> float:
        return self.bits / max(1, self.bytes)

    @property
    def perplexity(self) -> float:
        return float(2.0 ** min(self.bits / max(1, self.tokens), 64.0))


Measure = Callable[[Sequence[str]], TextLoss]


def bundle_loss(bundle: Bundle, texts: Sequence[str]) -> TextLoss:
    """Read token by token through the cache; what lies beyond the context is left out."""
    tokenizer, bits, tokens, size = TextTokenizer.of(bundle), 0.0, 0, 0
    context, end = bundle.manifest.limits.context, bundle.manifest.tokens.end
    decoder = OnnxDecoder(bundle, slots=ROWS)
    rows = [[end, *tokenizer.encode(text, param="texts"), end][:context] for text in texts]
    for group in _groups(sorted(rows, key=len, reverse=True)):
        logits = decoder.prefill(0, [row[:1] for row in group])
        for at in range(1, len(group[0])):
            running = [row for row in group if len(row) > at]  # sorted: always the first ones
            for row, one in zip(running, logits, strict=False):
                bits += surprise(one, row[at])
            chosen = np.array([row[at] for row in running], np.int64)
            if at + 1 < len(group[0]):
                logits = decoder.decode(chosen, np.full(len(running), at, np.int32))
    for text, row in zip(texts, rows, strict=True):
        whole = len(row) < context
        size += len(text.encode()) if whole else len(tokenizer.decode(row[1:]).encode())
        tokens += len(row) - 1
    return TextLoss(bits, tokens, size)


def measure_of(model: str | Path) -> Measure:
    """The measure of a bundle or, with torch, of a checkpoint."""
    folder = Path(model)
    if (folder / MANIFEST).is_file():
        bundle = Bundle.open(folder)
        return lambda texts: bundle_loss(bundle, texts)
    from training.evaluate import checkpoint_text_loss

    loss = checkpoint_text_loss(folder)
    return lambda texts: TextLoss(*loss(texts))


def surprise(logits: NDArray[np.float32], token: int) -> float:
    """-log2 of the token's probability."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(np.log(np.exp(shifted).sum()) - shifted[token]) / math.log(2)


def _groups(rows: Sequence[list[int]]) -> Iterator[Sequence[list[int]]]:
    for start in range(0, len(rows), ROWS):
        yield rows[start : start + ROWS]


def table(losses: Mapping[str, TextLoss]) -> str:
    """A Markdown table, one row a language."""
    lines = [
        "| language | bytes | tokens | perplexity | bits per byte |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {language} | {loss.bytes:,} | {loss.tokens:,} | {loss.perplexity:.1f} "
        f"| {loss.per_byte:.3f} |"
        for language, loss in losses.items()
    ]
    return "\n".join(lines)
