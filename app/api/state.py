"""What the routes share, at `app.state.gpt2mt`: service, metrics, timeouts, forms of errors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request
from starlette.types import Scope

from app.access import Access
from app.api.dialects import Dialects
from app.api.files import Files, Work
from app.catalog import Catalog, Lease
from app.documents.run import Documents
from app.errors import AppError, InvalidField, NotReady
from app.metrics import Metrics
from app.service import Service
from app.tasks.glossaries import Glossaries
from app.tasks.job import Deadline


class State:
    """Filled by the lifespan: `catalog` is None until the models are loaded."""

    def __init__(
        self,
        metrics: Metrics,
        access: Access,
        documents: Documents,
        default_timeout_s: float,
        max_timeout_s: float,
    ) -> None:
        self.metrics = metrics
        self.access = access
        self.dialects = Dialects()
        self.default_timeout_s = default_timeout_s
        self.max_timeout_s = max_timeout_s
        self.catalog: Catalog | None = None
        self.glossaries = Glossaries()
        self.documents = documents
        self.files = Files()
        self.works: OrderedDict[str, Work] = OrderedDict()  # documents by DeepL's API
        self.draining = False
        self.failure: AppError | None = None  # why it could not start
        self.gather: Callable[[], Awaitable[bytes]] | None = None  # the metrics of all replicas
        self._drained = False
        metrics.live.set_function(lambda: self.live)
        metrics.ready.set_function(lambda: self.live and not self.draining and bool(self.catalog))

    def drain(self, timeout_s: float) -> None:
        """Refuse new requests and return when the others have ended; once, then it does nothing."""
        self.draining = True
        if self.catalog is not None and not self._drained:
            self._drained = True
            self.catalog.stop(timeout_s=timeout_s)

    async def exposition(self) -> bytes:
        """What /metrics tells."""
        return self.metrics.render() if self.gather is None else await self.gather()

    @property
    def live(self) -> bool:
        """False once an engine has died. Loading and draining are alive."""
        if self.catalog is None or self.draining:
            return True
        return all(service.engine.alive for service in self.catalog.services)

    def ready(self) -> Catalog:
        """The services, if they take requests now."""
        if self.catalog is None:
            raise NotReady("the model is being loaded", retry_after_s=1)
        if self.draining:
            raise shutting_down()
        if not self.live:
            raise NotReady("the engine has stopped", retry_after_s=30)
        return self.catalog

    def describe(self) -> None:
        """Tell the metrics which bundles are served."""
        assert self.catalog is not None
        services = self.catalog.services
        self.metrics.cache_bytes.set(sum(service.cache.bytes for service in services))
        self.metrics.info.clear()
        for service in services:
            manifest = service.bundle.manifest
            self.metrics.info.labels(manifest.name, manifest.model.precision).set(1)

    def lease(self, scope: Scope, name: str | None = None, *, param: str = "model") -> Service:
        """The service of that name, or the first, until the request has been answered."""
        lease = self.ready().lease(name, param=param)
        scope["state"].setdefault("leases", []).append(lease)
        return lease.service

    def keep_lease(self, scope: Scope) -> Lease:
        """The request's lease, to be closed by who keeps it."""
        lease: Lease = scope["state"]["leases"].pop()
        return lease

    def deadline(self, timeout_s: float | None) -> Deadline:
        if timeout_s is None:
            timeout_s = self.default_timeout_s
        if timeout_s > self.max_timeout_s:
            raise InvalidField(
                f"timeout_s is {timeout_s:g}, at most {self.max_timeout_s:g} is allowed",
                param="timeout_s",
            )
        return Deadline.after(timeout_s)


def shutting_down() -> NotReady:
    return NotReady("the server is shutting down", retry_after_s=5)


async def state_of(request: Request) -> State:
    state: State = request.app.state.gpt2mt
    return state


async def ready_of(state: Annotated[State, Depends(state_of)]) -> Service:
    return state.ready().first


StateOf = Annotated[State, Depends(state_of)]
# For anybody, and to tell of it only; work needs app.api.access.ServiceOf.
ReadyOf = Annotated[Service, Depends(ready_of)]
