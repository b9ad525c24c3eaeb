"""Sessions of ONNX Runtime: on which provider, with how many threads, and what cannot be had.

A model and a device flow in, a session flows out whose threads are set explicitly; the decoders,
the exporter's calibration and the benchmarks open theirs here.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final, Literal

import onnxruntime as ort

from app.errors import BundleError, InvalidField

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
    if device == "cuda":
        with redirect_stdout(sys.stderr):  # it prints what it does not find
            ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's wheels, where they are installed
    if threads is not None and threads < 1:
        raise InvalidField(f"threads is {threads}, at least 1 is needed", param="threads")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # shapes vary from run to run
    options.log_severity_level = 3
    # Without VNNI, products of uint8 and constant int8 weights of more than 7 bits saturate: older
    # bundles have such. This makes them exact, and changes no result otherwise.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = ort.InferenceSession(
            model, options, providers=[provider], disabled_optimizers=["SkipLayerNormFusion"]
        )  # on CPUs the fused node is five times slower than its parts
    except Exception as error:  # the binding's exceptions share no base
        raise BundleError(f"the model cannot be loaded: {error}", param="model.onnx") from error
    if provider not in session.get_providers():
        raise InvalidField(
            f"device {device!r} cannot be used: {provider} failed, for which onnxruntime gives a "
            "reason above; a driver and the libraries of CUDA and cuDNN are needed",
            param="device",
        )
    return session
