"""The decoder for a GPU: buffers live on the device, and only the chosen ids come back.

Caches, logits and the inputs of a decode step are allocated there once and updated in place; the
lengths' maximum stays on the host, where the attention kernel reads it. The graph itself finds each
row's best id and what its log-probability is made of. `DeviceLogits` hands these out; a row of
logits is copied only when it is asked for, by a sampler that needs it. With device `cpu` the same
code runs on the CPU provider, which is how it is tested without a GPU.
"""

from __future__ import annotations

import math
import shlex
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.bundle import Bundle
from app.engine.copies import copy_model, names
from app.engine.listing import Padding
from app.engine.runtime import Device, create_session
from app.engine.session import Caches, GraphDecoder, Step
from app.errors import InvalidField
from app.graph import GraphSpec

_ROW: Final = np.dtype(np.float32)


class DeviceLogits:
    """Implements `app.engine.request.LazyLogits`, until the next run of the decoder."""

    def __init__(
        self, ids: NDArray[np.int64], sums: NDArray[np.float32], reader: _RowReader
    ) -> None:
        self._ids, self._sums, self._reader = ids, sums, reader
        self._run = reader.run
        self._rows: dict[int, NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> NDArray[np.float32]:
        """Copied from the device when first asked for."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        if row not in self._rows:
            if self._run != self._reader.run:
                raise ValueError(f"row {row} was asked for after the decoder's next run")
            self._rows[row] = self._reader.read(row)
        return self._rows[row]

    def best(self) -> tuple[NDArray[np.int64], list[float]]:
        """Id and log-probability; NaN for a row that is not finite, whose id is any."""
        logprobs = [
            -math.log(total) if math.isfinite(total) else math.nan for total in self._sums.tolist()
        ]
        return self._ids, logprobs


class DeviceDecoder(GraphDecoder[DeviceLogits]):
    """Of an fp16 bundle whose graph chooses; see `needs`."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        slots: int,
        spare: int = 0,
        capacity: int | None = None,
        threads: int | None = None,
        device: Device = "cuda",
        lists: bool = False,
    ) -> None:
        if lists:
            raise InvalidField(
                f"device {device!r} takes no shortlist: that is for CPUs", param="shortlist"
            )
        if (reason := needs(bundle)) is not None:
            raise InvalidField(f"device {device!r}: {reason}", param="device")
        self.device = device
        super().__init__(bundle, slots=slots, spare=spare, capacity=capacity, threads=threads)

    def _allocate(self, bundle: Bundle) -> Caches:
        self._reader = _RowReader(self.slots, self.vocabulary, self.device)
        return _DeviceCaches(bundle, self.slots + self.spare, self.capacity, self.device)

    def _bind_step(
        self, binding: ort.IOBinding, feeds: dict[str, NDArray[Any]]
    ) -> dict[str, ort.OrtValue]:
        values = {}
        for name, array in feeds.items():
            if name == self._names.total_sequence_length:
                values[name] = ort.OrtValue.ortvalue_from_numpy(array)  # the array itself
            else:
                values[name] = ort.OrtValue.ortvalue_from_shape_and_type(
                    array.shape, array.dtype.type, self.device, 0
                )
                values[name].update_inplace(array)
            binding.bind_ortvalue_input(name, values[name])
        return values

    def _send(self, step: Step) -> None:
        for name in (self._names.ids, self._names.positions, self._names.seqlens_k):
            step.values[name].update_inplace(step.feeds[name])

    def _run(self, binding: ort.IOBinding, rows: int, padding: Padding) -> DeviceLogits:
        ids, sums = np.empty(rows, np.int64), np.empty(rows, np.float32)
        for name, array in ((self._names.best_ids, ids), (self._names.best_sums, sums)):
            address = array.ctypes.data
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, address)
        self._reader.bind(binding, self._names, rows)
        self._session.run_with_iobinding(binding)
        # Of a row that is not a number, none is equal to the largest.
        return DeviceLogits(np.minimum(ids, self.vocabulary - 1), sums, self._reader)


def needs(bundle: Bundle) -> str | None:
    """Why a bundle cannot run on a GPU and what makes one of it that can; None: it can."""
    manifest = bundle.manifest
    if manifest.model.precision == "fp16" and manifest.graph.best_ids is not None:
        return None
    path = shlex.quote(str(bundle.path))
    older = " of an older version" if manifest.model.precision == "fp16" else ""
    return (
        f"a GPU needs an fp16 bundle, this one is {manifest.model.precision}{older}; make one with "
        f"`gpt2-mt export {path} {shlex.quote(bundle.path.name)}-fp16 --precision fp16`"
    )


class _RowReader:
    """The device's buffer of logits, (slots, vocabulary), and how a row of it comes to the host."""

    def __init__(self, slots: int, vocabulary: int, device: Device) -> None:
        self._device, self._vocabulary = device, vocabulary
        self._buffer = ort.OrtValue.ortvalue_from_shape_and_type(
            (slots, vocabulary), _ROW.type, device, 0
        )
        self._copy = create_session(copy_model(1, _ROW), device, 1)
        self.run = 0  # which run of the decoder the buffer is of

    def bind(self, binding: ort.IOBinding, graph: GraphSpec, rows: int) -> None:
        """Have the next run write its logits here."""
        self.run += 1
        shape, address = (rows, self._vocabulary), self._buffer.data_ptr()
        binding.bind_output(graph.logits, self._device, 0, _ROW.type, shape, address)

    def read(self, row: int) -> NDArray[np.float32]:
        out = np.empty(self._vocabulary, _ROW)
        where = self._buffer.data_ptr() + row * out.nbytes
        shape = (1, 1, 1, self._vocabulary)
        binding, (x, y) = self._copy.io_binding(), names(0)
        binding.bind_input(x, self._device, 0, _ROW.type, shape, where)
        binding.bind_output(y, "cpu", 0, _ROW.type, shape, out.ctypes.data)
        self._copy.run_with_iobinding(binding)
        return out


class _DeviceCaches(Caches):
    """On the device; a slot is moved whole, all layers in one run."""

    def __init__(self, bundle: Bundle, slots: int, capacity: int, device: Device) -> None:
        self._values: list[ort.OrtValue] = []
        super().__init__(bundle, slots, capacity, device)
        self._copy = create_session(copy_model(len(self._entries), self._dtype), device, 1)

    def _allocate(self, shape: tuple[int, ...]) -> int:
        value = ort.OrtValue.ortvalue_from_shape_and_type(shape, self._dtype, self._device, 0)
        value.update_inplace(np.zeros(shape, self._dtype))  # masked or not, it must be finite
        self._values.append(value)
        return int(value.data_ptr())

    def move(self, source: int, target: int, length: int, start: int) -> None:
        binding, shape = self._copy.io_binding(), (1, *self._slot_shape)
        for at, (_, _, address) in enumerate(self._entries):
            (x, y), size = names(at), self._slot_bytes
            here, there = address + source * size, address + target * size
            binding.bind_input(x, self._device, 0, self._dtype, shape, here)
            binding.bind_output(y, self._device, 0, self._dtype, shape, there)
        self._copy.run_with_iobinding(binding)
