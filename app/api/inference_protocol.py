"""The health and metadata routes of the Open Inference Protocol (KServe's, Triton's), version 2.

Probes ask for /v2/health/live and /v2/health/ready. There is no `infer`: the metadata say what the
model is, texts go to the other APIs. Errors are `{"error": "..."}`.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from app.api.health import live as alive
from app.api.openapi import shaped
from app.api.problems import detail
from app.api.state import ReadyOf, State, StateOf
from app.errors import AppError


def tell(error: AppError) -> tuple[int, dict[str, str]]:
    return error.status, {"error": detail(error)}


router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=shaped(tell))


@router.get("/health/live", summary="Alive")
async def live(state: StateOf) -> dict[str, bool]:
    await alive(state)
    return {"live": True}


@router.get("/health/ready", summary="Ready for requests")
async def ready(service: ReadyOf) -> dict[str, bool]:
    return {"ready": True}


@router.get("", summary="The server")
async def server(request: Request) -> dict[str, Any]:
    return {"name": "gpt2-mt", "version": request.app.version, "extensions": []}


@router.get("/models/{name}", summary="The model")
async def model(name: str, state: StateOf) -> dict[str, Any]:
    _check(name, state)
    return {
        "name": name,
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [-1]}],
    }


@router.get("/models/{name}/ready", summary="Whether the model is ready")
async def model_ready(name: str, state: StateOf) -> dict[str, Any]:
    _check(name, state)
    return {"name": name, "ready": True}


def _check(name: str, state: State) -> None:
    state.ready().lease(name, param="name").close()
