"""The bundle's graph on ONNX Runtime, as the engine's `Decoder`.

One contiguous array per layer for keys and one for values, (slots, heads, capacity, head_size),
lives as long as the decoder; every run binds a range of leading or neighbouring slots as past and
present at once, so the cache is updated in place and never copied. Token ids go in, float32 logits
of each row's last position come out. Lengths are validated here: a wrong one would make the
kernel read outside the cache.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.bundle import Bundle
from app.engine.golden import check_golden, listed_alike
from app.engine.graph import check_graph
from app.engine.listing import Listing, least_columns
from app.engine.memory import COLUMNS, CacheSize
from app.engine.request import Logits, Only
from app.errors import BundleError, InvalidField

log = logging.getLogger("app.engine")

Device = Literal["cpu", "cuda"]
PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CGROUP: Final = Path("/sys/fs/cgroup")


def available_threads(root: Path = CGROUP) -> int:
    """Cores this process may use: its affinity, cut by the cgroup's quota (v2, then v1)."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _quota(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def _quota(root: Path) -> float | None:
    try:
        limit, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return float(limit) / float(period) if float(limit) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None


def create_session(
    model: str | bytes, device: Device = "cpu", threads: int | None = None
) -> ort.InferenceSession:
    """A session with explicit threads; a device that is not there is an error, not a fallback."""
    provider = PROVIDERS.get(device)
    if provider is None:
        raise InvalidField(f"device {device!r} is not one of {sorted(PROVIDERS)}", param="device")
    if provider not in ort.get_available_providers():
        raise InvalidField(
            f"device {device!r}: this onnxruntime has no {provider} "
            f"(it has {ort.get_available_providers()}); install the 'gpu' extra",
            param="device",
        )
    if threads is not None and threads < 1:
        raise InvalidField(f"threads is {threads}, at least 1 is needed", param="threads")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # shapes vary from run to run
    options.log_severity_level = 3
    # Without VNNI, uint8 x int8 products saturate; this makes them exact (and changes no other).
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = ort.InferenceSession(
            model, options, providers=[provider], disabled_optimizers=["SkipLayerNormFusion"]
        )  # on CPUs the fused node is five times slower than its parts
    except Exception as error:  # the binding's exceptions share no base
        raise BundleError(f"the model cannot be loaded: {error}", param="model.onnx") from error
    if provider not in session.get_providers():
        raise InvalidField(f"device {device!r} cannot be used: {provider} failed", param="device")
    return session


@dataclass(frozen=True, slots=True)
class _Step:
    """Buffers and binding of a decode run of one batch size."""

    binding: ort.IOBinding
    ids: NDArray[np.int64]  # (n, 1)
    positions: NDArray[np.int64]  # (n,)
    seqlens_k: NDArray[np.int32]  # (n,)
    total: NDArray[np.int32]  # ()
    feeds: dict[str, NDArray[Any]]  # the same buffers and the others, by name
    held: tuple[Any, ...]  # what the binding points into


class OnnxDecoder:
    """Implements `app.engine.request.Decoder`. For one thread; not re-entrant."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        slots: int,
        spare: int = 0,
        capacity: int | None = None,
        device: Device = "cpu",
        threads: int | None = None,
        lists: bool = False,
    ) -> None:
        """`lists`: requests may have candidates; the bundle's graph must be made for that."""
        manifest = bundle.manifest
        limit = manifest.limits.context
        self.slots, self.spare = slots, spare
        self.capacity = limit if capacity is None else capacity
        self.vocabulary = manifest.model.vocabulary
        if slots < 1:
            raise InvalidField(f"slots is {slots}, at least 1 is needed", param="slots")
        if not COLUMNS <= self.capacity <= limit:
            raise InvalidField(
                f"capacity is {capacity}, the model takes {COLUMNS} to {limit}",
                param="capacity",
            )
        if device == "cuda" and manifest.model.precision != "fp16":
            raise InvalidField(
                f"device 'cuda' needs an fp16 bundle, this one is {manifest.model.precision}: "
                "restore a checkpoint from it and export that with --precision fp16",
                param="device",
            )
        self._session = create_session(str(bundle.model_path), device, threads)
        check_graph(self._session, bundle)
        self._names, self._device, self._end = manifest.graph, device, manifest.tokens.end
        self._caches = _Caches(bundle, slots + spare, self.capacity, device)
        self._steps: dict[int, _Step] = {}
        self.lists, self._listing = lists, self._list(bundle, threads) if lists else None
        self._steps_among: dict[int, _Step] = {}  # others: what is bound to an input stays
        self._warm_up()
        self.alike = self._check(bundle)

    def _check(self, bundle: Bundle) -> bool | None:
        """The bundle's golden answer; whether a row in company has the same bits, where told."""
        manifest = bundle.manifest
        alike = check_golden(self, manifest.golden) if manifest.golden is not None else None
        if self.lists and not listed_alike(self, [self._end] * COLUMNS):
            alike = False
        if alike is False and manifest.model.precision != "fp16":  # which promises nothing
            log.warning(
                "%s: on this processor answers may differ in the last bits with the batch",
                manifest.name,
            )
        return alike

    def _warm_up(self) -> None:
        """A prefill and a decode at the last position: what does not fit fails here, not later."""
        try:
            self.prefill(0, [[self._end] * COLUMNS])
            last = np.array([self.capacity - 1], np.int32)
            self.decode(np.array([self._end], np.int64), last)
        except Exception as error:  # the binding's exceptions share no base
            raise BundleError(
                f"the model does not run as its manifest says: {error}", param="model.onnx"
            ) from error

    def _list(self, bundle: Bundle, threads: int | None) -> Listing:
        manifest, device = bundle.manifest, self._device
        if manifest.graph.listing is None or device != "cpu":
            raise InvalidField(
                f"a shortlist needs a bundle that was exported with one, on a CPU: "
                f"{manifest.name!r} on {device!r}",
                param="shortlist",
            )
        least = least_columns(threads or available_threads(), self.slots)
        run = self._bind_prefill(0, [[self._end] * COLUMNS], 0)
        return Listing(self._session, manifest.graph, manifest.model, run[0], least)

    def prefill(self, first: int, prompts: Sequence[Sequence[int]], start: int = 0) -> Logits:
        """Read prompts, or one on from `start`; logits of each last position."""
        binding, held = self._bind_prefill(first, prompts, start)
        logits = self._run(binding, len(prompts))
        del held
        return logits

    def prefill_among(
        self, first: int, prompts: Sequence[Sequence[int]], only: Only, start: int = 0
    ) -> list[Logits]:
        assert self._listing is not None
        binding, held = self._bind_prefill(first, prompts, start)
        logits = self._listing.run(binding, only, decodes=False)
        del held
        return logits

    def _bind_prefill(
        self, first: int, prompts: Sequence[Sequence[int]], start: int
    ) -> tuple[ort.IOBinding, tuple[Any, ...]]:
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        rows = len(lengths)
        if rows == 0 or first < 0 or first + rows > self.slots:
            raise ValueError(f"prefill of {rows} slots from {first}: there are {self.slots}")
        if start and (rows > 1 or start < 0 or start % COLUMNS):
            raise ValueError(f"prefill of {rows} slots, start {start}: one slot, even start")
        longest = int(lengths.max())
        if lengths.min() < 1 or start + longest > self.capacity:
            raise ValueError(
                f"prompt lengths {lengths.tolist()} are outside 1..{self.capacity - start}"
            )
        time = longest + longest % COLUMNS
        ids = np.full((rows, time), self._end, np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        self._check_ids(ids)
        binding = self._session.io_binding()
        positions = np.minimum(np.arange(start, start + time), self.capacity - 1)
        feeds = {
            self._names.ids: ids,
            self._names.positions: np.tile(positions, rows),
            self._names.last_index: np.arange(rows, dtype=np.int64) * time + (lengths - 1),
            # Of a later chunk the kernel finds the start by taking the columns from the length.
            self._names.seqlens_k: lengths - 1 if not start else lengths * 0 + (start + time - 1),
            # Equal to the padded length: this marks a run of fresh prompts.
            self._names.total_sequence_length: np.array(start + time, np.int32),
        }
        held = _bind_inputs(binding, feeds)
        self._caches.bind(binding, first, rows)
        return binding, held

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]) -> Logits:
        """One token for each of the slots 0..n-1, which hold `lengths` tokens."""
        return self._run(self._bind_decode(tokens, lengths, self._steps), len(tokens))

    def decode_among(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int32], only: Only
    ) -> list[Logits]:
        assert self._listing is not None
        binding = self._bind_decode(tokens, lengths, self._steps_among)
        return self._listing.run(binding, only, decodes=True)

    def _bind_decode(
        self,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int32],
        steps: dict[int, _Step],
    ) -> ort.IOBinding:
        rows = len(tokens)
        if not 1 <= rows <= self.slots or lengths.shape != (rows,):
            raise ValueError(f"decode of {rows} rows, {lengths.shape} lengths, {self.slots} slots")
        longest = int(lengths.max())
        if int(lengths.min()) < 1 or longest >= self.capacity:
            raise ValueError(f"lengths {lengths.tolist()} are outside 1..{self.capacity - 1}")
        self._check_ids(tokens)
        step = steps.get(rows)
        if step is None:
            step = steps[rows] = self._make_step(rows)
        step.ids[:, 0] = tokens
        step.positions[:] = lengths
        step.seqlens_k[:] = lengths
        step.total[...] = longest + 1
        if self._device != "cpu":  # there, binding means copying to the device
            _bind_inputs(step.binding, step.feeds)
        return step.binding

    def move(self, source: int, target: int, length: int, start: int = 0) -> None:
        """Copy the cached positions start..length-1 of slot `source` to those of slot `target`."""
        for slot in (source, target):
            if not 0 <= slot < self.slots + self.spare:
                raise ValueError(f"slot {slot} is outside 0..{self.slots + self.spare - 1}")
        if not 0 <= start <= length <= self.capacity:
            raise ValueError(f"length {length} from {start} is outside 0..{self.capacity}")
        if source != target:
            self._caches.move(source, target, length, start)

    def _check_ids(self, ids: NDArray[np.int64]) -> None:
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            raise ValueError(f"token ids are outside 0..{self.vocabulary - 1}")

    def _make_step(self, rows: int) -> _Step:
        names, binding = self._names, self._session.io_binding()
        ids, positions = np.zeros((rows, 1), np.int64), np.zeros(rows, np.int64)
        seqlens_k, total = np.zeros(rows, np.int32), np.zeros((), np.int32)
        feeds: dict[str, NDArray[Any]] = {
            names.ids: ids,
            names.positions: positions,
            names.last_index: np.arange(rows, dtype=np.int64),
            names.seqlens_k: seqlens_k,
            names.total_sequence_length: total,
        }
        held = _bind_inputs(binding, feeds)
        self._caches.bind(binding, 0, rows)
        return _Step(binding, ids, positions, seqlens_k, total, feeds, held)

    def _run(self, binding: ort.IOBinding, rows: int) -> Logits:
        # A new array each time: an answer must not change under the caller at the next run.
        logits = np.empty((rows, self.vocabulary), np.float32)
        binding.bind_output(
            self._names.logits, "cpu", 0, np.float32, logits.shape, logits.ctypes.data
        )
        self._session.run_with_iobinding(binding)
        return logits


def _bind_inputs(binding: ort.IOBinding, feeds: dict[str, NDArray[Any]]) -> tuple[Any, ...]:
    """Bind host arrays without a copy; what is returned must outlive the binding's runs."""
    held: list[Any] = []
    for name, array in feeds.items():
        value = ort.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(name, value)
        held += [array, value]
    return tuple(held)


class _Caches:
    """Keys and values of all slots, bound by address so that a slot range is only an offset."""

    def __init__(self, bundle: Bundle, slots: int, capacity: int, device: Device) -> None:
        model, names = bundle.manifest.model, bundle.manifest.graph
        self._device = device
        self._dtype: type[Any] = np.float16 if names.cache_dtype == "float16" else np.float32
        room = CacheSize.of(bundle.manifest, slots, capacity).tokens
        self._slot_shape = (model.heads, room, model.head_size)
        self._slot_bytes = math.prod(self._slot_shape) * np.dtype(self._dtype).itemsize
        shape = (slots, *self._slot_shape)
        self._entries: list[tuple[str, str, int]] = []  # past name, present name, address
        self._arrays: list[NDArray[Any]] = []
        self._values: list[ort.OrtValue] = []
        for layer in range(model.layers):
            for past, present in (
                (names.past_key, names.present_key),
                (names.past_value, names.present_value),
            ):
                address = self._allocate(shape)
                self._entries.append(
                    (past.format(layer=layer), present.format(layer=layer), address)
                )
        self._copy = None if device == "cpu" else _device_copy(device)

    def _allocate(self, shape: tuple[int, ...]) -> int:
        if self._device == "cpu":
            self._arrays.append(np.zeros(shape, self._dtype))
            return int(self._arrays[-1].ctypes.data)
        value = ort.OrtValue.ortvalue_from_shape_and_type(shape, self._dtype, self._device, 0)
        self._values.append(value)
        return int(value.data_ptr())

    def bind(self, binding: ort.IOBinding, first: int, rows: int) -> None:
        shape = (rows, *self._slot_shape)
        for past, present, address in self._entries:
            where = address + first * self._slot_bytes
            binding.bind_input(past, self._device, 0, self._dtype, shape, where)
            binding.bind_output(present, self._device, 0, self._dtype, shape, where)

    def move(self, source: int, target: int, length: int, start: int) -> None:
        for array in self._arrays:
            array[target, :, start:length] = array[source, :, start:length]
        if self._copy is None:
            return
        shape = self._slot_shape  # whole slots: one contiguous piece each
        for _, _, address in self._entries:
            binding = self._copy.io_binding()
            binding.bind_input(
                "x", self._device, 0, self._dtype, shape, address + source * self._slot_bytes
            )
            binding.bind_output(
                "y", self._device, 0, self._dtype, shape, address + target * self._slot_bytes
            )
            self._copy.run_with_iobinding(binding)


# A model of one node, Identity from x to y (float16, any shape): a copy that stays on the device.
_IDENTITY: Final = bytes.fromhex(
    "080a3a4d0a100a017812017922084964656e746974791201635a1a0a017812150a13080a120f0a03120161"
    "0a031201620a03120163621a0a017912150a13080a120f0a031201610a031201620a0312016342040a001015"
)


def _device_copy(device: Device) -> ort.InferenceSession:
    return create_session(_IDENTITY, device, 1)
