"""The fused decoder graph, built node by node from a checkpoint's tensors.

One graph serves prefill and decode: packed-QKV `GroupQueryAttention` writes keys and values into
the caller's cache, hidden states are kept as (rows, width) with rows = batch * time, and each row's
last position is gathered before the last MLP and the LM head.
A graph for GPUs also chooses each row's best token, so that nothing else has to be copied back.
In: tensors and a `Weights` (how matrices are stored and multiplied: float here, integers in
quantize.py). Out: an `onnx.ModelProto` whose inputs and outputs `app.bundle.GraphSpec` describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.graph import CacheType, GraphSpec, ListingSpec
from export.checkpoint import Dimensions, Tensors

OPSET: Final = 21
# CUDA has Equal of 13 and ReduceMax and ReduceMin of 18 (ONNX Runtime's OperatorKernels.md); their
# later versions would run on the CPU, all logits with them.
HALF_OPSET: Final = 18
IR_VERSION: Final = 10
MICROSOFT: Final = "com.microsoft"
_CACHE_ELEMENTS: Final[dict[CacheType, int]] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
}


class Graph:
    """Nodes and initializers in the making; `add` returns the name of the node's output."""

    def __init__(self, dtype: type[np.generic] = np.float32) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.dtype = dtype

    def add(self, op: str, *inputs: str, name: str, domain: str = "", **attributes: Any) -> str:
        self.add_many(op, inputs, [name], domain=domain, **attributes)
        return name

    def add_many(
        self,
        op: str,
        inputs: tuple[str, ...] | list[str],
        outputs: list[str],
        domain: str = "",
        **attributes: Any,
    ) -> None:
        self.nodes.append(
            helper.make_node(
                op, list(inputs), outputs, name=f"{outputs[0]}_node", domain=domain, **attributes
            )
        )

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """An initializer as it is; the same name is stored once."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def weight(self, name: str, value: NDArray[np.float32]) -> str:
        """An initializer in the graph's own floating-point type."""
        return self.constant(name, value.astype(self.dtype))

    def default(self, name: str, value: NDArray[Any], *shape: str | int) -> str:
        """An input that need not be given."""
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return self.constant(name, value)

    def output(self, name: str, kind: int, shape: list[str | int]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))


class Weights(Protocol):
    """How the large matrices are stored and multiplied, so many rows at a time. Inputs are (rows,
    width)."""

    rows: Literal[1, 2]

    def embed(self, graph: Graph, ids: str) -> str:
        """Rows of the token embedding, (rows, width)."""

    def linear(self, graph: Graph, x: str, name: str) -> str:
        """x @ weight + bias."""

    def head(self, graph: Graph, x: str) -> str:
        """x @ embedding transposed: logits, (rows, vocabulary), in the graph's type."""

    def listed(self, graph: Graph, x: str, names: ListingSpec) -> None:
        """The head's product with columns that are an input, and the table they are taken from."""


class FloatWeights:
    """fp32 and fp16: embedding and LM head are one initializer."""

    rows: Literal[1, 2] = 1

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def embed(self, graph: Graph, ids: str) -> str:
        table = graph.weight("wte.weight", self.tensors["wte.weight"])
        return graph.add("Gather", table, ids, name="token_embedding")

    def linear(self, graph: Graph, x: str, name: str) -> str:
        weight = graph.weight(f"{name}.weight", self.tensors[f"{name}.weight"])
        offset = graph.weight(f"{name}.bias", self.tensors[f"{name}.bias"])
        return graph.add("Gemm", x, weight, offset, name=name)

    def head(self, graph: Graph, x: str) -> str:
        table = graph.weight("wte.weight", self.tensors["wte.weight"])
        return graph.add("Gemm", x, table, name="head", transB=1)

    def listed(self, graph: Graph, x: str, names: ListingSpec) -> None:
        width = self.tensors["wte.weight"].shape[1]
        graph.default(names.columns, np.zeros((1, width), np.float32), "columns", width)
        graph.add("Gemm", x, names.columns, name=names.listed_logits, transB=1)
        graph.add("Gather", "wte.weight", names.table_ids, name=names.table_rows)
        graph.output(names.listed_logits, TensorProto.FLOAT, ["listed", "columns"])
        graph.output(names.table_rows, TensorProto.FLOAT, ["table", width])


@dataclass(frozen=True, slots=True)
class CacheScale:
    """Of a layer's int8 keys and values: about integer * scale, one a channel, (width,)."""

    key: NDArray[np.float32]
    value: NDArray[np.float32]


class _Decoder:
    """Lays the decoder's nodes into a graph, layer by layer."""

    def __init__(
        self,
        graph: Graph,
        tensors: Tensors,
        weights: Weights,
        d: Dimensions,
        names: GraphSpec,
        cache: Sequence[CacheScale],
    ) -> None:
        self.graph, self.tensors, self.weights = graph, tensors, weights
        self.d, self.names, self.cache = d, names, cache

    def norm(self, name: str, x: str, skip: str) -> tuple[str, str]:
        """LayerNorm(x + skip) and the sum itself, the new residual."""
        graph, epsilon = self.graph, self.d.epsilon
        gamma, beta = (
            graph.weight(f"{name}.{kind}", self.tensors[f"{name}.{kind}"])
            for kind in ("weight", "bias")
        )
        residual = f"{name}.residual"
        if graph.dtype is np.float16:  # one kernel on GPUs
            graph.add_many(
                "SkipLayerNormalization",
                [x, skip, gamma, beta],
                [name, "", "", residual],
                MICROSOFT,
                epsilon=epsilon,
            )
        else:  # on CPUs that kernel is five times slower than the two
            graph.add("Add", x, skip, name=residual)
            graph.add("LayerNormalization", residual, gamma, beta, name=name, epsilon=epsilon)
        return name, residual

    def attention(self, layer: int, normed: str) -> str:
        """(rows, width) -> (rows, width); keys and values of this run enter the cache."""
        d, names, prefix = self.d, self.names, f"h.{layer}.attn"
        packed = self.weights.linear(self.graph, normed, f"{prefix}.c_attn")
        packed = self.graph.add("Reshape", packed, "packed_shape", name=f"{prefix}.packed")
        past_key = names.past_key.format(layer=layer)
        past_value = names.past_value.format(layer=layer)
        outputs = [
            f"{prefix}.mixed_3d",
            names.present_key.format(layer=layer),
            names.present_value.format(layer=layer),
        ]
        inputs = [packed, "", "", past_key, past_value, names.seqlens_k]
        inputs.append(names.total_sequence_length)
        attributes: dict[str, Any] = {"num_heads": d.heads, "kv_num_heads": d.heads}
        if self.cache:
            scale = self.cache[layer]
            inputs += [""] * 5  # rotary embeddings, positions, bias, sinks
            inputs.append(self.graph.constant(f"{prefix}.key.scale", scale.key))
            inputs.append(self.graph.constant(f"{prefix}.value.scale", scale.value))
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
            attributes["kv_cache_bit_width"] = 8
        self.graph.add_many("GroupQueryAttention", inputs, outputs, MICROSOFT, **attributes)
        return self.graph.add("Reshape", outputs[0], "flat_shape", name=f"{prefix}.mixed")

    def last(self, x: str) -> str:
        return self.graph.add("Gather", x, self.names.last_index, name=f"{x}.last")

    def build(self) -> str:
        """All nodes from ids to logits; returns the name of the logits."""
        graph, d, weights = self.graph, self.d, self.weights
        graph.constant("flat_shape", np.array([-1, d.width], np.int64))
        graph.constant("flat_ids", np.array([-1], np.int64))
        graph.constant("packed_width", np.array([3 * d.width], np.int64))
        shape = graph.add("Shape", self.names.ids, name="ids_shape")
        graph.add("Concat", shape, "packed_width", name="packed_shape", axis=0)
        ids = graph.add("Reshape", self.names.ids, "flat_ids", name="ids")
        x = weights.embed(graph, ids)
        table = graph.weight("wpe.weight", self.tensors["wpe.weight"])
        skip = graph.add("Gather", table, self.names.positions, name="position_embedding")
        for layer in range(d.layers):
            prefix = f"h.{layer}"
            normed, skip = self.norm(f"{prefix}.ln_1", x, skip)
            mixed = self.attention(layer, normed)
            if layer == d.layers - 1:  # from here on only the last position of a row matters
                mixed, skip = self.last(mixed), self.last(skip)
            x = weights.linear(graph, mixed, f"{prefix}.attn.c_proj")
            normed, skip = self.norm(f"{prefix}.ln_2", x, skip)
            inner = weights.linear(graph, normed, f"{prefix}.mlp.c_fc")
            # Adding the bias here would take as long again as the activation itself.
            inner = graph.add("FastGelu", inner, name=f"{prefix}.mlp.gelu", domain=MICROSOFT)
            x = weights.linear(graph, inner, f"{prefix}.mlp.c_proj")
        normed, _ = self.norm("ln_f", x, skip)
        if self.names.listing is not None:
            normed = self.listed(normed, self.names.listing)
        return weights.head(graph, normed)

    def listed(self, x: str, names: ListingSpec) -> str:
        """Computes chosen columns of chosen rows; returns the rows that get all columns."""
        graph = self.graph
        graph.default(names.listed_rows, np.zeros(0, np.int64), "listed")
        graph.default(names.table_ids, np.zeros(0, np.int64), "table")
        rows = graph.add("Gather", x, names.listed_rows, name="ln_f.listed")
        self.weights.listed(graph, rows, names)
        end = graph.default(names.whole_rows, np.array([np.iinfo(np.int64).max]), 1)
        first = graph.constant("first", np.zeros(1, np.int64))
        return graph.add("Slice", x, first, end, name="ln_f.whole")


def choose_best(graph: Graph, names: GraphSpec, vocabulary: int) -> None:
    """Of each row the id of the largest logit, and what its log-probability is made of.

    ArgMax and TopK would do on CPUs; on GPUs, which of equals they take is not defined.
    """
    assert names.best_ids is not None and names.best_sums is not None
    graph.constant("last_axis", np.array([-1], np.int64))
    graph.constant("every_id", np.arange(vocabulary, dtype=np.float32))
    graph.constant("no_id", np.array(vocabulary, np.float32))
    peak = graph.add("ReduceMax", names.logits, "last_axis", name="best.logit", keepdims=1)
    same = graph.add("Equal", names.logits, peak, name="best.is")
    ids = graph.add("Where", same, "every_id", "no_id", name="best.candidates")
    first = graph.add("ReduceMin", ids, "last_axis", name="best.first", keepdims=0)
    graph.add("Cast", first, name=names.best_ids, to=TensorProto.INT64)
    below = graph.add("Sub", names.logits, peak, name="best.below")
    shares = graph.add("Exp", below, name="best.shares")
    graph.add("ReduceSum", shares, "last_axis", name=names.best_sums, keepdims=0)


def sum_shares(graph: Graph, names: GraphSpec) -> None:
    """What the best id's log-probability is made of, for CPUs.

    Softmax and ReduceMax take a quarter of the time of numpy's exp, and use all threads; ArgMax,
    one by one and not vectorised, is left to numpy.
    """
    assert names.best_sums is not None
    graph.constant("last_axis", np.array([-1], np.int64))
    shares = graph.add("Softmax", names.logits, name="best.shares", axis=-1)
    largest = graph.add("ReduceMax", shares, "last_axis", name="best.share", keepdims=0)
    graph.add("Reciprocal", largest, name=names.best_sums)


def build_graph(
    tensors: Tensors,
    d: Dimensions,
    weights: Weights,
    *,
    half: bool = False,
    cache: Sequence[CacheScale] = (),
    listing: ListingSpec | None = None,
) -> onnx.ModelProto:
    """The whole model; `half`, for GPUs: activations and cache in float16, and the best ids;
    `cache`, one for each layer: an int8 cache; `listing`: it can compute chosen columns of the LM
    head."""
    names = graph_names(half=half, int8_cache=bool(cache), multiple=weights.rows, listing=listing)
    graph = Graph(np.float16 if half else np.float32)
    logits = _Decoder(graph, tensors, weights, d, names, cache).build()
    if half:
        graph.add("Cast", logits, name=names.logits, to=TensorProto.FLOAT)
        choose_best(graph, names, d.vocabulary)
    else:
        graph.nodes[-1].output[0] = names.logits
        sum_shares(graph, names)
    element = _CACHE_ELEMENTS[names.cache_dtype]
    shape: list[str | int | None] = ["batch", d.heads, "capacity", d.head_size]
    info = helper.make_tensor_value_info
    inputs = [
        info(names.ids, TensorProto.INT64, ["batch", "time"]),
        info(names.positions, TensorProto.INT64, ["rows"]),
        info(names.last_index, TensorProto.INT64, ["batch"]),
        info(names.seqlens_k, TensorProto.INT32, ["batch"]),
        info(names.total_sequence_length, TensorProto.INT32, []),
    ]
    outputs = [info(names.logits, TensorProto.FLOAT, ["batch", d.vocabulary])]
    if names.best_ids is not None:
        outputs.append(info(names.best_ids, TensorProto.INT64, ["batch"]))
    if names.best_sums is not None:
        outputs.append(info(names.best_sums, TensorProto.FLOAT, ["batch"]))
    for layer in range(d.layers):
        for past in (names.past_key, names.past_value):
            inputs.append(info(past.format(layer=layer), element, shape))
        for present in (names.present_key, names.present_value):
            outputs.append(info(present.format(layer=layer), element, shape))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "gpt2",
            inputs + graph.inputs,
            outputs + graph.outputs,
            list(graph.initializers.values()),
        ),
        opset_imports=[
            helper.make_opsetid("", HALF_OPSET if half else OPSET),
            helper.make_opsetid(MICROSOFT, 1),
        ],
        producer_name="gpt2-mt",
    )
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


def graph_names(
    *,
    half: bool = False,
    int8_cache: bool = False,
    multiple: Literal[1, 2] = 1,
    listing: ListingSpec | None = None,
) -> GraphSpec:
    if half:
        return GraphSpec(cache_dtype="float16", best_ids="best_ids", best_sums="best_sums")
    cache: CacheType = "int8" if int8_cache else "float32"
    return GraphSpec(
        cache_dtype=cache, row_multiple=multiple, best_sums="best_sums", listing=listing
    )


def listing_names(precision: str) -> ListingSpec:
    """Of a graph whose head is of that precision: int4's is int8."""
    if precision in ("int8", "int4"):
        return ListingSpec(column_scales="column_scales", table_scales="table_scales")
    return ListingSpec()
