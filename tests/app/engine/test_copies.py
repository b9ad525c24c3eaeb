"""The model of copies, written by hand, is one that onnx accepts and that copies by address."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from app.engine.copies import copy_model, names
from app.engine.runtime import create_session


@pytest.mark.parametrize(("count", "dtype"), [(1, np.float32), (3, np.float16), (200, np.float16)])
def test_every_input_comes_out(count: int, dtype: type) -> None:
    text = copy_model(count, dtype)
    onnx.checker.check_model(onnx.load_from_string(text), full_check=True)
    session = create_session(text, threads=1)
    arrays = [np.arange(24 + at, 48 + at, dtype=dtype).reshape(1, 2, 3, 4) for at in range(count)]
    found = session.run(None, {names(at)[0]: array for at, array in enumerate(arrays)})
    assert all(np.array_equal(x, y) for x, y in zip(arrays, found, strict=True))


def test_parts_of_a_buffer_are_copied_in_place() -> None:
    session = create_session(copy_model(1, np.float32), threads=1)
    buffer = np.arange(40, dtype=np.float32).reshape(10, 1, 1, 4)
    expected = buffer.copy()
    expected[7:9] = expected[1:3]
    binding, (x, y) = session.io_binding(), names(0)
    for bind, name, row in ((binding.bind_input, x, 1), (binding.bind_output, y, 7)):
        where = buffer.ctypes.data + row * buffer[0].nbytes
        bind(name, "cpu", 0, np.float32, (2, 1, 1, 4), where)
    session.run_with_iobinding(binding)
    assert np.array_equal(buffer, expected)
