"""The scales of an int8 cache, from the keys and values of sample texts.

The fp32 graph reads prompts made of sample texts with what it greedily goes on to say, and every
layer's keys and values are watched. Out: a `CacheScale` for each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from app.bundle import Bundle
from app.engine.runtime import create_session
from app.engine.session import OnnxDecoder
from export.checkpoint import Checkpoint, Dimensions
from export.errors import CheckpointError
from export.graphs import CacheScale, FloatWeights, build_graph, graph_names
from export.quantize import LEVELS
from export.verify import ROWS, batched, greedy, sample_prompts

# What lies beyond the extremes that were seen is cut off. Few texts show all, and half a step of
# 127 costs nothing.
MARGIN: Final = 1.5


def calibrate(
    source: Checkpoint, reference: Bundle, texts: Sequence[str]
) -> tuple[CacheScale, ...]:
    """Of each layer of `source`, whose fp32 bundle is `reference`."""
    decoder = OnnxDecoder(reference, slots=ROWS)
    prompts = sample_prompts(reference, texts)
    rows = [[*t.prompt, *t.ids] for group in batched(prompts) for t in greedy(decoder, group)]
    return tuple(map(cache_scale, watch(source, rows)))


def cache_scale(peak: NDArray[np.float32]) -> CacheScale:
    """From the largest absolute keys and values of a layer, (2, width)."""
    if not np.isfinite(peak).all():
        raise CheckpointError("keys or values are not finite: the cache cannot be int8")
    scale = np.where(peak > 0, MARGIN * peak, 1.0).astype(np.float32) / LEVELS
    return CacheScale(*scale)


def watch(source: Checkpoint, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """Of each layer the largest absolute keys and values over the tokens of `rows`, (2, width)."""
    model = build_graph(source.tensors, source.dimensions, FloatWeights(source.tensors))
    layers, width = source.dimensions.layers, source.dimensions.width
    packed = [f"h.{layer}.attn.c_attn" for layer in range(layers)]  # queries, keys, values
    for name in packed:
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        model.graph.output.append(info)
    session = create_session(model.SerializeToString())
    peaks = [np.zeros((2, width), np.float32) for _ in packed]
    for feeds, real in _feeds(source.dimensions, rows):
        for peak, x in zip(peaks, session.run(packed, feeds), strict=True):
            cached = np.abs(x[real, width:]).max(axis=0)
            np.maximum(peak, cached.reshape(2, width), out=peak)
    return peaks


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
            names.last_index: np.arange(count) * time,
            names.seqlens_k: np.array(lengths, np.int32) - 1,
            names.total_sequence_length: np.array(time, np.int32),
        }
        empty = np.zeros((count, d.heads, time, d.head_size), np.float32)
        for layer in range(d.layers):
            feeds[names.past_key.format(layer=layer)] = empty
            feeds[names.past_value.format(layer=layer)] = empty
        yield feeds, real
