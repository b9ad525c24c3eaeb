"""Per-token int8: weights round to the nearest step, and silence stays silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from app.bundle import Bundle
from export.bundle import build_model
from export.checkpoint import load_checkpoint
from export.graphs import MICROSOFT, OPSET, Graph
from export.quantize import Int8Weights, dequantise, quantise_columns


def test_columns_round_to_the_nearest_step() -> None:
    weight = np.random.default_rng(0).normal(0, 1, (64, 32)).astype(np.float32)
    weight[:, 5] = 0.0
    weight[:, 6] *= 1e-3
    values, scale = quantise_columns(weight)
    assert values.dtype == np.int8 and scale.shape == (32,)
    assert (np.abs(values * scale - weight) <= scale / 2 + 1e-7).all()
    assert (np.abs(values).max(axis=0)[np.arange(32) != 5] == 127).all()


@pytest.fixture(scope="module")
def linear() -> tuple[ort.InferenceSession, np.ndarray]:
    """One quantised product as a model: x (rows, 64) -> y (rows, 48)."""
    weight = np.random.default_rng(1).normal(0, 1, (64, 48)).astype(np.float32)
    graph = Graph()
    weights = Int8Weights({"a.weight": weight, "a.bias": np.zeros(48, np.float32)})
    out = weights.linear(graph, "x", "a", bias=False)
    info = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "linear",
            [info("x", onnx.TensorProto.FLOAT, ["rows", 64])],
            [info(out, onnx.TensorProto.FLOAT, ["rows", 48])],
            list(graph.initializers.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
    )
    model.ir_version = 10
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session, weight


def test_product_is_close_at_any_scale(linear: tuple[ort.InferenceSession, np.ndarray]) -> None:
    session, weight = linear
    x = np.random.default_rng(2).normal(0, 1, (9, 64)).astype(np.float32)
    x *= np.logspace(-6, 6, 9, dtype=np.float32)[:, None]
    exact = x @ weight
    error = np.abs(session.run(None, {"x": x})[0] - exact).max(axis=1)
    assert (error < 0.03 * np.abs(exact).max(axis=1)).all()


def test_rows_do_not_touch_each_other(linear: tuple[ort.InferenceSession, np.ndarray]) -> None:
    session, _ = linear
    x = np.random.default_rng(3).normal(0, 1, (5, 64)).astype(np.float32)
    alone = session.run(None, {"x": x[:1]})[0][0]
    x[1:] *= 1e4
    assert np.array_equal(session.run(None, {"x": x})[0][0], alone)


def test_zero_rows_give_zeros(linear: tuple[ort.InferenceSession, np.ndarray]) -> None:
    session, _ = linear
    x = np.zeros((3, 64), np.float32)
    x[1] = 1.0
    out = session.run(None, {"x": x})[0]
    assert np.isfinite(out).all()
    assert not out[0].any() and not out[2].any() and out[1].any()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_dequantise_gives_every_tensor_back(random_checkpoint: Path, precision: str) -> None:
    checkpoint = load_checkpoint(random_checkpoint)
    tensors = dequantise(build_model(checkpoint, precision))  # type: ignore[arg-type]
    assert tensors.keys() == checkpoint.tensors.keys()
    for name, value in tensors.items():
        original = checkpoint.tensors[name]
        limit = {"fp32": 0.0, "fp16": 1e-3, "int8": 0.5 / 127}[precision]
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
        if tensor.name.endswith(".int8"):
            assert tensor.raw_data == stored[tensor.name].raw_data
