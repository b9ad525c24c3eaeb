"""The standard graph, exported by `optimum`: no fused nodes, no cache in place, runs anywhere.

It serves as an independent oracle for the fused graph, and as a way out for users of other
runtimes. In: a checkpoint directory. Out: a directory with an ONNX model, or the logits that such
a model gives.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


def export_portable(checkpoint: str | Path, target: str | Path) -> Path:
    """Write optimum's ONNX model of a checkpoint; returns the file."""
    from optimum.exporters.onnx import main_export

    with _quiet():
        main_export(
            str(checkpoint),
            output=str(target),
            task="text-generation",
            framework="pt",
            local_files_only=True,
            do_validation=False,
            no_post_process=True,
        )
    return Path(target) / "model.onnx"


class PortableOracle:
    """Logits of optimum's graph at all positions of one sequence."""

    def __init__(self, checkpoint: str | Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = export_portable(checkpoint, folder)
            options = ort.SessionOptions()
            options.log_severity_level = 3
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )

    def __call__(self, ids: Sequence[int]) -> NDArray[np.float32]:
        row = np.array([ids], np.int64)
        known = {
            "input_ids": row,
            "attention_mask": np.ones_like(row),
            "position_ids": np.arange(row.shape[1])[None],
        }
        feeds = {node.name: known[node.name] for node in self._session.get_inputs()}
        logits: NDArray[np.float32] = self._session.run(["logits"], feeds)[0][0]
        return logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing chatters; none of it concerns the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
