"""What the routes share, at `app.state.gpt2mt`: service, metrics, timeouts, forms of errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request

from app.api.dialects import Dialects
from app.errors import InvalidField, NotReady
from app.metrics import Metrics
from app.service import Service
from app.tasks.job import Deadline


class State:
    """Filled by the lifespan: `service` is None until the model is loaded."""

    def __init__(self, metrics: Metrics, default_timeout_s: float, max_timeout_s: float) -> None:
        self.metrics = metrics
        self.dialects = Dialects()
        self.default_timeout_s = default_timeout_s
        self.max_timeout_s = max_timeout_s
        self.service: Service | None = None
        self.characters = 0  # translated for callers of DeepL's API
        self.draining = False
        self.gather: Callable[[], Awaitable[bytes]] | None = None  # the metrics of all replicas
        self._drained = False

    def drain(self, timeout_s: float) -> None:
        """Refuse new requests and return when the others have ended; once, then it does nothing."""
        self.draining = True
        if self.service is not None and not self._drained:
            self._drained = True
            self.service.engine.stop(drain=True, timeout_s=timeout_s)

    async def exposition(self) -> bytes:
        """What /metrics tells."""
        return self.metrics.render() if self.gather is None else await self.gather()

    def ready(self) -> Service:
        """The service, if it takes requests now."""
        if self.service is None:
            raise NotReady("the model is being loaded", retry_after_s=1)
        if self.draining:
            raise shutting_down()
        if not self.service.engine.alive:
            raise NotReady("the engine has stopped", retry_after_s=30)
        return self.service

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


def state_of(request: Request) -> State:
    state: State = request.app.state.gpt2mt
    return state


def service_of(state: Annotated[State, Depends(state_of)]) -> Service:
    return state.ready()


StateOf = Annotated[State, Depends(state_of)]
ServiceOf = Annotated[Service, Depends(service_of)]
