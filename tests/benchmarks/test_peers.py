"""Conversions and workers on a tiny model: every installed fp32 peer gives our fp32's ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.settings import DEFAULT_BUNDLE
from benchmarks import convert, peers
from benchmarks.engine_profile import Clock, by_operator
from benchmarks.engines import ENGINES
from benchmarks.models import extend_vocabulary, random_tensors, write_large
from benchmarks.roofline import Machine, Work
from benchmarks.tables import agreement
from benchmarks.worker import Worker, WorkerFailed
from export.bundle import export_bundle, restore_checkpoint
from export.checkpoint import Dimensions

TINY = Dimensions(
    layers=2, heads=2, width=64, inner=256, vocabulary=16_500, context=64, epsilon=1e-5
)
PROMPTS = [[20, 300, 4000, 5], [7, 16_400], [9] * 9]
TOKENS = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    restore_checkpoint(DEFAULT_BUNDLE, folder / "bundled")
    write_large(folder / "bundled", folder / "checkpoint", TINY, seed=1)
    export_bundle(folder / "checkpoint", folder / "fp32", precision="fp32", verify=False)
    return folder


@pytest.fixture(scope="module")
def wanted(place: Path) -> list[list[int]]:
    rows = ENGINES["ours"](place / "fp32")(PROMPTS, TOKENS)
    assert [len(row) for row in rows] == [TOKENS] * len(PROMPTS)
    return rows


@pytest.mark.parametrize(
    ("module", "engine", "form"),
    [
        ("ctranslate2", "ctranslate2", "ctranslate2-fp32"),
        ("transformers", "transformers", "checkpoint"),
        ("optimum.onnxruntime", "optimum", "optimum-fp32"),
        ("llama_cpp", "llama_cpp", "llama-fp32"),
        ("onnxruntime_genai", "genai", "genai-fp32"),
    ],
)
def test_a_peer_computes_the_same_model(
    place: Path, wanted: list[list[int]], module: str, engine: str, form: str
) -> None:
    pytest.importorskip(module)
    for of in ("optimum.onnxruntime", module):  # genai reads optimum's graph
        for name, write in convert.FORMS.get(of.partition(".")[0], lambda _: {})(
            place / "checkpoint"
        ).items():
            if name.endswith("fp32") and not (place / name).exists():
                if of != module and module != "onnxruntime_genai":
                    continue
                pytest.importorskip(of)
                write(place / name)
    rows = ENGINES[engine](place / form)(PROMPTS, TOKENS)
    assert agreement(rows, wanted) == (len(PROMPTS), 1.0)


def test_random_weights_are_the_seed_s() -> None:
    one, same, other = (random_tensors(TINY, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["wte.weight"], other["wte.weight"])
    assert one["h.1.ln_2.weight"].mean() == pytest.approx(1, abs=0.05)


def test_a_vocabulary_is_extended_to_the_model_s(place: Path) -> None:
    from tokenizers import Tokenizer

    text = extend_vocabulary(place / "bundled" / "tokenizer.json", 16_500)
    former = Tokenizer.from_file(str(place / "bundled" / "tokenizer.json"))
    extended = Tokenizer.from_str(text)
    assert extended.get_vocab_size() == 16_500
    line = "A sentence as before, <unused 3> and all."
    assert extended.encode(line).ids == former.encode(line).ids


def test_a_worker_answers_and_tells_its_failure(
    place: Path, wanted: list[list[int]], tmp_path: Path
) -> None:
    worker = Worker("ours", place / "fp32", {"threads": 1}, tmp_path / "log")
    rows, seconds = worker.ask(PROMPTS, TOKENS)
    assert rows == wanted and 0 < seconds < 60
    with pytest.raises(WorkerFailed, match="TooLong"):
        worker.ask([[1] * 100], TOKENS)
    with pytest.raises(WorkerFailed, match="no bundle|manifest"):
        Worker("ours", place / "none", {}, tmp_path / "log")


def test_ratio_tables_take_each_family_s_best() -> None:
    def result(family: str, detail: str, speeds: list[float]) -> dict[str, Any]:
        return {"family": family, "detail": detail, "tokens_per_s": dict.fromkeys((1, 8), speeds)}

    results = {"ours int8": result("ours int8", "", [30.0, 40.0, 50.0]),
               "peer, a": result("peer", "a", [9.0, 10.0, 11.0]),
               "peer, b": result("peer", "b", [20.0, 20.0, 20.0])}  # fmt: skip
    assert peers.families(results, 1)["peer"][0] == "peer, b"
    row = peers.ratio_table(results).splitlines()[-1]
    assert row.startswith("| peer | 20 (20-20), b | 2.00 |") and row.endswith("| - | - |")


def test_turns_are_the_same_prompts_in_calls() -> None:
    rows = [[i] for i in range(40)]
    assert peers.turns(rows, 1) == [[[i]] for i in range(peers.CALLS)]
    assert peers.turns(rows, 32) == [rows[:32]]


def test_bounds_of_a_step() -> None:
    work = Work(weight_bytes=1000, token_bytes=40, products=500)
    machine = Machine(2, 1e3, 1e3, 1e4, 1e5)
    assert work.bounds(machine, "int8", 2, 10) == {
        "memory": pytest.approx((1000 + 2 * 10 * 40) / 1e3),
        "arithmetic": pytest.approx(2 * 2 * (500 + 10 * 10) / 1e5),
    }
    assert work.bounds(machine, "fp32", 1, 0)["arithmetic"] == pytest.approx(1000 / 1e4)


def test_steps_are_runs_with_a_like_one_behind() -> None:
    clock = Clock([(0, 0.0, 1.0), (2, 2.0, 3.0), (2, 4.0, 5.5), (1, 6.0, 7.0)],
                  [(1.1, 1.2), (3.0, 3.25), (5.5, 5.6)])  # fmt: skip
    assert clock.steps(2) == [(2.0, 1.0, 0.25)]


def test_operators_are_summed_inside_of_the_spans() -> None:
    def kernel(name: str, ts: float, dur: float) -> dict[str, Any]:
        return {"name": f"{name}_1_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": name}}

    events = [kernel("Add", 0, 5), kernel("Add", 12, 1), kernel("MatMul", 14, 4),
              kernel("MatMul", 30, 6), kernel("Add", 36, 1), kernel("Add", 50, 9),
              {"name": "model_run", "ts": 10, "dur": 10}]  # fmt: skip
    found = by_operator(json.loads(json.dumps(events)), [(10, 20), (29, 40)])
    assert found == [("MatMul", 1, 5.0), ("Add", 1, 1.0)]
