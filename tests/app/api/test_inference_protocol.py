"""The Open Inference Protocol's health and metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from tests.fakes import FakeDecoder


def test_health_and_metadata(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    server = client.get("/v2").json()
    assert server["name"] == "gpt2-mt" and server["version"] and server["extensions"] == []
    model = client.get("/v2/models/tiny-fp32").json()
    assert (model["name"], model["platform"]) == ("tiny-fp32", "onnxruntime_onnx")
    for tensor in (*model["inputs"], *model["outputs"]):
        assert list(tensor) == ["name", "datatype", "shape"]
    ready = client.get("/v2/models/tiny-fp32/ready").json()
    assert ready == {"name": "tiny-fp32", "ready": True}


def test_errors_have_its_shape(client: httpx.Client) -> None:
    for path in ("/v2/models/none", "/v2/models/none/ready", "/v2/models/%00"):
        response = client.get(path)
        assert response.status_code == 404
        assert list(response.json()) == ["error"]
        assert "there is no model" in response.json()["error"]
    response = client.post("/v2/health/live")
    assert response.status_code == 405 and list(response.json()) == ["error"]


def test_a_draining_server_is_live_and_not_ready(fake_server: Callable[..., Any]) -> None:
    with fake_server(FakeDecoder(vocabulary=600)) as server:
        server.app.state.gpt2mt.draining = True
        assert server.client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/tiny-fp32/ready"):
            response = server.client.get(path)
            assert response.status_code == 503 and int(response.headers["Retry-After"]) >= 1
            assert "shutting down" in response.json()["error"]
        server.app.state.gpt2mt.draining = False
