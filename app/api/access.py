"""The caller of a request: its key from a header, or where another API has it in the body."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from app.access import Caller
from app.api.requests import fields_of
from app.api.state import State, state_of
from app.service import Service

_SCHEMES = ("bearer", "deepl-auth-key")


async def caller_of(request: Request, state: Annotated[State, Depends(state_of)]) -> Caller:
    """Raises KeyMissing, KeyWrong, RateLimited; all of a request count as one."""
    caller = state.access.caller(_key(request))
    caller.admit()
    return caller


CallerOf = Annotated[Caller, Depends(caller_of)]


class Services:
    """The services as this request's caller has them."""

    def __init__(self, request: Request, caller: Caller, state: State) -> None:
        self._request, self._caller, self._state = request, caller, state

    def named(self, name: str | None, *, param: str = "model") -> Service:
        """The one of that name, or the first; raises UnknownModel, NotReady."""
        service = self._state.lease(self._request.scope, name, param=param)
        return service.metered(self._caller.charge)

    def all(self) -> list[Service]:
        return self._state.ready().services


async def services_of(
    request: Request, caller: CallerOf, state: Annotated[State, Depends(state_of)]
) -> Services:
    state.ready()  # before anything is said of the body
    return Services(request, caller, state)


ServicesOf = Annotated[Services, Depends(services_of)]


async def service_of(services: ServicesOf) -> Service:
    return services.named(None)


ServiceOf = Annotated[Service, Depends(service_of)]  # where no model is named


async def key_in_body(request: Request, state: Annotated[State, Depends(state_of)]) -> None:
    """Look for `api_key` among the fields of the body; the route can still read it."""
    if not state.access.closed or _key(request) is not None:
        return
    body = await request.body()

    async def again() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    key = (await fields_of(Request(request.scope, again))).get("api_key")
    request.scope["state"]["api_key"] = key if isinstance(key, str) else None


def _key(request: Request) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").strip().partition(" ")
    if scheme.casefold() in _SCHEMES and key.strip():
        return key.strip()
    own: str | None = request.headers.get("x-api-key") or request.scope["state"].get("api_key")
    return own
