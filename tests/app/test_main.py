"""The application's life: opened, ready, closed; a damaged bundle stops it."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

import httpx
import pytest

from app.bundle import Bundle
from app.errors import BundleError
from app.main import create_app
from app.settings import Settings


def test_lifespan_opens_and_closes_the_engine(
    int8_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Settings(bundle=int8_bundle.path, slots=4, threads=1))

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/health/ready")).status_code == 503  # not opened yet
            assert (await client.get("/health/live")).status_code == 200
            async with app.router.lifespan_context(app):
                assert (await client.get("/health/ready")).status_code == 200
                body = {"text": "Good morning!", "source": "en", "target": "zh"}
                answer = (await client.post("/v1/translate", json=body)).json()
                assert answer["model"] == "tiny-int8"
                engine = app.state.gpt2mt.catalog.first.engine
            assert not engine.alive
            assert (await client.get("/health/ready")).status_code == 503

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert "ready: tiny-int8 on cpu; bit-identical answers at any load; KV cache" in caplog.text


def test_a_damaged_bundle_is_named(int8_bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(int8_bundle.path, copy)
    with (copy / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"damage")
    app = create_app(Settings(bundle=copy))

    async def main() -> None:
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(BundleError, match="model.onnx"):
        asyncio.run(main())
