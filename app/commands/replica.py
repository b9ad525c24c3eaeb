"""What one replica on Ray Serve is: the whole application with its own engine.

`/metrics` of any replica tells the metrics of all, each with the label `replica`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from ray import serve

from app.logs import formatter
from app.main import create_app
from app.settings import Settings

Families = list[Metric]


@serve.deployment
@serve.ingress()
class Replica:
    def __init__(self, values: dict[str, Any]) -> None:
        settings = Settings(**values)
        logger = logging.getLogger("app")
        logger.setLevel(settings.log_level.upper())
        handler = logging.StreamHandler()
        handler.setFormatter(formatter(settings.log_format))
        logger.handlers, logger.propagate = [handler], False
        self._application = create_app(settings)
        self._state = self._application.state.gpt2mt
        self._state.gather = self._gather

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._application

    def check_health(self) -> None:
        """A replica whose engine has died is replaced."""
        if not self._state.live:
            raise RuntimeError("the engine has stopped")

    def families(self) -> tuple[str, Families]:
        """Its name and its metrics."""
        name = serve.get_replica_context().replica_id.unique_id
        return name, list(self._state.metrics.registry.collect())

    async def _gather(self) -> bytes:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        found = await handle.broadcast("families").results_async(return_exceptions=True)
        return merged([one for one in found if not isinstance(one, BaseException)])


def merged(found: Iterable[tuple[str, Families]]) -> bytes:
    """The metrics of several replicas as one text."""
    whole: dict[str, Metric] = {}
    for replica, families in found:
        for family in families:
            of_all = whole.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            of_all.samples += [
                sample._replace(labels={**sample.labels, "replica": replica})
                for sample in family.samples
            ]

    class All(Collector):
        def collect(self) -> Iterable[Metric]:
            return whole.values()

    registry = CollectorRegistry()
    registry.register(All())
    return generate_latest(registry)
