"""`gpt2-mt serve`: settings, logging and uvicorn around the application."""

from __future__ import annotations

import argparse
import logging
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from app.api.state import State
from app.bundle import Bundle
from app.engine.memory import fit_cache
from app.main import create_app
from app.settings import Settings

_FLUSH_S = 5  # for answers on their way when the engine has stopped
_HURRY_S = 1  # the same after a second signal
log = logging.getLogger("app.serve")


class _Server(uvicorn.Server):
    """Drains the engine before it closes anything.

    At the first signal the accepted requests run on, up to `drain_s`; probes are answered and new
    requests are refused with 503 meanwhile. A second signal fails what still runs and exits.
    """

    def __init__(self, config: uvicorn.Config, state: State, drain_s: float) -> None:
        super().__init__(config)
        self._state = state
        self._drain_s = drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        service = self._state.service
        again, self._state.draining = self._state.draining, True
        if service is None:  # still loading
            super().handle_exit(sig, frame)
        elif again:
            self.config.timeout_graceful_shutdown = _HURRY_S
            _in_background(lambda: service.engine.stop(drain=False))
            super().handle_exit(sig, frame)
        else:
            _in_background(lambda: self._drain(sig))

    def _drain(self, sig: int) -> None:
        log.info("draining, for at most %g s", self._drain_s)
        try:
            self._state.drain(self._drain_s)
        finally:
            if not self.should_exit:
                super().handle_exit(sig, None)


def _in_background(work: Callable[[], None]) -> None:
    """In a thread: a handler of signals must not wait, and the process must not wait for it."""
    threading.Thread(target=work, daemon=True).start()


def run(args: argparse.Namespace) -> int:
    names = ("host", "port", "bundle", "device", "threads", "slots", "shortlist", "glossaries",
             "page", "log_level")  # fmt: skip
    settings = Settings.load({name: getattr(args, name, None) for name in names})
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # A bad bundle or too little memory is told in one line, before anything starts.
    manifest = Bundle.open(settings.bundle).manifest
    fit_cache(manifest, settings.slots, settings.cache_mb, settings.prefix_slots)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # it would log addresses; the middleware logs what is needed
        server_header=False,
        timeout_graceful_shutdown=_FLUSH_S,
    )
    server = _Server(config, app.state.gpt2mt, settings.drain_s)
    server.run()
    return 0 if server.started else 1
