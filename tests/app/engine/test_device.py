"""The decoder for GPUs, on the CPU provider; with `-m gpu` the same on CUDA.

On the CPU it must give the bits of the plain decoder of the same bundle, on CUDA about the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.bundle import Bundle
from app.engine.device import DeviceDecoder, DeviceLogits, _RowReader, needs
from app.engine.request import Decoder, Request, Sampling
from app.engine.runtime import Device
from app.engine.sampling import Sampler, choose, greedy
from app.engine.session import OnnxDecoder
from app.errors import InvalidField
from app.metrics import Metrics
from app.settings import DEFAULT_BUNDLE
from tests.app.engine import driver
from tests.app.engine.listeners import Listener, answers, running
from tests.fakes import ignore

RELATIVE = 0.02  # of the largest logit: fp16 on a GPU against fp16 on a CPU
PROMPTS = [[5, 9, 200, 31], [7], [400, 3, 3, 8, 90, 91, 92, 12, 13], [50] * 21]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    name: Device = request.param
    return name


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that are copied from the device, from here on."""
    found: list[int] = []
    read = _RowReader.read

    def recorded(self: _RowReader, row: int) -> NDArray[np.float32]:
        found.append(row)
        return read(self, row)

    monkeypatch.setattr(_RowReader, "read", recorded)
    return found


def run(decoder: Decoder, requests: Sequence[Request]) -> driver.Driver:
    made = driver.Driver(decoder, chunk=64)  # type: ignore[arg-type]
    for one in requests:
        made.add(one)
    made.run()
    return made


def rows_of(logits: DeviceLogits) -> NDArray[np.float32]:
    return np.stack([logits[row] for row in range(len(logits))])


def alike(ours: DeviceLogits, plain: NDArray[np.float32], device: Device) -> None:
    rows = rows_of(ours)
    if device == "cpu":
        assert np.array_equal(rows, plain)
    else:
        assert np.abs(rows - plain).max() <= RELATIVE * np.abs(plain).max()
    ids, logprobs = ours.best()
    expected = greedy(rows)  # of the device's own rows: no tolerance for ids, lowest on ties
    assert ids.dtype == np.int64 and ids.tolist() == expected[0].tolist()
    assert logprobs == pytest.approx(expected[1], abs=1e-5)


def test_the_plain_decoder_s_logits(fp16_bundle: Bundle, device: Device) -> None:
    """Fresh prompts, a chunk behind another, steps of any number of rows, moved and forked rows."""
    plain = OnnxDecoder(fp16_bundle, slots=5, spare=1, threads=1)
    ours = DeviceDecoder(fp16_bundle, slots=5, spare=1, threads=1, device=device)
    alike(ours.prefill(0, PROMPTS), plain.prefill(0, PROMPTS), device)
    for part, start in (([8] * 6, 0), ([9, 10, 11], 6)):
        alike(ours.prefill(4, [part], start), plain.prefill(4, [part], start), device)
    lengths = np.array([*map(len, PROMPTS), 9], np.int32)
    rng = np.random.default_rng(1)
    for step, rows in enumerate((5, 5, 3, 5, 1, 5)):
        tokens = rng.integers(0, plain.vocabulary, rows)
        alike(ours.decode(tokens, lengths[:rows]), plain.decode(tokens, lengths[:rows]), device)
        lengths[:rows] += 1
        if step == 2:
            for decoder in (plain, ours):
                decoder.move(3, 5, int(lengths[3]))  # to the spare slot, and back elsewhere
                decoder.move(5, 1, int(lengths[3]))
            lengths[1] = lengths[3]


def test_the_buffers_of_a_step_stay(fp16_bundle: Bundle, device: Device) -> None:
    decoder = DeviceDecoder(fp16_bundle, slots=2, threads=1, device=device)
    decoder.prefill(0, PROMPTS[:2])
    seen = set()
    for length in range(10, 14):
        decoder.decode(np.array([4, length]), np.array([length, length], np.int32))
        values = decoder._steps[2].values
        seen.add(tuple(value.data_ptr() for value in values.values()))
        where = {name: value.device_name() for name, value in values.items()}
        total = where.pop(fp16_bundle.manifest.graph.total_sequence_length)
        assert total == "cpu" and set(where.values()) == {device}
    assert len(seen) == 1


def test_only_rows_that_a_sampler_needs_are_copied(
    fp16_bundle: Bundle, device: Device, reads: list[int]
) -> None:
    decoder = DeviceDecoder(fp16_bundle, slots=4, threads=1, device=device)
    reads.clear()  # of the golden answer
    logits = decoder.prefill(0, PROMPTS)
    best = int(logits.best()[0][1])
    options = [Sampling(no_repeat_ngram=3), Sampling(min_tokens=3), Sampling(1.0, seed=4)]
    samplers = [None, *(Sampler(one, end_ids=[best]) for one in options)]
    ids, logprobs = choose(logits, samplers)
    needed = {3} | ({2} if int(logits.best()[0][2]) == best else set())
    assert set(reads) == needed and len(reads) == len(needed)  # each of them once
    samplers = [None, Sampler(Sampling(min_tokens=3), end_ids=[best]), None, None]
    reads.clear()
    again = choose(logits, samplers)  # the best of row 1 is forbidden: the next best
    assert reads == [1] and again[0][1] != best
    expected = choose(rows_of(logits), [None, Sampler(Sampling(min_tokens=3), end_ids=[best])])
    assert again[0][:2].tolist() == expected[0][:2].tolist()


def test_a_greedy_request_copies_no_row(
    fp16_bundle: Bundle, device: Device, reads: list[int]
) -> None:
    decoder = DeviceDecoder(fp16_bundle, slots=4, threads=1, device=device)
    reads.clear()
    plain = [Request(tuple(p), 12, ignore, frozenset()) for p in PROMPTS]
    told = run(decoder, plain).answers()
    assert [len(tokens) for tokens, _ in told] == [12] * 4 and reads == []


def test_every_kind_of_request(fp16_bundle: Bundle, device: Device) -> None:
    """Greedy, sampled, searched, penalised; the same steps as over the plain decoder."""
    requests = driver.mixed(44, 3, fp16_bundle.manifest.model.vocabulary, longest=90)
    decoders = (
        OnnxDecoder(fp16_bundle, slots=8, spare=1, threads=1),
        DeviceDecoder(fp16_bundle, slots=8, spare=1, threads=1, device=device),
    )
    plain, ours = (run(one, requests) for one in decoders)
    assert {reason for _, reason in ours.answers()} <= {"stop", "length"}
    assert not any(report.failures for report in ours.reports)
    if device == "cuda":
        return
    for (expected, end), (found, ending) in zip(plain.answers(), ours.answers(), strict=True):
        assert ([t.id for t in found], ending) == ([t.id for t in expected], end)
        logprobs = [t.logprob for t in expected]
        assert [t.logprob for t in found] == pytest.approx(logprobs, abs=1e-4)


def test_the_engine_and_its_metrics(fp16_bundle: Bundle, device: Device) -> None:
    metrics = Metrics()
    listeners = [Listener() for _ in PROMPTS]
    requests = [
        Request(tuple(p), 9, listener, frozenset(), Sampling(temperature=i / 2, seed=i))
        for i, (p, listener) in enumerate(zip(PROMPTS, listeners, strict=True))
    ]
    with running(DeviceDecoder(fp16_bundle, slots=3, threads=1, device=device), metrics) as engine:
        engine.submit(requests)
        told = answers(requests)
        assert metrics.registry.get_sample_value("gpt2mt_slots") == 3
    assert metrics.registry.get_sample_value("gpt2mt_slots") == 0  # none is left
    assert [len(tokens) for tokens, _ in told] == [9] * len(PROMPTS)
    assert metrics.registry.get_sample_value("gpt2mt_generated_tokens_total") == 36


def test_greedy_ids_of_real_prompts(
    tmp_path_factory: pytest.TempPathFactory, device: Device
) -> None:
    """The bundled model as fp16: on a CPU the plain decoder's ids, on CUDA nearly all of them."""
    from export.bundle import convert_bundle
    from export.verify import greedy as trace
    from export.verify import sample_prompts

    folder: Path = tmp_path_factory.mktemp("bundles") / "fp16"
    bundle = convert_bundle(DEFAULT_BUNDLE, folder, precision="fp16", verify=False)
    prompts = sample_prompts(bundle, (), 8)
    expected = trace(OnnxDecoder(bundle, slots=8, threads=1), prompts, 12)
    found = ids_of(DeviceDecoder(bundle, slots=8, threads=1, device=device), prompts, 12)
    same = sum(one.ids == ids for one, ids in zip(expected, found, strict=True))
    assert same == 8 if device == "cpu" else same >= 6


def ids_of(
    decoder: DeviceDecoder, prompts: Sequence[list[int]], steps: int
) -> list[list[int]]:
    ids = [decoder.prefill(0, prompts).best()[0]]
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    for step in range(steps - 1):
        ids.append(decoder.decode(ids[-1], lengths + step).best()[0])
    found: list[list[int]] = np.stack(ids, axis=1).tolist()
    return found


def test_rows_of_a_run_are_gone_after_the_next(fp16_bundle: Bundle, device: Device) -> None:
    decoder = DeviceDecoder(fp16_bundle, slots=2, threads=1, device=device)
    first = decoder.prefill(0, PROMPTS[:2])
    kept, best = first[0].copy(), first.best()
    decoder.decode(np.array([4]), np.array([20], np.int32))
    assert np.array_equal(first[0], kept) and first.best()[0] is best[0]
    with pytest.raises(ValueError, match="row 1 was asked for after"):
        first[1]
    for row in (-1, 2):
        with pytest.raises(IndexError, match="of 2"):
            first[row]


def test_a_row_that_is_not_finite_has_no_log_probability() -> None:
    class Reader:
        run = 0

    sums = np.array([1.5, np.nan, np.inf], np.float32)
    logprobs = DeviceLogits(np.zeros(3, np.int64), sums, Reader()).best()[1]  # type: ignore[arg-type]
    assert logprobs[0] == pytest.approx(-math.log(1.5))
    assert all(map(math.isnan, logprobs[1:]))


def test_other_bundles_are_refused(
    int8_bundle: Bundle, fp16_bundle: Bundle, device: Device
) -> None:
    assert needs(fp16_bundle) is None
    with pytest.raises(InvalidField, match=r"this one is int8; make one with `gpt2-mt export"):
        DeviceDecoder(int8_bundle, slots=1, device=device)
