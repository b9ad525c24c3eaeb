"""`gpt2-mt serve`: settings, logging and uvicorn around the application."""

from __future__ import annotations

import argparse
import logging
import math
from types import FrameType

import uvicorn

from app.bundle import Bundle
from app.main import create_app
from app.settings import Settings


class _Server(uvicorn.Server):
    """Says "not ready" as soon as it is told to stop, while it still finishes its requests."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.gpt2mt.draining = True  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def run(args: argparse.Namespace) -> int:
    names = ("host", "port", "bundle", "device", "threads", "slots", "log_level")
    settings = Settings.load({name: getattr(args, name, None) for name in names})
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    Bundle.open(settings.bundle)  # a bad bundle is told in one line, before anything starts
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # it would log addresses; the middleware logs what is needed
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )
    server = _Server(config)
    server.run()
    return 0 if server.started else 1
