"""The fused graph gives GPT-2's logits, in every precision, from very little a step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from app.bundle import Bundle
from app.engine.runtime import create_session
from app.engine.sampling import greedy
from app.engine.session import OnnxDecoder
from export.bundle import KVCache, Precision, build_model, export_bundle
from export.checkpoint import load_checkpoint
from export.graphs import HALF_OPSET, IR_VERSION, Graph, choose_best, graph_names
from export.verify import TorchOracle


@pytest.fixture(scope="module")
def oracle(random_checkpoint: Path) -> TorchOracle:
    return TorchOracle(random_checkpoint)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize(
    ("precision", "kv_cache", "limit"),
    [
        ("fp32", "float32", 1e-5),
        ("int8", "float32", 0.05),
        ("int8", "int8", 0.06),
        ("int4", "int8", 0.3),
        ("fp16", "float32", 5e-3),
    ],
)
def test_logits_are_those_of_transformers(
    random_checkpoint: Path,
    tmp_path: Path,
    oracle: TorchOracle,
    precision: Precision,
    kv_cache: KVCache,
    limit: float,
) -> None:
    bundle = export_bundle(
        random_checkpoint,
        tmp_path / "b",
        precision=precision,
        kv_cache=kv_cache,
        verify=False,
    )
    decoder = OnnxDecoder(bundle, slots=2, threads=1)
    ids = np.random.default_rng(3).integers(0, decoder.vocabulary, 60).tolist()
    assert relative(decoder.prefill(1, [ids[:40]])[0], oracle(ids[:40])[-1]) < limit
    logits = decoder.prefill(0, [ids[:3], ids[:40]])
    for length in range(3, 8):
        assert relative(logits[0], oracle(ids[:length])[-1]) < limit
        tokens = np.array([ids[length], 0], np.int64)
        logits = decoder.decode(tokens, np.array([length, 40], np.int32))


def test_every_position_of_the_context_can_be_used(
    fp32_bundle: Bundle, oracle: TorchOracle
) -> None:
    decoder = OnnxDecoder(fp32_bundle, slots=1, threads=1)
    ids = np.random.default_rng(4).integers(0, decoder.vocabulary, 128).tolist()
    expected = oracle(ids)[-1]
    assert relative(decoder.prefill(0, [ids])[0], expected) < 1e-5
    decoder.prefill(0, [ids[:-1]])
    last = decoder.decode(np.array(ids[-1:], np.int64), np.array([127], np.int32))[0]
    assert relative(last, expected) < 1e-5


def test_weights_are_stored_once(
    fp32_bundle: Bundle, int8_bundle: Bundle, int4_bundle: Bundle
) -> None:
    model = fp32_bundle.manifest.model
    fp32 = fp32_bundle.manifest.files["model.onnx"].bytes
    int8 = int8_bundle.manifest.files["model.onnx"].bytes
    assert fp32 < 4 * model.parameters + 20_000
    positions = model.context * model.width
    assert int8 < model.parameters + 4 * positions + 50_000
    int4 = int4_bundle.manifest.files["model.onnx"].bytes
    matrices = 12 * model.layers * model.width**2  # 5 bits each with their scales
    assert int4 < model.parameters - matrices * 3 / 8 + 4 * positions + 50_000


def test_few_nodes(random_checkpoint: Path) -> None:
    """Small operators cost as much as matrices at batch 1: none may creep in unnoticed."""
    checkpoint = load_checkpoint(random_checkpoint)
    layers = checkpoint.dimensions.layers

    def count(precision: Precision, **more: bool) -> Counter[str]:
        nodes = build_model(checkpoint, precision, **more).graph.node
        return Counter(node.op_type for node in nodes)

    fp32, int8, int4 = count("fp32"), count("int8"), count("int4")
    assert fp32.total() <= 14 + 12 * layers
    assert int8["MatMulNBits"] == int4["MatMulNBits"] == 4 * layers + 1
    assert int8.total() <= fp32.total() + 2  # one of them vanishes at loading
    assert int4.total() - int4["Cast"] == int8.total()
    assert count("int8", listing=True).total() <= count("fp32", listing=True).total() + 20


def test_fp16_graph_is_half_precision_throughout(random_checkpoint: Path) -> None:
    model = build_model(load_checkpoint(random_checkpoint), "fp16")
    onnx.checker.check_model(model)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert {kinds.pop(name) for name in ("every_id", "no_id")} == {onnx.TensorProto.FLOAT}
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}


def test_a_graph_for_gpus_uses_what_cuda_has(random_checkpoint: Path) -> None:
    """Kernels whose last version is over 18 run on the CPU there, and all logits with them."""
    model = build_model(load_checkpoint(random_checkpoint), "fp16")
    versions = {one.domain: one.version for one in model.opset_import}
    assert versions == {"": 18, "com.microsoft": 1}
    assert not {"ArgMax", "TopK"} & {node.op_type for node in model.graph.node}


def test_the_best_of_each_row_is_chosen_in_the_graph() -> None:
    """The lowest id of equal logits, as numpy's; a row that is not a number has no sum."""
    names, size = graph_names(half=True), 700
    graph = Graph(np.float16)
    choose_best(graph, names, size)
    info = onnx.helper.make_tensor_value_info
    outputs = [info(names.best_ids, onnx.TensorProto.INT64, ["n"]),
               info(names.best_sums, onnx.TensorProto.FLOAT, ["n"])]  # fmt: skip
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes, "best", [info(names.logits, onnx.TensorProto.FLOAT, ["n", size])],
            outputs, list(graph.initializers.values()),
        ),
        opset_imports=[onnx.helper.make_opsetid("", HALF_OPSET)], ir_version=IR_VERSION,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (40, size)).astype(np.float16).astype(np.float32)
    x[1] = 0.0  # all equal
    x[2, [650, 20, 21]] = 50.0
    x[3, 5:] = -np.inf
    x[4, 7], x[5, 9], x[6] = np.nan, np.inf, -np.inf
    ids, sums = create_session(model.SerializeToString(), threads=1).run(None, {names.logits: x})
    finite = np.isfinite(sums)
    assert np.flatnonzero(~finite).tolist() == [4, 5, 6]
    expected = greedy(x)
    assert ids[finite].tolist() == expected[0][finite].tolist() and ids[1:3].tolist() == [0, 20]
    logprobs = np.array(expected[1])
    np.testing.assert_allclose(-np.log(sums[finite]), logprobs[finite], atol=1e-6)
