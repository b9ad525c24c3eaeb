"""A model that only copies: N inputs to N outputs, wherever their buffers are.

ONNX Runtime's Python has no call to copy from one place of a device to another, or a part of a
buffer to the host; a model of Identity nodes, bound by address, does both, many at once. The model
is written as protobuf by hand, because serving does not install onnx.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import DTypeLike

_TYPES: Final = {np.dtype(np.float32): 1, np.dtype(np.float16): 10}  # of TensorProto
_RANK: Final = 4
_IR, _OPSET = 8, 16


def names(at: int) -> tuple[str, str]:
    """Input and output of one copy."""
    return f"x{at}", f"y{at}"


def copy_model(count: int, dtype: DTypeLike) -> bytes:
    """The model of `count` copies of tensors of this type with four dimensions."""
    graph = b""
    for at in range(count):
        x, y = names(at)
        graph += _field(1, _field(1, x) + _field(2, y) + _field(4, "Identity"))
    graph += _field(2, "copies")
    for number, side in ((11, 0), (12, 1)):  # input, output
        for at in range(count):
            size = b"".join(_field(1, _field(2, f"d{axis}_{at}")) for axis in range(_RANK))
            tensor = _integer(1, _TYPES[np.dtype(dtype)]) + _field(2, size)
            graph += _field(number, _field(1, names(at)[side]) + _field(2, _field(1, tensor)))
    return _integer(1, _IR) + _field(7, graph) + _field(8, _integer(2, _OPSET))


def _field(number: int, value: str | bytes) -> bytes:
    """Text, or a message."""
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
