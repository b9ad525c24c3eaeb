"""Stored glossaries: `/v1/glossaries`."""

from __future__ import annotations

import contextlib
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Response

from app.api import examples
from app.api.access import ServiceOf, Services, ServicesOf
from app.api.openapi import errors
from app.api.requests import require_json
from app.api.schemas import (
    GlossariesAnswer,
    GlossaryChange,
    GlossaryRequest,
    GlossarySummary,
    StoredGlossaryAnswer,
)
from app.api.state import State, StateOf
from app.errors import (
    BadJson,
    BodyTooLarge,
    Exists,
    InvalidField,
    NotReady,
    RequestTimeout,
    UnknownGlossary,
    UnknownLanguage,
    UnsupportedMediaType,
)
from app.tasks.glossaries import StoredGlossary, made

_BODY = (BadJson, RequestTimeout, BodyTooLarge, UnsupportedMediaType, InvalidField)
router = APIRouter(prefix="/v1/glossaries", tags=["v1"])


@router.get("", summary="The stored glossaries", responses=errors(NotReady))
def glossaries(state: StateOf, service: ServiceOf) -> GlossariesAnswer:
    return GlossariesAnswer(
        glossaries=[
            GlossarySummary(
                name=one.name, source=one.source, target=one.target, entry_count=len(one.entries)
            )
            for one in state.glossaries.all()
        ]
    )


@router.post(
    "",
    summary="Store a glossary",
    status_code=201,
    responses=errors(*_BODY, Exists, NotReady),
    dependencies=[Depends(require_json)],
)
def create(
    body: Annotated[GlossaryRequest, Body(openapi_examples=examples.GLOSSARY)],
    state: StateOf,
    services: ServicesOf,
) -> StoredGlossaryAnswer:
    source, target = pair_of(services, body.source, body.target)
    return _answer(state.glossaries.add(made(body.name, source, target, body.entries)))


@router.get("/{name}", summary="A stored glossary", responses=errors(UnknownGlossary, NotReady))
def glossary(name: str, state: StateOf, service: ServiceOf) -> StoredGlossaryAnswer:
    return _answer(state.glossaries.get(name))


@router.put(
    "/{name}",
    summary="Store a glossary in place of the one of this name",
    responses=errors(*_BODY, NotReady),
    dependencies=[Depends(require_json)],
)
def put(
    name: str, body: GlossaryChange, state: StateOf, services: ServicesOf
) -> StoredGlossaryAnswer:
    if body.name not in (None, name):
        raise InvalidField(f"name is {body.name!r}, in the path it is {name[:80]!r}", param="name")
    source, target = pair_of(services, body.source, body.target)
    stored = made(name, source, target, body.entries, _title(state, name))
    return _answer(state.glossaries.add(stored, replace=True))


@router.delete(
    "/{name}",
    summary="Remove a stored glossary",
    status_code=204,
    responses=errors(UnknownGlossary, NotReady),
)
def remove(name: str, state: StateOf, service: ServiceOf) -> Response:
    state.glossaries.remove(name)
    return Response(status_code=204)


def pair_of(services: Services, source: str, target: str) -> tuple[str, str]:
    """The codes that are meant, of any model; a glossary is of one source language."""
    if source.casefold() == "auto":
        raise InvalidField("source is 'auto': a glossary is of one language", param="source")
    served = services.all()
    for service in served:
        with contextlib.suppress(UnknownLanguage):
            return service.translator.pair(source, target)
    return served[0].translator.pair(source, target)  # which says what is wrong


def _title(state: State, name: str) -> str:
    return next((one.title for one in state.glossaries.all() if one.name == name), "")


def _answer(stored: StoredGlossary) -> StoredGlossaryAnswer:
    return StoredGlossaryAnswer(
        name=stored.name,
        source=stored.source,
        target=stored.target,
        entries=dict(stored.entries),
    )
