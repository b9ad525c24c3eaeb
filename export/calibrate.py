"""The scales of int8 graphs: of products' inputs, and of cached keys and values.

The fp32 graph reads prompts made of sample texts with what it greedily goes on to say, and every
product's input is watched. Out: an `Activation` for each product whose inputs are alike enough
(those of wild rows, and the LM head's, are left to be rounded row by row), and for each layer a
`CacheScale`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from app.bundle import Bundle
from app.engine.runtime import create_session
from app.engine.session import OnnxDecoder
from export.checkpoint import Checkpoint, Dimensions, Tensors
from export.errors import CheckpointError
from export.graphs import CacheScale, FloatWeights, Graph, build_graph, graph_names
from export.quantize import LEVELS, ZERO_POINT, Activation
from export.verify import ROWS, batched, greedy, sample_prompts

MARGIN: Final = 1.1  # what lies beyond the extremes that were seen is cut off
# One scale may be this much coarser than the rows' own on average. Beyond it a few rows have
# values that dwarf those of the others, which would be left with few of the 256 steps.
COARSER: Final = 4.0
# The same of keys and values, of which fewer texts show all: half a step of 127 costs nothing.
CACHE_MARGIN: Final = 1.5


class _Watched(FloatWeights):
    """Float weights that remember the name of each product's input.

    Not the LM head's: no layer behind it evens its rounding out (the divergence from fp32 rises by
    half with one scale there), and it is one product of a step.
    """

    def __init__(self, tensors: Tensors) -> None:
        super().__init__(tensors)
        self.inputs: dict[str, str] = {}

    def linear(self, graph: Graph, x: str, name: str) -> str:
        self.inputs[name] = x
        return super().linear(graph, x, name)


@dataclass(slots=True)
class Range:
    """The values seen at one input: extremes, and the rows' mean squared peak."""

    low: float = 0.0
    high: float = 0.0
    squares: float = 0.0
    rows: int = 0

    def see(self, x: NDArray[np.float32]) -> None:
        """Add rows (n, width)."""
        self.low = min(self.low, float(x.min()))
        self.high = max(self.high, float(x.max()))
        self.squares += float(np.square(np.abs(x).max(axis=1), dtype=np.float64).sum())
        self.rows += len(x)

    def activation(self) -> Activation | None:
        """One scale for all of it, or None if that were too coarse (or there is nothing)."""
        bound = MARGIN * max(-self.low, self.high)
        if not 0 < bound < np.inf:
            return None
        low, high = -bound, bound
        if -self.low < self.high / 4:  # behind GELU, which never falls below -0.17
            low = self.low
        scale = (high - low) / 255
        zero = round(-low / scale)
        own = (self.squares / self.rows) ** 0.5 / LEVELS
        if scale > COARSER * own:
            return None
        # Around 128 there are 127 steps on the upper side.
        return Activation(bound / LEVELS, ZERO_POINT) if low == -bound else Activation(scale, zero)


@dataclass(frozen=True, slots=True)
class Calibration:
    activations: Mapping[str, Activation]  # by the name of the product
    cache: tuple[CacheScale, ...]  # of each layer


def calibrate(source: Checkpoint, reference: Bundle, texts: Sequence[str]) -> Calibration:
    """Scales for `source`, whose fp32 bundle is `reference`."""
    decoder = OnnxDecoder(reference, slots=ROWS)
    prompts = sample_prompts(reference, texts)
    rows = [[*t.prompt, *t.ids] for group in batched(prompts) for t in greedy(decoder, group)]
    ranges, peaks = watch(source, rows)
    found = {name: seen.activation() for name, seen in ranges.items()}
    return Calibration(
        {name: activation for name, activation in found.items() if activation is not None},
        tuple(cache_scale(peak) for peak in peaks),
    )


def cache_scale(peak: NDArray[np.float32]) -> CacheScale:
    """From the largest absolute keys and values of a layer, (2, width)."""
    if not np.isfinite(peak).all():
        raise CheckpointError("keys or values are not finite: the cache cannot be int8")
    scale = np.where(peak > 0, CACHE_MARGIN * peak, 1.0).astype(np.float32) / LEVELS
    return CacheScale(*scale)


def watch(
    source: Checkpoint, rows: Sequence[Sequence[int]]
) -> tuple[Mapping[str, Range], list[NDArray[np.float32]]]:
    """Over the tokens of `rows` the ranges of all products' inputs but the head's, and of each
    layer the largest absolute keys and values, (2, width)."""
    weights = _Watched(source.tensors)
    model = build_graph(source.tensors, source.dimensions, weights)
    layers, width = source.dimensions.layers, source.dimensions.width
    packed = [f"h.{layer}.attn.c_attn" for layer in range(layers)]  # queries, keys, values
    for name in sorted({*weights.inputs.values(), *packed}):
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        model.graph.output.append(info)
    session = create_session(model.SerializeToString())
    ranges = {product: Range() for product in weights.inputs}
    peaks = [np.zeros((2, width), np.float32) for _ in packed]
    for feeds, real in _feeds(source.dimensions, rows):
        values = session.run([*weights.inputs.values(), *packed], feeds)
        for seen, x in zip(ranges.values(), values, strict=False):
            seen.see(x[real])
        for peak, x in zip(peaks, values[-layers:], strict=True):
            cached = np.abs(x[real, width:]).max(axis=0)
            np.maximum(peak, cached.reshape(2, width), out=peak)
    return ranges, peaks


def _feeds(
    d: Dimensions, rows: Sequence[Sequence[int]]
) -> Iterator[tuple[dict[str, NDArray[np.generic]], NDArray[np.int64]]]:
    """Inputs of fresh prompts in batches, and which of their positions are no padding."""
    names = graph_names()
    for start in range(0, len(rows), ROWS):
        group = rows[start : start + ROWS]
        count, time = len(group), max(len(row) for row in group)
        time += time % 2
        ids = np.zeros((count, time), np.int64)
        for at, row in enumerate(group):
            ids[at, : len(row)] = row
        lengths = [len(row) for row in group]
        real = np.concatenate([at * time + np.arange(n) for at, n in enumerate(lengths)])
        feeds: dict[str, NDArray[np.generic]] = {
            names.ids: ids,
            names.positions: np.tile(np.arange(time), count),
            names.last_index: np.arange(count * time),  # all: the last layer is watched too
            names.seqlens_k: np.array(lengths, np.int32) - 1,
            names.total_sequence_length: np.array(time, np.int32),
        }
        empty = np.zeros((count, d.heads, time, d.head_size), np.float32)
        for layer in range(d.layers):
            feeds[names.past_key.format(layer=layer)] = empty
            feeds[names.past_value.format(layer=layer)] = empty
        yield feeds, real
