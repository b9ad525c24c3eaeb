"""What this machine can do at most: bytes read and operations a second, and a step's bound by it.

Bandwidth is measured with a buffer of a model's size (which a cache may hold) and with a large one,
every core reading its own part; the peaks of fp32 and int8 by large matrix products. A bundle
flows in as well: bytes of weights, operations, and from both the shortest time of a decode step.
Run as `python -m benchmarks.roofline`; engine_profile.py compares the engine's steps with it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from app.bundle import Bundle
from app.engine.memory import CacheSize
from benchmarks.command import parser

LARGE_BYTES = 512 * 2**20
SIDE = 2048  # of the square products
TRIALS = 15


@dataclass(frozen=True)
class Machine:
    """Measured peaks: bytes read and operations (a multiply and an add are two) per second."""

    cores: int
    bytes_per_s: float  # of a buffer as large as the model
    bytes_per_s_large: float
    fp32_per_s: float
    int8_per_s: float


@dataclass(frozen=True)
class Work:
    """Of a decode step: weights read once, cache read for each row, operations for each row."""

    weight_bytes: int
    token_bytes: int
    products: int  # weights that each row is multiplied with

    @classmethod
    def of(cls, bundle: Bundle) -> Work:
        model = onnx.load(str(bundle.model_path))
        sizes = {t.name: len(t.raw_data) for t in model.graph.initializer}
        spec = bundle.manifest.model
        gathered = spec.context * spec.width  # positions: a row of them each
        return cls(
            sum(sizes.values()) - sizes.get("wpe.weight", 0),
            CacheSize.of(bundle.manifest, 1).token_bytes,
            spec.parameters - gathered,
        )

    def bytes(self, rows: int, length: float) -> float:
        return self.weight_bytes + rows * length * self.token_bytes

    def operations(self, rows: int, length: float) -> float:
        """Attention: each cached float of key or value is multiplied and added once."""
        return rows * 2 * (self.products + length * self.token_bytes / 4)

    def bounds(
        self, machine: Machine, precision: str, rows: int, length: float
    ) -> dict[str, float]:
        """Seconds that a step takes at least, by memory and by arithmetic."""
        peak = machine.int8_per_s if precision == "int8" else machine.fp32_per_s
        return {
            "memory": self.bytes(rows, length) / machine.bytes_per_s,
            "arithmetic": self.operations(rows, length) / peak,
        }


def fastest(run: Callable[[], object], trials: int = TRIALS) -> float:
    """Seconds of the quickest of some runs: a peak is what was reached once."""
    times = []
    for _ in range(trials):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def bandwidth(size: int, cores: int) -> float:
    """Bytes read per second; each core goes over its own part of the buffer, again and again."""
    buffer = np.ones(size // 4, np.int32)
    parts = np.array_split(buffer, cores)
    times = max(1, 256 * 2**20 // size)

    def read(part: Any) -> None:
        for _ in range(times):
            np.bitwise_or.reduce(part)

    with ThreadPoolExecutor(cores) as pool:
        return times * size / fastest(lambda: list(pool.map(read, parts)))


def product(kind: str, cores: int) -> float:
    """Operations per second of a square product in ONNX Runtime, constant weights packed."""
    rng = np.random.default_rng(0)
    shape = [SIDE, SIDE]
    if kind == "int8":
        weight = rng.integers(-127, 128, shape).astype(np.int8)
        node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
        given, out = TensorProto.UINT8, TensorProto.INT32
        x = rng.integers(0, 256, shape).astype(np.uint8)
    else:
        weight = rng.standard_normal(shape).astype(np.float32)
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        given = out = TensorProto.FLOAT
        x = rng.standard_normal(shape).astype(np.float32)
    graph = helper.make_graph(
        [node], "product", [helper.make_tensor_value_info("x", given, shape)],
        [helper.make_tensor_value_info("y", out, shape)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores
    session = ort.InferenceSession(model.SerializeToString(), options)
    return 2 * SIDE**3 / fastest(lambda: session.run(None, {"x": x}))


def measure(size: int) -> Machine:
    cores = len(os.sched_getaffinity(0))
    return Machine(
        cores, bandwidth(size, cores), bandwidth(LARGE_BYTES, cores),
        max(product("fp32", cores), numpy_product()), product("int8", cores),
    )  # fmt: skip


def numpy_product() -> float:
    square = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
    return 2 * SIDE**3 / fastest(lambda: square @ square)


def main(argv: Sequence[str] | None = None) -> int:
    commands = parser("roofline", __doc__)
    arguments = commands.parse_args(argv)
    work = Work.of(Bundle.open(arguments.bundle))
    machine = measure(work.weight_bytes)
    sys.stdout.write(json.dumps({**asdict(machine), **asdict(work)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
