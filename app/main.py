"""create_app: the HTTP application over one bundle, opened and closed by its lifespan."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app.api import deepl, health, inference_protocol, libretranslate, openai, tgi, v1
from app.api.dialects import install
from app.api.middleware import RequestContext
from app.api.openapi import DESCRIPTION, describe
from app.api.state import State
from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.settings import Settings
from app.tracing import tracing_of

APIS = {
    "libretranslate": libretranslate,
    "deepl": deepl,
    "openai": openai,
    "tgi": tgi,
    "inference_protocol": inference_protocol,
}
# FastAPI's own spans and logs hold addresses, queries and messages of exceptions.
_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
log = logging.getLogger("app.main")


def create_app(settings: Settings) -> FastAPI:
    """The application; requests are answered once its lifespan has begun."""
    state = State(Metrics(), settings.default_timeout_s, settings.max_timeout_s)
    state.metrics.build_info.labels(_version(), platform.python_version()).set(1)
    tracing = tracing_of(os.environ, _version())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = await asyncio.to_thread(_open, settings, state.metrics)
        state.service = service
        name = service.bundle.manifest.name
        log.info("ready: %s on %s; KV cache %s", name, service.placement, service.cache)
        yield
        await asyncio.to_thread(state.drain, settings.drain_s)
        if tracing:
            await asyncio.to_thread(tracing.close)

    app: FastAPI = FastAPIOffline(  # /docs needs no network
        title="gpt2-mt",
        version=_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        telemetry=_TELEMETRY,
    )
    app.state.gpt2mt = state
    app.include_router(v1.router)
    app.include_router(health.router)
    for name in settings.apis:
        app.include_router(APIS[name].router)
        state.dialects.speak(APIS[name].router, APIS[name].tell)
    install(app, state.dialects)
    describe(app)
    app.add_middleware(
        RequestContext,
        state=state,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        paths=frozenset(app.openapi()["paths"]),
        tracing=tracing,
    )
    return app


def _open(settings: Settings, metrics: Metrics) -> Service:
    service = Service.open(settings.bundle, ServiceOptions.of(dict(settings)), metrics)
    service.detector.load()
    service.engine.start()
    return service


def _version() -> str:
    try:
        return version("gpt2-mt")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0.0.0"
