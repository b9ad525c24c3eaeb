"""`gpt2-mt serve`: settings, logging and uvicorn around the application."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.state import State
from app.bundle import Bundle
from app.errors import AppError, SettingsError
from app.logs import configure
from app.main import create_app
from app.service import ServiceOptions, planned_cache
from app.settings import Settings

_FLUSH_S = 5  # for answers on their way when the engine has stopped
_HURRY_S = 1  # the same after a second signal
log = logging.getLogger("app.serve")


class _Server(uvicorn.Server):
    """Drains the engine before it closes anything.

    At SIGHUP the bundles are read again. At the first signal to end the accepted requests run on,
    up to `drain_s`; probes are answered and new requests are refused with 503 meanwhile. A second
    one fails what still runs and exits.
    """

    def __init__(self, config: uvicorn.Config, state: State, drain_s: float) -> None:
        super().__init__(config)
        self._state = state
        self._drain_s = drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        catalog = self._state.catalog
        again, self._state.draining = self._state.draining, True
        if catalog is None:  # still loading
            super().handle_exit(sig, frame)
        elif again:
            self.config.timeout_graceful_shutdown = _HURRY_S
            _in_background(lambda: catalog.stop(drain=False))
            super().handle_exit(sig, frame)
        else:
            _in_background(lambda: self._drain(sig))

    def reload(self, sig: int, frame: FrameType | None) -> None:
        if self._state.catalog is not None and not self._state.draining:
            _in_background(self._reload)

    def _reload(self) -> None:
        assert self._state.catalog is not None
        result = "failed"
        try:
            found = self._state.catalog.reload()
            result = "replaced" if found.replaced else "unchanged"
            self._state.describe()
            log.info("bundles replaced: %s; as before: %s", found.replaced, found.unchanged)
        except AppError as error:
            log.error("the bundles stay as they were: %s", error)
        except Exception:
            log.exception("the bundles stay as they were")
        self._state.metrics.reloads.labels(result).inc()

    def _drain(self, sig: int) -> None:
        log.info("draining, for at most %g s", self._drain_s)
        try:
            self._state.drain(self._drain_s)
        finally:
            if not self.should_exit:
                super().handle_exit(sig, None)


def _without_traceback(app: ASGIApp, state: State) -> ASGIApp:
    """The application, but a named error that keeps it from starting is not logged by uvicorn."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and state.failure:
                message = {"type": message["type"]}
            await send(message)

        await app(scope, receive, sent if scope["type"] == "lifespan" else send)

    return served


def _in_background(work: Callable[[], None]) -> None:
    """In a thread: a handler of signals must not wait, and the process must not wait for it."""
    threading.Thread(target=work, daemon=True).start()


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the command line."""
    names = ("host", "port", "bundle", "device", "threads", "slots", "shortlist", "glossaries",
             "page", "engine", "replicas", "log_level")  # fmt: skip
    given = {name: getattr(args, name, None) for name in names}
    for setting in args.set or ():
        name, equals, value = setting.partition("=")
        if not equals or name not in Settings.model_fields:
            raise SettingsError(
                f"--set {setting}: write NAME=VALUE; names are {', '.join(Settings.model_fields)}",
                param=name,
            )
        given[name] = value
    return given


def run(args: argparse.Namespace) -> int:
    settings = Settings.load(_given(args), file=args.config)
    if args.show_config:
        sys.stdout.write(settings.told(_given(args), args.config))
        return 0
    configure(settings.log_level, settings.log_format)
    # A bad bundle or too little memory is told in one line, before anything starts.
    for path in (settings.bundle, *settings.bundles):
        planned_cache(Bundle.open(path), ServiceOptions.of(dict(settings)))
    if settings.engine == "ray":
        from app.commands import cluster

        return cluster.run(settings)
    app = create_app(settings)
    state: State = app.state.gpt2mt
    config = uvicorn.Config(
        _without_traceback(app, state),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # it would log addresses; the middleware logs what is needed
        ws="none",  # as would a refused WebSocket
        server_header=False,
        timeout_graceful_shutdown=_FLUSH_S,
    )
    server = _Server(config, state, settings.drain_s)
    signal.signal(signal.SIGHUP, server.reload)
    try:
        server.run()
    except SystemExit:
        if state.failure:
            raise state.failure from None
        raise
    return 0 if server.started else 1
