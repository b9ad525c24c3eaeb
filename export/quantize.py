"""Int8 and int4 products: the same answer in any company, because no row's scale sees another row.

Int8: activations are rounded to uint8 with one calibrated scale for the whole input (`Activation`),
or, where calibration found none good enough, each row with its own (its absolute maximum); the
product with int8 weights (symmetric, one scale per column) is exact in int32. The embedding has
one scale per token and is stored once: the LM head reads its transpose, which the runtime folds
when it loads the graph. Int4: the layers' matrices in blocks of `BLOCK` values of 4 bits with a
scale each; embedding and LM head stay int8.
In: float32 tensors. Out: nodes in a `Graph`; `dequantise` gives the tensors back from a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from app.graph import ListingSpec
from export.checkpoint import Tensors
from export.graphs import MICROSOFT, Graph

LEVELS: Final = 127
ZERO_POINT: Final = 128  # activations are uint8 around 128: x86 multiplies uint8 by int8
# The one block size whose product is bit-equal for any number of rows on all processors tried. With
# AVX2 a lone row of 32 and more is added up in another order, with AVX-512 an odd last row of 64.
BLOCK: Final = 16
NIBBLE: Final = 8  # 4-bit values are stored as 0..15 around 8
TINY: Final = 1e-30  # what an all-zero row is divided by


@dataclass(frozen=True, slots=True)
class Activation:
    """How the input of a product is rounded: x is about (integer - zero_point) * scale."""

    scale: float
    zero_point: int


def quantise_columns(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale per column; an all-zero column keeps scale 1."""
    peak = np.abs(weight).max(axis=0)
    scale = np.where(peak > 0, peak / LEVELS, 1.0).astype(np.float32)
    rounded = np.rint(weight / scale)
    return np.clip(rounded, -LEVELS, LEVELS).astype(np.int8), scale


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
    """Implements `export.graphs.Weights` with int8 matrices.

    `activations` names the products (`h.0.attn.c_attn`, ...) whose input has one scale; the inputs
    of the others are rounded row by row.
    """

    def __init__(self, tensors: Tensors, activations: Mapping[str, Activation]) -> None:
        self.tensors, self.activations = tensors, activations

    def embed(self, graph: Graph, ids: str) -> str:
        table, scale = self._table(graph)
        rows = graph.add("Gather", table, ids, name="token_embedding.int8")
        scales = graph.add("Gather", scale, ids, name="token_embedding.scale")
        rows = graph.add("Cast", rows, name="token_embedding.float", to=TensorProto.FLOAT)
        return graph.add("Mul", rows, scales, name="token_embedding")

    def linear(self, graph: Graph, x: str, name: str) -> str:
        values, scale = quantise_columns(self.tensors[f"{name}.weight"])
        weight = graph.constant(f"{name}.weight.int8", values)
        weight_scale = graph.constant(f"{name}.weight.scale", scale)
        bias = graph.constant(f"{name}.bias", self.tensors[f"{name}.bias"])
        return self._product(graph, x, name, [weight, weight_scale, bias])

    def head(self, graph: Graph, x: str) -> str:
        table, scale = self._table(graph)
        weight = graph.add("Transpose", table, name="head.weight", perm=[1, 0])
        graph.constant("flat", np.array([-1], np.int64))
        scale = graph.add("Reshape", scale, "flat", name="head.scale")
        return self._product(graph, x, "head", [weight, scale])

    def listed(self, graph: Graph, x: str, names: ListingSpec) -> None:
        scales, table_scales = names.column_scales, names.table_scales
        assert scales and table_scales
        width = self.tensors["wte.weight"].shape[1]
        graph.default(names.columns, np.zeros((width, 1), np.int8), width, "columns")
        graph.default(scales, np.ones(1, np.float32), "columns")
        self._product(graph, x, names.listed_logits, [names.columns, scales])
        table, scale = self._table(graph)
        graph.add("Gather", table, names.table_ids, name=names.table_rows)
        graph.add("Gather", scale, names.table_ids, name=table_scales)
        graph.output(names.listed_logits, TensorProto.FLOAT, ["listed", "columns"])
        graph.output(names.table_rows, TensorProto.INT8, ["table", width])
        graph.output(table_scales, TensorProto.FLOAT, ["table", 1])

    def _table(self, graph: Graph) -> tuple[str, str]:
        if "wte.weight.int8" not in graph.initializers:
            values, scale = quantise_columns(np.ascontiguousarray(self.tensors["wte.weight"].T))
            graph.constant("wte.weight.int8", values.T)
            graph.constant("wte.weight.scale", scale[:, None])
        return "wte.weight.int8", "wte.weight.scale"

    def _product(self, graph: Graph, x: str, name: str, weight: list[str]) -> str:
        """x @ weight, and the bias where there is one; weight: values, scales[, bias]."""
        activation = self.activations.get(name)
        if activation is None:
            return self._product_by_row(graph, x, name, weight)
        step = graph.constant(f"{name}.step", np.array(activation.scale, np.float32))
        zero = graph.constant(f"{name}.zero_point", np.array(activation.zero_point, np.uint8))
        eight = graph.add("QuantizeLinear", x, step, zero, name=f"{name}.uint8")
        values, scale, *bias = weight
        operands = [eight, values, step, scale, zero, *(["", *bias] if bias else [])]
        return graph.add("MatMulIntegerToFloat", *operands, name=name, domain=MICROSOFT)

    def _product_by_row(self, graph: Graph, x: str, name: str, weight: list[str]) -> str:
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
        values, scale, *bias = weight
        product = f"{name}.unscaled"
        operands = [eight, values, step, scale, zero]
        graph.add("MatMulIntegerToFloat", *operands, name=product, domain=MICROSOFT)
        scaled = graph.add("Mul", product, peak, name=f"{name}.scaled" if bias else name)
        return graph.add("Add", scaled, *bias, name=name) if bias else scaled


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
        return graph.add(
            "MatMulNBits",
            x,
            graph.constant(f"{name}.weight.int4", nibbles[..., ::2] | nibbles[..., 1::2] << 4),
            scales,
            "",
            "",
            graph.constant(f"{name}.bias", self.tensors[f"{name}.bias"]),
            name=name,
            domain=MICROSOFT,
            K=weight.shape[0],
            N=weight.shape[1],
            bits=4,
            block_size=BLOCK,
            accuracy_level=4,  # activations in 8 bits, by block of a row
        )


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
    node = next(node for node in model.graph.node if weight in node.input)
    sizes: dict[str, Any] = {attribute.name: attribute.i for attribute in node.attribute}
    return int(sizes["K"])
