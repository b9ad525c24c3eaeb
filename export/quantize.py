"""Per-token int8: the same answer in any company, because integers add up exactly.

Activations: each row is divided by its own absolute maximum and rounded to 8 bits, so no other row
of the batch can matter; the product with int8 weights (symmetric, one scale per column) is exact
in int32 and is multiplied back. The embedding has one scale per token and is stored once: the LM
head reads its transpose, which the runtime folds when it loads the graph.
In: float32 tensors. Out: nodes in a `Graph`; `dequantise` gives the tensors back from a model.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from export.checkpoint import Tensors
from export.graphs import MICROSOFT, Graph

LEVELS: Final = 127
ZERO_POINT: Final = 128  # activations are uint8 around 128: x86 multiplies uint8 by int8


def quantise_columns(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale per column; an all-zero column keeps scale 1."""
    peak = np.abs(weight).max(axis=0)
    scale = np.where(peak > 0, peak / LEVELS, 1.0).astype(np.float32)
    rounded = np.rint(weight / scale)
    return np.clip(rounded, -LEVELS, LEVELS).astype(np.int8), scale


class Int8Weights:
    """Implements `export.graphs.Weights` with int8 matrices and per-token activations."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def embed(self, graph: Graph, ids: str) -> str:
        table, scale = self._table(graph)
        rows = graph.add("Gather", table, ids, name="token_embedding.int8")
        scales = graph.add("Gather", scale, ids, name="token_embedding.scale")
        rows = graph.add("Cast", rows, name="token_embedding.float", to=TensorProto.FLOAT)
        graph.constant("column_axis", np.array([1], np.int64))
        scales = graph.add("Unsqueeze", scales, "column_axis", name="token_embedding.column")
        return graph.add("Mul", rows, scales, name="token_embedding")

    def linear(self, graph: Graph, x: str, name: str, *, bias: bool) -> str:
        values, scale = quantise_columns(self.tensors[f"{name}.weight"])
        weight = graph.constant(f"{name}.weight.int8", values)
        weight_scale = graph.constant(f"{name}.weight.scale", scale)
        product = self._product(graph, x, name, weight, weight_scale)
        if not bias:
            return product
        offset = graph.constant(f"{name}.bias", self.tensors[f"{name}.bias"])
        return graph.add("Add", product, offset, name=f"{name}.biased")

    def head(self, graph: Graph, x: str) -> str:
        table, scale = self._table(graph)
        weight = graph.add("Transpose", table, name="head.weight", perm=[1, 0])
        return self._product(graph, x, "head", weight, scale)

    def _table(self, graph: Graph) -> tuple[str, str]:
        if "wte.weight.int8" not in graph.initializers:
            values, scale = quantise_columns(np.ascontiguousarray(self.tensors["wte.weight"].T))
            graph.constant("wte.weight.int8", values.T)
            graph.constant("wte.weight.scale", scale)
        return "wte.weight.int8", "wte.weight.scale"

    def _product(self, graph: Graph, x: str, name: str, weight: str, scale: str) -> str:
        """x @ weight with x quantised row by row.

        An all-zero row is divided by zero; whatever integers that becomes, they are multiplied by
        the row's peak, zero. A guard would be one more node for each of the products.
        """
        graph.constant("step", np.array(1 / LEVELS, np.float32))
        graph.constant("zero_point", np.array(ZERO_POINT, np.uint8))
        graph.constant("last_axis", np.array([-1], np.int64))
        size = graph.add("Abs", x, name=f"{name}.abs")
        peak = graph.add("ReduceMax", size, "last_axis", name=f"{name}.absmax", keepdims=1)
        unit = graph.add("Div", x, peak, name=f"{name}.unit")
        eight = graph.add("QuantizeLinear", unit, "step", "zero_point", name=f"{name}.uint8")
        product = graph.add(
            "MatMulIntegerToFloat",
            *(eight, weight, "step", scale, "zero_point"),
            name=f"{name}.unscaled",
            domain=MICROSOFT,
        )
        return graph.add("Mul", product, peak, name=name)


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
            tensors[base] = value.astype(np.float32) * (scale[:, None] if by_row else scale)
        elif name.endswith((".weight", ".bias")):
            tensors[name] = value.astype(np.float32)
    return tensors
