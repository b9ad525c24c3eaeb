"""DeepL's glossaries (its `/v2` ones, of one language pair) over the stored ones.

What is created here gets an id as DeepL's have; it is the glossary's name for `/v1`, whose own
glossaries are told here with their name as the id.
"""

from __future__ import annotations

import csv
import io
import uuid
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import ServiceOf
from app.api.deepl_errors import tell
from app.api.openapi import shaped
from app.api.requests import document, fields_of, validated
from app.api.state import StateOf
from app.errors import InvalidField, UnknownLanguage
from app.service import Service
from app.tasks.glossaries import StoredGlossary, made
from app.tasks.languages import served
from app.text.chinese import known_as, offered

_TSV = "text/tab-separated-values"


class GlossaryFields(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1, max_length=1024)
    source_lang: str
    target_lang: str
    entries: str = Field(description="A line for each term, with its translation.")
    entries_format: Literal["tsv", "csv"]


router = APIRouter(prefix="/v2", tags=["DeepL"], responses=shaped(tell))


@router.post(
    "/glossaries",
    summary="Create a glossary, as DeepL does",
    status_code=201,
    openapi_extra=document(GlossaryFields),
)
async def create(request: Request, state: StateOf, service: ServiceOf) -> dict[str, Any]:
    fields = validated(GlossaryFields, await fields_of(request))
    source = _code(fields.source_lang, "source_lang", service)
    target = _code(fields.target_lang, "target_lang", service)
    if not service.translator.leads(source, target):
        raise UnknownLanguage("Unsupported glossary source and target language pair")
    entries = _entries(fields.entries, fields.entries_format)
    stored = made(str(uuid.uuid4()), source, target, entries, fields.name)
    return _told(state.glossaries.add(stored), service)


@router.get("/glossaries", summary="The glossaries, as DeepL tells them")
async def glossaries(state: StateOf, service: ServiceOf) -> dict[str, Any]:
    return {"glossaries": [_told(one, service) for one in state.glossaries.all()]}


@router.get("/glossaries/{glossary_id}", summary="A glossary, as DeepL tells it")
async def glossary(glossary_id: str, state: StateOf, service: ServiceOf) -> dict[str, Any]:
    return _told(state.glossaries.get(glossary_id, "glossary_id"), service)


@router.get(
    "/glossaries/{glossary_id}/entries",
    summary="The entries of a glossary, as tab-separated values",
    response_class=Response,
    responses={200: {"content": {_TSV: {"schema": {"type": "string"}}}}},
)
async def entries(glossary_id: str, state: StateOf, service: ServiceOf) -> Response:
    found = state.glossaries.get(glossary_id, "glossary_id").entries
    lines = "".join(f"{term}\t{wanted}\n" for term, wanted in found.items())
    return Response(lines.rstrip("\n"), media_type=f"{_TSV}; charset=utf-8")


@router.delete("/glossaries/{glossary_id}", summary="Remove a glossary", status_code=204)
async def remove(glossary_id: str, state: StateOf, service: ServiceOf) -> Response:
    state.glossaries.remove(glossary_id)
    return Response(status_code=204)


@router.get("/glossary-language-pairs", summary="The language pairs that glossaries can be of")
async def pairs(service: ServiceOf) -> dict[str, Any]:
    return {
        "supported_languages": [
            {"source_lang": source, "target_lang": target}
            for source, target in service.bundle.manifest.pairs
        ]
    }


def _code(given: str, param: str, service: Service) -> str:
    code = served(given[:60], offered(service.bundle.manifest.languages))
    if code is None:
        raise UnknownLanguage(f"Value for '{param}' not supported: {given[:60]!r}", param=param)
    return code


def _entries(text: str, form: str) -> dict[str, str]:
    if form == "tsv":
        rows = [line.split("\t") for line in text.splitlines()]
    else:
        try:
            rows = list(csv.reader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise InvalidField(f"entries cannot be read: {error}", param="entries") from None
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) < 2 or (form == "tsv" and len(row) > 2):
            raise InvalidField(
                f"entries, line {number}: a term and its translation are needed", param="entries"
            )
        term, wanted = row[0].strip(), row[1].strip()
        if term in found:
            raise InvalidField(f"entries, line {number}: {term[:60]!r} again", param="entries")
        found[term] = wanted
    return found


def _told(stored: StoredGlossary, service: Service) -> dict[str, Any]:
    languages = service.bundle.manifest.languages
    return {
        "glossary_id": stored.name,
        "name": stored.title or stored.name,
        "ready": True,
        "source_lang": known_as(stored.source, languages),
        "target_lang": known_as(stored.target, languages),
        "creation_time": stored.created,
        "entry_count": len(stored.entries),
    }
