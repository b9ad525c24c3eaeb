"""The engine. ONNX Runtime reports to its maker unless this is set before its import."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
