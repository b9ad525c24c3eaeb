"""`gpt2-mt serve --engine ray`: replicas of the application behind one port, on Ray Serve.

A cluster that RAY_ADDRESS names, or one of this machine alone that ends with the command. Every
replica has its own engine and CPUs; Ray replaces one that dies, and `edge` keeps what was under way
there from ending in anything but a 503 that may be tried again.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from importlib import import_module
from typing import Any

from app.engine.runtime import available_threads
from app.errors import SettingsError
from app.settings import Settings

_APPLICATION = "gpt2-mt"
_VARIABLES = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.commands.edge:middlewares",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # Ray's 5 s are too short for a busy machine
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_USAGE_STATS_ENABLED": "0",
}
log = logging.getLogger("app.serve")


def run(settings: Settings) -> int:
    os.environ.update(_VARIABLES)  # before ray is imported: it reads them once
    ray, serve = import_module("ray"), import_module("ray.serve")
    stop = threading.Event()
    address = os.environ.get("RAY_ADDRESS", "local")
    own = (
        {"num_cpus": available_threads(), "include_dashboard": False} if address == "local" else {}
    )
    ray.init(address, runtime_env={"env_vars": _VARIABLES}, configure_logging=False, **own)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        _deploy(serve, settings, threads_of(settings, int(ray.cluster_resources().get("CPU", 0))))
        log.info("ready: %d replicas on port %d", settings.replicas, settings.port)
        stop.wait()
        log.info("draining, for at most %g s", settings.drain_s)
        serve.delete(_APPLICATION)
    finally:
        serve.shutdown()
        ray.shutdown()
    return 0


def _deploy(serve: Any, settings: Settings, threads: int) -> None:
    Replica: Any = import_module("app.commands.replica").Replica

    quiet = {"enable_access_log": False, "log_level": "WARNING"}  # it would log addresses
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": settings.host, "port": settings.port},
        logging_config=quiet,
    )
    values = {**settings.model_dump(), "threads": threads, "engine": "local", "replicas": 1}
    deployment: Any = Replica  # its decorator makes it one
    replicas = deployment.options(
        num_replicas=settings.replicas,
        # the application refuses what is too much, in its own words
        max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": threads},
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=settings.drain_s,
        logging_config=quiet,
    )
    serve.run(replicas.bind(values), name=_APPLICATION)


def threads_of(settings: Settings, cpus: int) -> int:
    """Of each replica: what is given, or an equal share of the cluster's CPUs."""
    threads = settings.threads or max(1, cpus // settings.replicas)
    if threads * settings.replicas > cpus:
        raise SettingsError(
            f"replicas is {settings.replicas} of {threads} threads, the cluster has {cpus} CPUs",
            param="replicas",
        )
    return threads
