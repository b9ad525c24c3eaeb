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


def service_of(caller: CallerOf, state: Annotated[State, Depends(state_of)]) -> Service:
    return state.ready().metered(caller.charge)


ServiceOf = Annotated[Service, Depends(service_of)]


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
