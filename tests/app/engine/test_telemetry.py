"""ONNX Runtime keeps no id of the device and tells nobody anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import app
from app.settings import DEFAULT_BUNDLE

CODE = f"""
import sys, time
{{}}
import onnxruntime
onnxruntime.InferenceSession({str(DEFAULT_BUNDLE / "model.onnx")!r})
time.sleep(1)
"""


def identified(home: Path, first: str) -> bool:
    """Did it write the id of this device?"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    subprocess.run(
        [sys.executable, "-c", CODE.format(first)], check=True,
        env={**environment, "HOME": str(home)}, cwd=Path(app.__file__).parents[1],
    )  # fmt: skip
    return any(path.name == "deviceid" for path in home.rglob("*"))


@pytest.mark.parametrize("package", ["app.engine", "export"])
def test_it_is_off(package: str, tmp_path: Path) -> None:
    assert not identified(tmp_path, f"import {package}")


def test_it_would_be_seen(tmp_path: Path) -> None:
    if not identified(tmp_path, ""):
        pytest.skip("this onnxruntime has no telemetry")
