"""Quantised products: the slow ones' values, the same bits in any company, no zero divided by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from app.bundle import Bundle
from app.engine.runtime import create_session
from export import quantize
from export.bundle import Precision, build_model
from export.checkpoint import load_checkpoint
from export.graphs import MICROSOFT, OPSET, Graph
from export.quantize import (
    BLOCK,
    Int4Weights,
    Int8Weights,
    dequantise,
    quantise_blocks,
    quantise_bytes,
    quantise_columns,
)


def test_columns_round_to_the_nearest_step() -> None:
    weight = np.random.default_rng(0).normal(0, 1, (64, 32)).astype(np.float32)
    weight[:, 5] = 0.0
    weight[:, 6] *= 1e-3
    values, scale = quantise_columns(weight)
    assert values.dtype == np.int8 and scale.shape == (32,)
    assert (np.abs(values * scale - weight) <= scale / 2 + 1e-7).all()
    assert (np.abs(values).max(axis=0)[np.arange(32) != 5] == 63).all()


def test_blocks_round_to_the_nearest_of_sixteen_steps() -> None:
    weight = np.random.default_rng(0).normal(0, 1, (40, 6)).astype(np.float32)
    weight[:, 2] = 0.0
    weight[:16, 3] *= 1e-3  # of a scale of its own
    values, scale = quantise_blocks(weight)
    assert values.shape == (6, 3, BLOCK) and scale.shape == (6, 3) and scale.dtype == np.float16
    assert values.min() >= -8 and values.max() <= 7
    back = (values * scale[:, :, None].astype(np.float32)).reshape(6, -1)
    assert not back[:, 40:].any() and not back[2].any()
    peak = np.abs(weight.T).max(axis=1)
    assert (np.abs(back[:, :40] - weight.T).max(axis=1) <= 0.13 * peak + 1e-7).all()
    assert np.abs(back[3, :16] - weight[:16, 3]).max() <= 0.13 * np.abs(weight[:16, 3]).max()


@pytest.mark.parametrize(
    ("inner", "blocks", "size"), [(256, 1, 256), (384, 3, 128), (1024, 4, 256), (40, 3, 16)]
)
def test_bytes_round_to_the_nearest_step(inner: int, blocks: int, size: int) -> None:
    weight = np.random.default_rng(0).normal(0, 1, (inner, 6)).astype(np.float32)
    weight[:, 2] = 0.0
    weight[:16, 3] *= 1e-3
    values, scale = quantise_bytes(weight)
    assert values.shape == (6, blocks, size) and scale.shape == (6, blocks, 1)
    assert values.dtype == np.uint8 and values.min() >= 1
    back = ((values.astype(np.float32) - 128) * scale).reshape(6, -1)
    assert not back[:, inner:].any() and not back[2].any()
    steps = np.repeat(scale, size, axis=2).reshape(6, -1)[:, :inner]
    assert (np.abs(back[:, :inner] - weight.T) <= steps / 2 + 1e-7).all()


K, N = 256, 48
WEIGHT = np.random.default_rng(1).normal(0, 1, (K, N)).astype(np.float32)
BIAS = np.random.default_rng(5).normal(0, 1, N).astype(np.float32)
Linear = tuple[str, ort.InferenceSession]


@pytest.fixture(scope="module", params=["int8", "int4"])
def linear(request: pytest.FixtureRequest) -> Linear:
    """One quantised product as a model: x (rows, 256) -> y (rows, 48)."""
    graph, tensors = Graph(), {"a.weight": WEIGHT, "a.bias": BIAS}
    weights = (Int4Weights if request.param == "int4" else Int8Weights)(tensors)
    return request.param, session_of(graph, weights.linear(graph, "x", "a"), N)


def session_of(graph: Graph, out: str, columns: int) -> ort.InferenceSession:
    """x (rows, 256) -> `out` (rows, columns)."""
    info = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "product",
            [info("x", onnx.TensorProto.FLOAT, ["rows", K])],
            [info(out, onnx.TensorProto.FLOAT, ["rows", columns])],
            list(graph.initializers.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
    )
    model.ir_version = 10
    return create_session(model.SerializeToString(), threads=2)


def slow(kind: str, x: np.ndarray) -> np.ndarray:
    """The same product in plain float64."""
    if kind == "int4":  # its kernel rounds x by blocks in ways of its own
        values, scale = quantise_blocks(WEIGHT)
        weight = (values * scale[:, :, None].astype(np.float64)).reshape(N, K).T
        return x @ weight + BIAS
    stored, scales = quantise_bytes(WEIGHT)  # one block
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    rounded = np.rint(x / np.maximum(step, 1e-30))
    whole = rounded @ (stored[:, 0].T.astype(np.float64) - 128)
    return whole * scales[:, 0, 0] * step + BIAS


def test_product_is_the_slow_one(linear: Linear) -> None:
    kind, session = linear
    x = np.random.default_rng(2).normal(0, 1, (9, K)).astype(np.float32)
    x *= np.logspace(-4, 4, 9, dtype=np.float32)[:, None]
    expected = slow(kind, x.astype(np.float64))
    error = np.abs(session.run(None, {"x": x})[0] - expected).max(axis=1)
    limit = 0.02 if kind == "int4" else 0.005
    assert (error <= limit * np.abs(expected).max(axis=1)).all()


@pytest.mark.parametrize("kind", ["blocks", "columns", "older"])
def test_nothing_saturates(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything at its largest: without VNNI, pairs of products are added up in 16 bits. Older
    bundles' columns have 127 levels; they are constants."""
    signs = np.random.default_rng(6).choice([-1, 1], (N, K), p=[0.1, 0.9]).astype(np.float32)
    signs[0] = 1
    graph, x = Graph(), np.ones((4, K), np.float32)
    x[1], x[2] = -1, signs[1]
    if kind == "older":
        monkeypatch.setattr(quantize, "COLUMN_LEVELS", 127)
    if kind == "blocks":
        tensors = {"a.weight": np.ascontiguousarray(signs.T), "a.bias": np.zeros(N, np.float32)}
        out = Int8Weights(tensors).linear(graph, "x", "a")
    else:
        out = Int8Weights({"wte.weight": signs}, listing=True).head(graph, "x")
    found = session_of(graph, out, N).run(None, {"x": x})[0]
    assert np.abs(found - x @ signs.T).max() < 0.01  # of 256


def test_rows_do_not_touch_each_other(linear: Linear) -> None:
    """Bit by bit, for many even numbers of rows, whatever the others hold."""
    _, session = linear
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (70, K)).astype(np.float32)
    alone = np.concatenate([session.run(None, {"x": x[[i, i]]})[0][:1] for i in range(70)])
    for rows in (*range(2, 18, 2), 24, 32, 34, 64, 66, 70):
        first = int(rng.integers(0, 71 - rows))
        out = session.run(None, {"x": x[first : first + rows]})[0]
        assert np.array_equal(out, alone[first : first + rows]), rows
    x[1:] *= 1e4
    x[2] = 0
    for rows in (2, 4, 8, 34):
        assert np.array_equal(session.run(None, {"x": x[:rows]})[0][0], alone[0]), rows


def test_zero_rows_give_the_bias(linear: Linear) -> None:
    _, session = linear
    x = np.zeros((4, K), np.float32)
    x[1] = 1.0
    out = session.run(None, {"x": x})[0]
    assert np.array_equal(out[0], BIAS) and np.array_equal(out[2], BIAS)
    assert np.isfinite(out).all() and not np.array_equal(out[1], BIAS)


def test_nothing_is_divided_by_zero() -> None:
    """What every row of a shortlist's head is divided by, of a row of zeros too."""
    graph = Graph()
    Int8Weights({"wte.weight": WEIGHT}, listing=True).head(graph, "x")
    [division] = [node for node in graph.nodes if node.op_type == "Div"]
    [guard] = [node for node in graph.nodes if division.input[1] in node.output]
    assert guard.op_type == "Max" and "tiny" in guard.input


@pytest.mark.parametrize("listing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_dequantise_gives_every_tensor_back(
    random_checkpoint: Path, precision: Precision, listing: bool
) -> None:
    checkpoint = load_checkpoint(random_checkpoint)
    listing = listing and precision != "fp16"
    tensors = dequantise(build_model(checkpoint, precision, listing=listing))
    assert tensors.keys() == checkpoint.tensors.keys()
    for name, value in tensors.items():
        original = checkpoint.tensors[name]
        limit = {"fp32": 0.0, "fp16": 1e-3, "int8": 0.5 / 127, "int4": 0.13}[precision]
        if listing and name == "wte.weight" and precision != "fp32":
            limit = 0.5 / 63
        assert value.shape == original.shape and value.dtype == np.float32
        assert np.abs(value - original).max() <= limit * np.abs(original).max() * 1.001, name


def test_int8_of_int8_is_the_same(int8_bundle: Bundle, random_checkpoint: Path) -> None:
    """A restored checkpoint exports to the very same int8 weights: nothing is lost twice."""
    first = onnx.load(str(int8_bundle.model_path))
    checkpoint = load_checkpoint(random_checkpoint)
    checkpoint.tensors.update(dequantise(first))
    second = build_model(checkpoint, "int8")
    stored = {t.name: t for t in second.graph.initializer}
    for tensor in first.graph.initializer:
        if tensor.name.endswith(".uint8"):
            assert tensor.raw_data == stored[tensor.name].raw_data
