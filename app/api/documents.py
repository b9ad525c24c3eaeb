"""Documents: a file in, the same file in another language out."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import CallerOf, ServicesOf
from app.api.openapi import binary, errors
from app.api.requests import unless_gone, validated
from app.api.state import State, StateOf
from app.api.uploads import attachment, upload_of
from app.documents.formats import FORMATS, MEDIA_TYPES, format_of, translated_name
from app.errors import (
    BadForm,
    BodyTooLarge,
    DeadlineExceeded,
    InvalidField,
    NotReady,
    QueueFull,
    RequestTimeout,
    UnknownGlossary,
    UnsupportedMediaType,
)
from app.tasks.options import TranslateOptions
from app.text.glossary import Glossary


class DocumentFields(BaseModel):
    """The fields beside the file."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[str, Field(max_length=35)] = "auto"
    target: Annotated[str, Field(min_length=1, max_length=35)]
    glossary: Annotated[str, Field(description="A name, or a JSON object of terms.")] = ""
    format: Annotated[
        str, Field(max_length=60, description="Left out: by the file name's ending.")
    ] = ""
    model: Annotated[str, Field(description="A name of `/v1/models`; left out: the first.")] = ""
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class FormatAnswer(BaseModel):
    name: str
    extensions: list[str]
    media_types: list[str]


class FormatsAnswer(BaseModel):
    formats: list[FormatAnswer]
    max_bytes: int


def _form() -> dict[str, Any]:
    schema = DocumentFields.model_json_schema()
    schema["properties"] = {
        "file": {"type": "string", "format": "binary"},
        **schema["properties"],
    }
    schema["required"] = ["file", *schema.get("required", [])]
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


_ANSWER = {
    "description": "The translated file",
    "content": binary(MEDIA_TYPES),
    "headers": {
        "X-Translation-Source": {"schema": {"type": "string"}},
        "X-Translation-Items": {"schema": {"type": "integer"}},
        "X-Translation-Flagged": {"schema": {"type": "integer"}},
    },
}
router = APIRouter(prefix="/v1", tags=["v1"])


@router.post(
    "/documents",
    summary="Translate a file, its structure kept",
    response_class=Response,
    openapi_extra=_form(),
    responses={
        200: _ANSWER,
        **errors(BadForm, UnknownGlossary, RequestTimeout, BodyTooLarge, UnsupportedMediaType,
                 InvalidField, QueueFull, DeadlineExceeded),
    },
)  # fmt: skip
async def translate(request: Request, state: StateOf, services: ServicesOf) -> Response:
    """The deadline is the longest that is allowed, unless `timeout_s` says less."""
    documents = state.documents
    upload, given = await upload_of(request)
    fields = validated(DocumentFields, given)
    service = services.named(fields.model or None)
    if upload is None:
        raise InvalidField("file is missing", param="file")
    if len(upload.data) > documents.max_bytes:
        raise BodyTooLarge(f"file may have at most {documents.max_bytes} bytes", param="file")
    form = format_of(upload.filename, fields.format)
    options = TranslateOptions(glossary=_glossary(fields.glossary, state))
    deadline = state.deadline(fields.timeout_s or state.max_timeout_s)
    ask = (fields.source, fields.target, deadline, options)
    work = documents.run(service.translator, upload.data, form, *ask)
    made = await unless_gone(request, work)
    headers = {
        "X-Translation-Source": made.source,
        "X-Translation-Items": str(made.items),
        "X-Translation-Flagged": str(made.flagged),
    }
    name = translated_name(upload.filename, fields.target)
    return attachment(name, made.data, form.media_types[0], headers)


@router.get("/documents", summary="Formats of documents", responses=errors(NotReady))
async def formats(state: StateOf, caller: CallerOf) -> FormatsAnswer:
    return FormatsAnswer(
        formats=[
            FormatAnswer(
                name=one.name, extensions=list(one.extensions), media_types=list(one.media_types)
            )
            for one in FORMATS.values()
        ],
        max_bytes=state.documents.max_bytes,
    )


def _glossary(given: str, state: State) -> Glossary:
    if not given.strip():
        return Glossary()
    if not given.lstrip().startswith("{"):
        return state.glossaries.use(given.strip())
    try:
        terms = json.loads(given)
    except (ValueError, RecursionError):
        raise InvalidField("glossary is not valid JSON", param="glossary") from None
    if not all(isinstance(term, str) for term in terms.values()):
        raise InvalidField("glossary is not an object of texts", param="glossary")
    return Glossary.of(terms)
