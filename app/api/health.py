"""Health and metrics: is the process alive, may it get requests, what did it do."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.api.openapi import errors
from app.api.schemas import HealthAnswer
from app.api.state import ReadyOf, StateOf
from app.errors import NotReady

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.head("/health/live", include_in_schema=False)
@router.get("/health", summary="Alive", responses=errors(NotReady))
@router.get("/health/live", summary="Alive", responses=errors(NotReady))
async def live(state: StateOf) -> HealthAnswer:
    """200 unless the engine has died. Loading and draining are alive."""
    if not state.live:
        raise NotReady("the engine has stopped", retry_after_s=30)
    return HealthAnswer()


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", summary="Ready for requests", responses=errors(NotReady))
async def ready(service: ReadyOf) -> HealthAnswer:
    """503 while the model is loaded and while the server drains."""
    return HealthAnswer()


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(state: StateOf) -> Response:
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)
