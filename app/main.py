"""create_app: the HTTP application over its bundles, opened and closed by its lifespan."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline

from app.access import Access
from app.api import (
    deepl,
    deepl_documents,
    documents,
    glossaries,
    health,
    inference_protocol,
    libretranslate,
    openai,
    tgi,
    v1,
)
from app.api.dialects import install
from app.api.middleware import RequestContext
from app.api.openapi import DESCRIPTION, describe, redirect_to_docs
from app.api.page import serve_page
from app.api.state import State
from app.api.uploads import FORM_BYTES, UPLOADS
from app.catalog import Catalog
from app.documents.run import Documents
from app.errors import AppError
from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.settings import Settings
from app.tasks.glossaries import Glossaries
from app.tracing import tracing_of

APIS: dict[str, tuple[Any, ...]] = {
    "libretranslate": (libretranslate,),
    "deepl": (deepl, deepl_documents),
    "openai": (openai,),
    "tgi": (tgi,),
    "inference_protocol": (inference_protocol,),
}
_CORS: Any = {
    "allow_methods": ["GET", "POST", "PUT", "DELETE"],
    "allow_headers": ["Authorization", "Content-Type", "X-API-Key", "X-Request-ID"],
    "expose_headers": ["Retry-After", "Server-Timing", "X-Request-ID"],
}
# FastAPI's own spans and logs hold addresses, queries and messages of exceptions.
_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
log = logging.getLogger("app.main")


def create_app(settings: Settings) -> FastAPI:
    """The application; requests are answered once its lifespan has begun."""
    metrics = Metrics()
    files = Documents(
        metrics, settings.max_document_bytes, settings.max_items, settings.max_characters
    )
    timeouts = (settings.default_timeout_s, settings.max_timeout_s)
    state = State(metrics, Access(settings.api_keys), files, *timeouts)
    state.metrics.build_info.labels(_version(), platform.python_version()).set(1)
    tracing = tracing_of(os.environ, _version())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        catalog = Catalog(
            [settings.bundle, *settings.bundles],
            lambda path: _open(path, settings, state.metrics),
            settings.drain_s,
        )
        try:
            await asyncio.to_thread(catalog.load)
        except AppError as error:
            state.failure = error
            raise
        state.glossaries = await asyncio.to_thread(Glossaries.open, settings.glossaries)
        state.catalog = catalog
        state.describe()
        for service in catalog.services:
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
    for own in (v1, glossaries, documents, health):
        app.include_router(own.router)
        state.dialects.speak(own.router)
    for name in settings.apis:
        for api in APIS[name]:
            app.include_router(api.router)
            state.dialects.speak(api.router, api.tell)
    install(app, state.dialects)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **_CORS)
    describe(app)
    if settings.page:
        serve_page(app)
    else:
        redirect_to_docs(app)
    app.add_middleware(
        RequestContext,
        state=state,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        paths=frozenset(app.openapi()["paths"]),
        uploads=dict.fromkeys(UPLOADS, settings.max_document_bytes + FORM_BYTES),
        tracing=tracing,
    )
    return app


def _open(path: Path, settings: Settings, metrics: Metrics) -> Service:
    return Service.open(path, ServiceOptions.of(dict(settings)), metrics)


def _version() -> str:
    try:
        return version("gpt2-mt")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0.0.0"
