"""The application behind a real server: over the tiny bundle, or over a fake decoder.

A conftest that wants the fixtures imports them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

import app.main
from app.bundle import Bundle
from app.engine.engine import Engine
from app.engine.memory import CacheSize
from app.metrics import Metrics
from app.service import Service
from app.settings import Settings
from app.tasks.generate import Generator
from app.tasks.inputs import TaskLimits
from app.tasks.translate import Translator
from app.text.detect import Detector
from app.text.tokenizer import TextTokenizer


class Server:
    """A running application and a client for it."""

    def __init__(self, application: FastAPI, port: int, stop: Callable[[], None]) -> None:
        self.app = application
        self.stop = stop
        self.port = port
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    @property
    def engine(self) -> Engine:
        return self.app.state.gpt2mt.catalog.first.engine

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, what
            time.sleep(0.005)

    def wait_until_idle(self) -> None:
        stats = self.engine.stats
        self.wait(lambda: stats().active + stats().queued == 0, "slots were not freed")


@contextlib.contextmanager
def serve(application: FastAPI) -> Iterator[Server]:
    config = uvicorn.Config(
        application, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the server did not start"
        time.sleep(0.005)

    def stop() -> None:
        server.should_exit = True
        thread.join(10)

    running = Server(application, server.servers[0].sockets[0].getsockname()[1], stop)
    try:
        yield running
    finally:
        running.client.close()
        stop()


@pytest.fixture(scope="session")
def server(fp32_bundle: Bundle) -> Iterator[Server]:
    """Over the tiny bundle, with small limits."""
    settings = Settings(
        bundle=fp32_bundle.path, threads=2, max_body_bytes=200_000, max_characters=20_000
    )
    with serve(app.main.create_app(settings)) as running:
        yield running


@pytest.fixture
def fake_server(
    fp32_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """Over any decoder: `with fake_server(decoder, max_queue=...) as server`."""

    def start(decoder: Any, **settings: Any) -> contextlib.AbstractContextManager[Server]:
        def opened(path: Path, values: Settings, metrics: Metrics) -> Service:
            return fake_service(fp32_bundle, decoder, values, metrics)

        monkeypatch.setattr(app.main, "_open", opened)
        return serve(app.main.create_app(Settings(**settings)))

    return start


def fake_service(bundle: Bundle, decoder: Any, settings: Settings, metrics: Metrics) -> Service:
    engine = Engine(decoder, metrics, max_queue=settings.max_queue)
    tokenizer, detector = TextTokenizer.of(bundle), Detector(list(bundle.manifest.languages))
    limits = TaskLimits(decoder.capacity, decoder.capacity - 1)
    translator = Translator(
        engine, tokenizer, detector, bundle.manifest, limits, metrics, settings.retry
    )
    generator = Generator(engine, tokenizer, limits)
    cache = CacheSize.of(bundle.manifest, decoder.slots)
    return Service(bundle, cache, "a fake", engine, detector, translator, generator, limits)
