"""The bundle's graph on ONNX Runtime, as the engine's `Decoder`.

One contiguous array per layer for keys and one for values, (slots, heads, capacity, head_size),
lives as long as the decoder; every run binds a range of leading or neighbouring slots as past and
present at once, so the cache is updated in place and never copied. Token ids go in, float32 logits
of each row's last position come out. Lengths are validated here: a wrong one would make the
kernel read outside the cache. `OnnxDecoder` is for CPUs; `app.engine.device` has the one for GPUs.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.bundle import Bundle
from app.engine.golden import check_golden, listed_alike
from app.engine.graph import CACHE_TYPES, check_graph
from app.engine.listed import ListedLogits
from app.engine.listing import Listing, Padding, host_logits, least_columns
from app.engine.memory import COLUMNS, CacheSize
from app.engine.request import HostLogits, Logits, Only
from app.engine.runtime import Device, available_threads, create_session
from app.errors import BundleError, InvalidField

log = logging.getLogger("app.engine")

L = TypeVar("L", bound=Logits)


@dataclass(frozen=True, slots=True)
class Step:
    """Buffers and binding of a decode run of one batch size."""

    binding: ort.IOBinding
    ids: NDArray[np.int64]  # (n, 1), without padding
    positions: NDArray[np.int64]  # (n,)
    seqlens_k: NDArray[np.int32]  # (n,)
    total: NDArray[np.int32]  # ()
    padding: Padding
    feeds: dict[str, NDArray[Any]]  # the same arrays, padded, and the others, by name
    values: dict[str, ort.OrtValue]  # what the binding points into


class GraphDecoder(ABC, Generic[L]):
    """Implements `app.engine.request.Decoder`, but for where buffers live and logits come out.

    For one thread; not re-entrant.
    """

    device: Device = "cpu"
    lists = False

    def __init__(
        self,
        bundle: Bundle,
        *,
        slots: int,
        spare: int = 0,
        capacity: int | None = None,
        threads: int | None = None,
    ) -> None:
        manifest = bundle.manifest
        limit = manifest.limits.context
        self.slots, self.spare = slots, spare
        self.capacity = limit if capacity is None else capacity
        self.vocabulary = manifest.model.vocabulary
        self.precision = manifest.model.precision
        if slots < 1:
            raise InvalidField(f"slots is {slots}, at least 1 is needed", param="slots")
        if not COLUMNS <= self.capacity <= limit:
            raise InvalidField(
                f"capacity is {capacity}, the model takes {COLUMNS} to {limit}",
                param="capacity",
            )
        self._session = create_session(str(bundle.model_path), self.device, threads)
        check_graph(self._session, bundle)
        self._names, self._end = manifest.graph, manifest.tokens.end
        self._multiple = manifest.graph.row_multiple
        self._caches = self._allocate(bundle)
        self._steps: dict[int, Step] = {}
        self._warm_up()
        self.alike = self._check(bundle)

    def _check(self, bundle: Bundle) -> bool | None:
        """The bundle's golden answer; whether a row in company has the same bits, where told."""
        golden = bundle.manifest.golden
        alike = check_golden(self, golden) if golden is not None else None
        if self.lists and not listed_alike(self, [self._end] * COLUMNS):
            alike = False
        if alike is False and self.precision != "fp16":  # which promises nothing
            log.warning(
                "%s: on this processor answers may differ in the last bits with the batch",
                bundle.manifest.name,
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

    def prefill(self, first: int, prompts: Sequence[Sequence[int]], start: int = 0) -> L:
        """Read prompts, or one on from `start`; logits of each last position."""
        binding, held = self._bind_prefill(first, prompts, start)
        logits = self._run(binding, len(prompts), self._behind(len(prompts)))
        del held
        return logits

    def prefill_among(
        self, first: int, prompts: Sequence[Sequence[int]], only: Only, start: int = 0
    ) -> ListedLogits:
        raise NotImplementedError(f"candidates on {self.device}")

    def decode_among(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int32], only: Only
    ) -> ListedLogits:
        raise NotImplementedError(f"candidates on {self.device}")

    def _bind_prefill(
        self, first: int, prompts: Sequence[Sequence[int]], start: int
    ) -> tuple[ort.IOBinding, Any]:
        """And what must outlive the run. Columns are even, so that only what is gathered of them,
        the last positions, may be uneven."""
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
        last = np.arange(rows, dtype=np.int64) * time + (lengths - 1)
        last = np.pad(last, (0, self._behind(rows).behind), mode="edge")
        feeds = {
            self._names.ids: ids,
            self._names.positions: np.tile(positions, rows),
            self._names.last_index: last,
            # Of a later chunk the kernel finds the start by taking the columns from the length.
            self._names.seqlens_k: lengths - 1 if not start else lengths * 0 + (start + time - 1),
            # Equal to the padded length: this marks a run of fresh prompts.
            self._names.total_sequence_length: np.array(start + time, np.int32),
        }
        held = feeds, bind_arrays(binding, feeds)
        self._caches.bind(binding, first, rows)
        return binding, held

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]) -> L:
        """One token for each of the slots 0..n-1, which hold `lengths` tokens."""
        step = self._bind_decode(tokens, lengths, self._steps)
        return self._run(step.binding, len(tokens), step.padding)

    def _behind(self, rows: int) -> Padding:
        return Padding(behind=-rows % self._multiple)

    def _bind_decode(
        self,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int32],
        steps: dict[int, Step],
    ) -> Step:
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
        self._send(step)
        return step

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

    def _make_step(self, rows: int) -> Step:
        """Padded with the row before the first slot, which writes where nothing is read."""
        names, binding = self._names, self._session.io_binding()
        front = -rows % self._multiple
        count = rows + front
        ids, positions = np.zeros((count, 1), np.int64), np.ones(count, np.int64)
        seqlens_k, total = np.ones(count, np.int32), np.zeros((), np.int32)
        feeds: dict[str, NDArray[Any]] = {
            names.ids: ids,
            names.positions: positions,
            names.last_index: np.arange(count, dtype=np.int64),
            names.seqlens_k: seqlens_k,
            names.total_sequence_length: total,
        }
        values = self._bind_step(binding, feeds)
        self._caches.bind(binding, -front, count)
        return Step(binding, ids[front:], positions[front:], seqlens_k[front:], total,
                    Padding(front), feeds, values)  # fmt: skip

    @abstractmethod
    def _allocate(self, bundle: Bundle) -> Caches:
        """The cache, and what else the decoder keeps."""

    @abstractmethod
    def _bind_step(
        self, binding: ort.IOBinding, feeds: dict[str, NDArray[Any]]
    ) -> dict[str, ort.OrtValue]:
        """Bind the inputs of a step's runs to buffers that stay."""

    @abstractmethod
    def _send(self, step: Step) -> None:
        """Bring what stands in the step's arrays to the buffers."""

    @abstractmethod
    def _run(self, binding: ort.IOBinding, rows: int, padding: Padding) -> L:
        """Bind the outputs, run the model."""


class OnnxDecoder(GraphDecoder[HostLogits]):
    """On the CPU provider: everything is a numpy array, and nothing is copied."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        slots: int,
        spare: int = 0,
        capacity: int | None = None,
        threads: int | None = None,
        lists: bool = False,
    ) -> None:
        """`lists`: requests may have candidates; the bundle's graph must be made for that."""
        if lists and bundle.manifest.graph.listing is None:
            raise InvalidField(
                "a shortlist needs a bundle that was exported with one, which "
                f"{bundle.manifest.name!r} was not",
                param="shortlist",
            )
        self.lists, self._threads = lists, threads
        self._steps_among: dict[int, Step] = {}  # others: what is bound to an input stays
        super().__init__(bundle, slots=slots, spare=spare, capacity=capacity, threads=threads)

    def _check(self, bundle: Bundle) -> bool | None:
        if self.lists:
            self._listing = self._list(bundle)
        return super()._check(bundle)

    def _list(self, bundle: Bundle) -> Listing:
        manifest = bundle.manifest
        least = least_columns(self._threads or available_threads(), self.slots)
        binding, held = self._bind_prefill(0, [[self._end] * COLUMNS], 0)
        listing = Listing(self._session, manifest.graph, manifest.model, binding, least)
        del held
        return listing

    def prefill_among(
        self, first: int, prompts: Sequence[Sequence[int]], only: Only, start: int = 0
    ) -> ListedLogits:
        binding, held = self._bind_prefill(first, prompts, start)
        padding = self._behind(len(prompts))
        logits = self._listing.run(binding, only, padding, decodes=False)
        del held
        return logits

    def decode_among(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int32], only: Only
    ) -> ListedLogits:
        step = self._bind_decode(tokens, lengths, self._steps_among)
        return self._listing.run(step.binding, only, step.padding, decodes=True)

    def _allocate(self, bundle: Bundle) -> Caches:
        return Caches(bundle, self.slots + self.spare, self.capacity)

    def _bind_step(
        self, binding: ort.IOBinding, feeds: dict[str, NDArray[Any]]
    ) -> dict[str, ort.OrtValue]:
        return bind_arrays(binding, feeds)

    def _send(self, step: Step) -> None:
        pass  # the arrays are the buffers

    def _run(self, binding: ort.IOBinding, rows: int, padding: Padding) -> HostLogits:
        logits = host_logits(binding, self._names, rows, self.vocabulary, padding)
        self._session.run_with_iobinding(binding)
        return logits


def bind_arrays(
    binding: ort.IOBinding, feeds: dict[str, NDArray[Any]]
) -> dict[str, ort.OrtValue]:
    """Bind host arrays: without a copy on the CPU, by a copy on a device. The arrays and what is
    returned must outlive the binding's runs."""
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    return values


class Caches:
    """Keys and values of all slots, bound by address so that a slot range is only an offset.

    Where runs are padded there is one slot more in front, number -1.
    """

    def __init__(self, bundle: Bundle, slots: int, capacity: int, device: Device = "cpu") -> None:
        model, names = bundle.manifest.model, bundle.manifest.graph
        self._device = device
        self._dtype = CACHE_TYPES[names.cache_dtype][1]
        room = CacheSize.of(bundle.manifest, slots, capacity).tokens
        self._slot_shape = (model.heads, room, model.head_size)
        self._slot_bytes = math.prod(self._slot_shape) * np.dtype(self._dtype).itemsize
        self._front = names.row_multiple - 1
        shape = (self._front + slots, *self._slot_shape)
        self._entries: list[tuple[str, str, int]] = []  # past name, present name, address
        self._arrays: list[NDArray[Any]] = []
        for layer in range(model.layers):
            for past, present in (
                (names.past_key, names.present_key),
                (names.past_value, names.present_value),
            ):
                address = self._allocate(shape)
                self._entries.append(
                    (past.format(layer=layer), present.format(layer=layer), address)
                )

    def _allocate(self, shape: tuple[int, ...]) -> int:
        self._arrays.append(np.zeros(shape, self._dtype))
        return int(self._arrays[-1].ctypes.data)

    def bind(self, binding: ort.IOBinding, first: int, rows: int) -> None:
        shape = (rows, *self._slot_shape)
        for past, present, address in self._entries:
            where = address + (self._front + first) * self._slot_bytes
            binding.bind_input(past, self._device, 0, self._dtype, shape, where)
            binding.bind_output(present, self._device, 0, self._dtype, shape, where)

    def move(self, source: int, target: int, length: int, start: int) -> None:
        here, there = self._front + source, self._front + target
        for array in self._arrays:
            array[there, :, start:length] = array[here, :, start:length]
