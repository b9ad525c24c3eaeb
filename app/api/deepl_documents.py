"""DeepL's documents: upload, ask for the status, fetch the result once.

The translation goes on in the background, whoever asks for it; what is under way is bounded, and
results are kept like other files. Errors have the shape of DeepL's other routes.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import ServiceOf
from app.api.deepl import Choices, code_of, glossary_of, refuse
from app.api.deepl_errors import tell
from app.api.files import MAX_AGE_S, MAX_FILES, Work
from app.api.openapi import binary, shaped
from app.api.problems import detail
from app.api.requests import document, fields_of, validated
from app.api.state import State, StateOf
from app.api.uploads import attachment, upload_of
from app.documents.formats import MEDIA_TYPES, format_of, translated_name
from app.documents.run import TranslatedFile
from app.errors import AppError, InvalidField, NotFound, NotReady, QueueFull
from app.tasks.options import TranslateOptions

_UNDER_WAY = 16  # documents


class UploadFields(Choices):
    file: str = Field("", json_schema_extra={"format": "binary"})
    filename: str = ""
    output_format: str = ""


class KeyFields(BaseModel):
    model_config = ConfigDict(extra="ignore")

    document_key: str


router = APIRouter(prefix="/v2", tags=["DeepL"], responses=shaped(tell))


@router.post(
    "/document",
    summary="Translate a document, as DeepL does",
    openapi_extra=document(UploadFields, "multipart/form-data"),
)
async def upload(
    request: Request, state: StateOf, service: ServiceOf
) -> dict[str, str]:
    sent, given = await upload_of(request)
    fields = validated(UploadFields, given)
    refuse(fields)
    if sent is None:
        raise InvalidField("'file' is missing", param="file")
    source = code_of(fields.source_lang, "source_lang", service)
    target = code_of(fields.target_lang, "target_lang", service)
    service.translator.pair(source, target, unchanged=True)
    name = fields.filename or sent.filename
    form = format_of(name)
    if fields.output_format.casefold() not in ("", *(e[1:] for e in form.extensions)):
        raise InvalidField("'output_format' must be that of the file", param="output_format")
    deadline = state.deadline(state.max_timeout_s)
    options = TranslateOptions(glossary=glossary_of(fields, state))
    service.translator.check_glossary(options.glossary, source, target)
    identity, work = _new(state.works)
    lease = state.keep_lease(request.scope)  # it goes on when this request has been answered
    running = state.documents.run(
        service.translator, sent.data, form, source, target, deadline, options
    )

    async def go() -> None:
        try:
            made: TranslatedFile = await running
        except AppError as error:
            work.error = detail(error)
        except Exception:
            work.error = AppError.title
        else:
            work.characters = made.characters
            kind = form.media_types[0]
            state.files.put(identity, translated_name(name, target), kind, made.data)
        finally:
            lease.close()
            work.done = True

    work.task = asyncio.create_task(go())
    return {"document_id": identity, "document_key": work.key}


@router.post(
    "/document/{identity}", summary="How far it is", openapi_extra=document(KeyFields)
)
async def status(identity: str, request: Request, state: StateOf) -> dict[str, Any]:
    work = _find(identity, await fields_of(request), state)
    told: dict[str, Any] = {"document_id": identity, "status": "translating"}
    if work.error:
        told |= {"status": "error", "error_message": work.error}
    elif work.done:
        told |= {"status": "done", "billed_characters": work.characters}
    else:
        told["seconds_remaining"] = 5
    return told


@router.post(
    "/document/{identity}/result",
    summary="The translated document",
    response_class=Response,
    responses={200: {"content": binary(MEDIA_TYPES)}},
    openapi_extra=document(KeyFields),
)
async def result(identity: str, request: Request, state: StateOf) -> Response:
    work = _find(identity, await fields_of(request), state)
    if not work.done:
        raise NotReady("Document not ready", retry_after_s=5)
    file = state.files.get(identity)
    if file is None:
        raise NotFound("Document not found", param="document_id")
    return attachment(file.name, file.data, file.media_type, {})


def _new(works: OrderedDict[str, Work]) -> tuple[str, Work]:
    """Room for one more, unless too many are under way."""
    now = time.monotonic()
    for identity, work in list(works.items()):
        if work.done and (now - work.at > MAX_AGE_S or len(works) >= MAX_FILES):
            del works[identity]
    if sum(not work.done for work in works.values()) >= _UNDER_WAY:
        raise QueueFull(f"{_UNDER_WAY} documents are under way", retry_after_s=5)
    identity = secrets.token_hex(16).upper()
    works[identity] = Work(secrets.token_hex(32).upper(), now)
    return identity, works[identity]


def _find(identity: str, given: dict[str, Any], state: State) -> Work:
    key = validated(KeyFields, given).document_key
    work = state.works.get(identity)
    if work is None or not secrets.compare_digest(work.key.encode(), key.encode(errors="replace")):
        raise NotFound("Document not found", param="document_id")
    return work
