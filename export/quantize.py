"""Int8 and int4 products: the same answer in any company, because no row's scale sees another row.

Matrices are stored in blocks of a column's values, symmetric, with a scale each: 256 values of 8
bits (or as many as divide the column), or 16 of 4 bits. MatMulNBits rounds each row's own blocks to
8 bits and multiplies exactly. It takes two rows at a time, and adds one that is left over up in
another order: runs therefore have an even number of rows (`GraphSpec.row_multiple`). Embedding and
LM head are one table. With a shortlist the head has columns of 7 bits with one scale each, and rows
are rounded by nodes of the graph, since columns are then chosen at run time. Seven, because
processors without VNNI add two products up in 16 bits: 2 x 255 x 63 fits, 2 x 255 x 127 does not.
In: float32 tensors. Out: nodes in a `Graph`; `dequantise` gives the tensors back from a model.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from app.graph import ListingSpec
from export.checkpoint import Tensors
from export.graphs import MICROSOFT, Graph

LEVELS: Final = 127
COLUMN_LEVELS: Final = 63  # of columns that are multiplied by MatMulIntegerToFloat
ZERO_POINT: Final = 128  # activations and bytes of weights are stored around 128
LARGEST: Final = 256  # values in a block of 8 bits
# The one block size of 4 bits whose product is bit-equal for any number of rows on all processors
# tried. With AVX2 a lone row of 32 and more is added up in another order, with AVX-512 an odd last
# row of 64.
BLOCK: Final = 16
NIBBLE: Final = 8  # 4-bit values are stored as 0..15 around 8
TINY: Final = 1e-30  # what an all-zero row is divided by


def quantise_columns(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric, -63..63, with one scale per column; an all-zero column keeps scale 1."""
    peak = np.abs(weight).max(axis=0)
    scale = np.where(peak > 0, peak / COLUMN_LEVELS, 1.0).astype(np.float32)
    rounded = np.rint(weight / scale)
    return np.clip(rounded, -COLUMN_LEVELS, COLUMN_LEVELS).astype(np.int8), scale


def quantise_bytes(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """8 bits around 128 of a (K, N) matrix as (N, blocks, size), and scales (N, blocks, 1).

    The size is the largest power of two up to `LARGEST` that divides K, at least 16: then the last
    block is filled with zeros. An all-zero block keeps scale 1.
    """
    inner, columns = weight.shape
    size = max(16, min(LARGEST, inner & -inner))
    blocks = -(-inner // size)
    padded = np.zeros((columns, blocks * size), np.float32)
    padded[:, :inner] = weight.T
    parts = padded.reshape(columns, blocks, size)
    peak = np.abs(parts).max(axis=2, keepdims=True)
    scale = np.where(peak > 0, peak / LEVELS, 1.0).astype(np.float32)
    values = np.clip(np.rint(parts / scale), -LEVELS, LEVELS)
    return (values + ZERO_POINT).astype(np.uint8), scale


def quantise_blocks(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """4 bits, -8..7, of a (K, N) matrix as (N, blocks, BLOCK), and float16 scales (N, blocks).

    The block's largest value lies near -8; of scales around that the one with the least squared
    error is taken. The last block is filled with zeros.
    """
    inner, columns = weight.shape
    blocks = -(-inner // BLOCK)
    padded = np.zeros((columns, blocks * BLOCK), np.float32)
    padded[:, :inner] = weight.T
    parts = padded.reshape(columns, blocks, BLOCK)
    peak = np.take_along_axis(parts, np.abs(parts).argmax(axis=2, keepdims=True), axis=2)
    peak = np.where(peak == 0, np.float32(-NIBBLE), peak)
    best = np.full_like(peak, np.inf)
    scale = np.empty_like(peak)
    for factor in np.linspace(0.6, 1.1, 26, dtype=np.float32):
        candidate = _half(peak / -NIBBLE * factor)
        rounded = np.clip(np.rint(parts / candidate), -NIBBLE, NIBBLE - 1)
        error = np.square(rounded * candidate - parts).sum(axis=2, keepdims=True)
        scale = np.where(error < best, candidate, scale)
        best = np.minimum(error, best)
    values = np.clip(np.rint(parts / scale), -NIBBLE, NIBBLE - 1).astype(np.int8)
    return values, scale[:, :, 0].astype(np.float16)


def _half(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to what float16 can hold, and never to zero."""
    least = np.finfo(np.float16).smallest_normal
    kept = np.sign(x) * np.maximum(np.abs(x), least)
    return kept.astype(np.float16).astype(np.float32)


class Int8Weights:
    """Implements `export.graphs.Weights` with int8 matrices; `listing`: for a shortlist."""

    rows: Literal[1, 2] = 2

    def __init__(self, tensors: Tensors, listing: bool = False) -> None:
        self.tensors, self.listing = tensors, listing

    def embed(self, graph: Graph, ids: str) -> str:
        if not self.listing:
            table, scale, size = self._bytes(graph)
            attributes = {"gather_axis": 0, "quantize_axis": 2, "block_size": size, "bits": 8}
            rows = graph.add("GatherBlockQuantized", table, ids, scale, domain=MICROSOFT,
                             name="token_embedding.blocks", **attributes)  # fmt: skip
            return graph.add("Reshape", rows, "flat_shape", name="token_embedding")
        table, scale = self._columns(graph)
        rows = graph.add("Gather", table, ids, name="token_embedding.int8")
        scales = graph.add("Gather", scale, ids, name="token_embedding.scale")
        rows = graph.add("Cast", rows, name="token_embedding.float", to=TensorProto.FLOAT)
        return graph.add("Mul", rows, scales, name="token_embedding")

    def linear(self, graph: Graph, x: str, name: str) -> str:
        weight = self.tensors[f"{name}.weight"]
        values, scale = quantise_bytes(weight)
        stored = graph.constant(f"{name}.weight.uint8", values)
        scales = graph.constant(f"{name}.weight.scale", scale[:, :, 0])
        bias = graph.constant(f"{name}.bias", self.tensors[f"{name}.bias"])
        return by_blocks(graph, x, name, [stored, scales, "", "", bias], 8, weight.shape)

    def head(self, graph: Graph, x: str) -> str:
        if not self.listing:
            table, scale, size = self._bytes(graph)
            entries, width = self.tensors["wte.weight"].shape
            graph.constant("by_block", np.array([entries, -1], np.int64))
            scales = graph.add("Reshape", scale, "by_block", name="head.scales")  # at loading
            return by_blocks(graph, x, "head", [table, scales], 8, (width, entries))
        table, scale = self._columns(graph)
        weight = graph.add("Transpose", table, name="head.weight", perm=[1, 0])
        graph.constant("flat", np.array([-1], np.int64))
        scale = graph.add("Reshape", scale, "flat", name="head.scale")
        return self._product_by_row(graph, x, "head", weight, scale)

    def listed(self, graph: Graph, x: str, names: ListingSpec) -> None:
        scales, table_scales = names.column_scales, names.table_scales
        assert scales and table_scales
        width = self.tensors["wte.weight"].shape[1]
        graph.default(names.columns, np.zeros((width, 1), np.int8), width, "columns")
        graph.default(scales, np.ones(1, np.float32), "columns")
        self._product_by_row(graph, x, names.listed_logits, names.columns, scales)
        table, scale = self._columns(graph)
        graph.add("Gather", table, names.table_ids, name=names.table_rows)
        graph.add("Gather", scale, names.table_ids, name=table_scales)
        graph.output(names.listed_logits, TensorProto.FLOAT, ["listed", "columns"])
        graph.output(names.table_rows, TensorProto.INT8, ["table", width])
        graph.output(table_scales, TensorProto.FLOAT, ["table", 1])

    def _bytes(self, graph: Graph) -> tuple[str, str, int]:
        """The table (vocabulary, blocks, size), its scales (vocabulary, blocks, 1), the size."""
        values, scale = quantise_bytes(np.ascontiguousarray(self.tensors["wte.weight"].T))
        stored = graph.constant("wte.weight.uint8", values)
        return stored, graph.constant("wte.weight.scale", scale), values.shape[2]

    def _columns(self, graph: Graph) -> tuple[str, str]:
        """The table (vocabulary, width), its scales (vocabulary, 1)."""
        if "wte.weight.int8" not in graph.initializers:
            values, scale = quantise_columns(np.ascontiguousarray(self.tensors["wte.weight"].T))
            graph.constant("wte.weight.int8", values.T)
            graph.constant("wte.weight.scale", scale[:, None])
        return "wte.weight.int8", "wte.weight.scale"

    def _product_by_row(self, graph: Graph, x: str, name: str, weight: str, scale: str) -> str:
        """Each row is divided by its peak before and multiplied by it after the product."""
        step = graph.constant("unit.step", np.array(1 / LEVELS, np.float32))
        zero = graph.constant("unit.zero_point", np.array(ZERO_POINT, np.uint8))
        graph.constant("last_axis", np.array([-1], np.int64))
        graph.constant("tiny", np.array(TINY, np.float32))
        size = graph.add("Abs", x, name=f"{name}.abs")
        peak = graph.add("ReduceMax", size, "last_axis", name=f"{name}.absmax", keepdims=1)
        peak = graph.add("Max", peak, "tiny", name=f"{name}.peak")
        unit = graph.add("Div", x, peak, name=f"{name}.unit")
        eight = graph.add("QuantizeLinear", unit, step, zero, name=f"{name}.uint8")
        product = f"{name}.unscaled"
        operands = [eight, weight, step, scale, zero]
        graph.add("MatMulIntegerToFloat", *operands, name=product, domain=MICROSOFT)
        return graph.add("Mul", product, peak, name=name)


def by_blocks(
    graph: Graph, x: str, name: str, operands: list[str], bits: int, shape: tuple[int, ...]
) -> str:
    """x @ a matrix of that shape, stored in blocks: values, scales[, "", "", bias]."""
    size = numpy_helper.to_array(graph.initializers[operands[0]]).shape[2] * 8 // bits
    return graph.add("MatMulNBits", x, *operands, name=name, domain=MICROSOFT, K=shape[0],
                     N=shape[1], bits=bits, block_size=size,
                     accuracy_level=4)  # fmt: skip  # activations in 8 bits, by block of a row


class Int4Weights(Int8Weights):
    """The layers' matrices in 4 bits; embedding and LM head as in int8."""

    def linear(self, graph: Graph, x: str, name: str) -> str:
        weight = self.tensors[f"{name}.weight"]
        values, scale = quantise_blocks(weight)
        nibbles = (values + NIBBLE).astype(np.uint8)
        graph.constant(f"{name}.weight.scale", scale)
        scales = graph.add(
            "Cast", f"{name}.weight.scale", name=f"{name}.weight.scales", to=TensorProto.FLOAT
        )  # once, at loading
        stored = graph.constant(f"{name}.weight.int4", nibbles[..., ::2] | nibbles[..., 1::2] << 4)
        bias = graph.constant(f"{name}.bias", self.tensors[f"{name}.bias"])
        return by_blocks(graph, x, name, [stored, scales, "", "", bias], 4, weight.shape)


def dequantise(model: onnx.ModelProto) -> Tensors:
    """All float32 tensors of a graph that this package built, whatever its precision."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors: Tensors = {}
    for name, tensor in stored.items():
        value = numpy_helper.to_array(tensor)
        if name.endswith(".weight.int8"):
            base = name.removesuffix(".int8")
            scale = numpy_helper.to_array(stored[f"{base}.scale"])
            by_row = base == "wte.weight"
            tensors[base] = value.astype(np.float32) * (scale.reshape(-1, 1) if by_row else scale)
        elif name.endswith(".weight.int4"):
            base = name.removesuffix(".int4")
            scale = numpy_helper.to_array(stored[f"{base}.scale"])
            tensors[base] = _from_nibbles(value, scale, _inner_size(model, name))
        elif name.endswith(".weight.uint8"):
            base = name.removesuffix(".uint8")
            scale = numpy_helper.to_array(stored[f"{base}.scale"]).reshape(*value.shape[:2], 1)
            table = (value.astype(np.float32) - ZERO_POINT) * scale
            table = table.reshape(len(value), -1)[:, : _inner_size(model, name)]
            tensors[base] = np.ascontiguousarray(table if base == "wte.weight" else table.T)
        elif name.endswith((".weight", ".bias")):
            tensors[name] = value.astype(np.float32)
    return tensors


def _from_nibbles(
    packed: NDArray[np.uint8], scale: NDArray[np.float16], inner: int
) -> NDArray[np.float32]:
    """(N, blocks, BLOCK / 2) -> (inner, N)."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.float32) - NIBBLE
    columns, blocks, _ = packed.shape
    values = pairs.reshape(columns, blocks, BLOCK) * scale[:, :, None].astype(np.float32)
    return np.ascontiguousarray(values.reshape(columns, -1)[:, :inner].T)


def _inner_size(model: onnx.ModelProto, weight: str) -> int:
    node = next(
        node for node in model.graph.node if weight in node.input and node.op_type == "MatMulNBits"
    )
    sizes: dict[str, Any] = {attribute.name: attribute.i for attribute in node.attribute}
    return int(sizes["K"])
