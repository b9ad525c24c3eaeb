"""LibreTranslate's API: /translate, /translate_file, /detect, /languages, /frontend/settings.

Bodies are JSON or forms, errors `{"error": "..."}`, nearly all of them 400, with LibreTranslate's
own words where it has some. Unknown fields and any API key are ignored, as by a server without
keys. A text's language is detected for each item of an array. /health is the service's own, which
says the same.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from app.api.access import ServiceOf, key_in_body
from app.api.openapi import binary, shaped
from app.api.problems import detail
from app.api.requests import document, fields_of, media_type, unless_gone
from app.api.state import ReadyOf, StateOf
from app.api.streams import server_timing
from app.api.uploads import attachment, upload_of
from app.documents.formats import EXTENSIONS, MEDIA_TYPES, format_of, translated_name
from app.errors import (
    AppError,
    InvalidField,
    KeyMissing,
    KeyWrong,
    NotFound,
    QueueFull,
    UnknownLanguage,
)
from app.service import Service
from app.tasks.languages import served
from app.tasks.translate import AUTO, BOUNDS, PLAIN, TranslateOptions, Translation
from app.text.chinese import TRADITIONAL, offered
from app.text.detect import Detection

_ALIASES = {"zt": TRADITIONAL}
_TOLD = {"zh": "zh-Hans"}  # codes that LibreTranslate tells otherwise
_CANDIDATES = 3  # languages that /detect tells at most
_FRONTEND_TIMEOUT_MS = 500  # LibreTranslate's default


class TranslateFields(BaseModel):
    """For the OpenAPI document; the route reads them with LibreTranslate's own errors."""

    q: str | list[str]
    source: str
    target: str
    format: Literal["text", "html"] = "text"
    alternatives: int = 0
    api_key: str = ""


class FileFields(BaseModel):
    file: Annotated[str, Field(json_schema_extra={"format": "binary"})]
    source: str
    target: str
    api_key: str = ""


class DetectFields(BaseModel):
    q: str | list[str]
    api_key: str = ""


@dataclass(frozen=True, slots=True)
class _Ask:
    texts: str | list[str]
    source: str
    target: str
    alternatives: int
    format: Literal["text", "html"]

    @property
    def options(self) -> TranslateOptions:
        if not self.alternatives:
            return TranslateOptions(format=self.format)
        size = self.alternatives + 1  # the translation itself is among ours
        return TranslateOptions(beam=size, alternatives=size, format=self.format)


def tell(error: AppError) -> tuple[int, dict[str, str]]:
    if isinstance(error, QueueFull):
        return 429, {"error": f"Slowdown: {error.detail}"}
    if isinstance(error, KeyWrong):
        return 403, {"error": "Invalid API key"}
    if isinstance(error, KeyMissing):
        return 400, {"error": "Please contact the server operator to get an API key"}
    status = 400 if error.status in (400, 415, 422) else error.status
    return status, {"error": detail(error)}


router = APIRouter(
    tags=["LibreTranslate"], responses=shaped(tell), dependencies=[Depends(key_in_body)]
)


@router.post(
    "/translate",
    summary="Translate, as LibreTranslate does",
    openapi_extra=document(TranslateFields),
)
async def translate(
    request: Request, response: Response, state: StateOf, service: ServiceOf
) -> dict[str, Any]:
    ask = _ask(await fields_of(request), service)
    if media_type(request) != "application/json" and isinstance(ask.texts, str):
        ask = replace(ask, texts="\n".join(ask.texts.splitlines()))
    work = service.translator.run(
        ask.texts,
        ask.source,
        ask.target,
        state.deadline(None),
        options=ask.options,
        param="q",
        unchanged=True,
    )
    result = await unless_gone(request, work)
    response.headers["Server-Timing"] = server_timing(result.timing)
    columns: dict[str, list[Any]] = {"translatedText": [t.text for t in result.translations]}
    if ask.source == AUTO:
        columns["detectedLanguage"] = [_detected(t.detected) for t in result.translations]
    if ask.alternatives:
        columns["alternatives"] = [_others(t) for t in result.translations]
    if isinstance(ask.texts, str):
        return {name: values[0] for name, values in columns.items()}
    return columns


@router.post(
    "/translate_file",
    summary="Translate a file, as LibreTranslate does",
    openapi_extra=document(FileFields, "multipart/form-data"),
)
async def translate_file(
    request: Request, state: StateOf, service: ServiceOf
) -> dict[str, str]:
    upload, fields = await upload_of(request)
    if upload is None:
        raise _missing("file")
    source, target = _pair(fields, service)
    if not upload.filename or not upload.data:
        raise InvalidField("Invalid request: empty file", param="file")
    form = format_of(upload.filename)
    deadline = state.deadline(state.max_timeout_s)
    work = state.documents.run(
        service.translator, upload.data, form, source, target, deadline, PLAIN
    )
    made = await unless_gone(request, work)
    name = translated_name(upload.filename, target)
    key = f"{uuid.uuid4()}.{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-100:]}"
    state.files.put(key, name, form.media_types[0], made.data)
    return {"translatedFileUrl": str(request.url_for("download_file", filename=key))}


@router.get(
    "/download_file/{filename}",
    summary="A file translated before, for half an hour",
    response_class=Response,
    responses={200: {"content": binary(MEDIA_TYPES)}},
)
async def download_file(filename: str, state: StateOf) -> Response:
    file = state.files.get(filename)
    if file is None:
        raise NotFound("there is no such file, or not any more", param="filename")
    return attachment(file.name, file.data, file.media_type, {})


@router.post(
    "/detect",
    summary="Detect a language, as LibreTranslate does",
    openapi_extra=document(DetectFields),
)
async def detect(request: Request, service: ServiceOf) -> list[dict[str, Any]]:
    texts = _texts(await fields_of(request))
    whole = texts if isinstance(texts, str) else "\n".join(texts)
    ranked = service.detector.ranked(whole)[:_CANDIDATES]
    return [_detected(one) for i, one in enumerate(ranked) if not i or one.confidence >= 0.005]


@router.get("/languages", summary="Languages, as LibreTranslate tells them")
async def languages(service: ReadyOf) -> list[dict[str, Any]]:
    known, leads = _known(service), service.translator.leads
    return [
        {
            "code": _told(code),
            "name": name,
            "targets": sorted(_told(t) for t in known if t == code or leads(code, t)),
        }
        for code, name in known.items()
    ]


@router.get("/frontend/settings", summary="What LibreTranslate tells its web page")
async def frontend_settings(state: StateOf, service: ReadyOf) -> dict[str, Any]:
    names = list(service.bundle.manifest.languages.items())
    code, name = names[1] if len(names) > 1 else names[0]
    return {
        "charLimit": service.limits.max_characters,
        "frontendTimeout": _FRONTEND_TIMEOUT_MS,
        "apiKeys": state.access.closed,
        "keyRequired": state.access.closed,
        "suggestions": False,
        "filesTranslation": True,
        "supportedFilesFormat": list(EXTENSIONS),
        "language": {
            "source": {"code": AUTO, "name": "Auto Detect"},
            "target": {"code": _told(code), "name": name},
        },
    }


def _ask(fields: dict[str, Any], service: Service) -> _Ask:
    texts = _texts(fields)
    _text(fields, "source"), _text(fields, "target")  # what is missing is told first
    alternatives = _alternatives(fields, service)
    origin, goal = _pair(fields, service)
    return _Ask(texts, origin, goal, alternatives, _format(fields))


def _pair(fields: Mapping[str, Any], service: Service) -> tuple[str, str]:
    source, target = _text(fields, "source"), _text(fields, "target")
    known = _known(service)
    origin = AUTO if source.casefold() == AUTO else served(_ALIASES.get(source, source), known)
    goal = served(_ALIASES.get(target, target), known)
    if origin is None or goal is None:
        param, code = ("source", source) if origin is None else ("target", target)
        raise UnknownLanguage(f"{code} is not supported", param=param)
    if origin not in (AUTO, goal) and not service.translator.leads(origin, goal):
        raise UnknownLanguage(
            f"{known[goal]} ({goal}) is not available as a target language from "
            f"{known[origin]} ({origin})",
            param="target",
        )
    return origin, goal


def _known(service: Service) -> dict[str, str]:
    """As LibreTranslate has them, without the regions of Chinese."""
    found = offered(service.bundle.manifest.languages)
    return {code: name for code, name in found.items() if code not in ("zh-TW", "zh-HK")}


def _texts(fields: dict[str, Any]) -> str | list[str]:
    given = fields.get("q")
    if not given:
        raise _missing("q")
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise InvalidField("Invalid request: q is neither a text nor an array", param="q")
    for i, text in enumerate(given):
        if not isinstance(text, str):
            raise InvalidField(f"Invalid request: q[{i}] is not a text", param=f"q[{i}]")
    return given


def _text(fields: Mapping[str, Any], name: str) -> str:
    given = fields.get(name)
    if not given:
        raise _missing(name)
    if not isinstance(given, str):
        raise InvalidField(f"Invalid request: {name} is not a text", param=name)
    return given[:60]


def _alternatives(fields: dict[str, Any], service: Service) -> int:
    given = fields.get("alternatives") or 0
    try:
        count = max(0, int(given))
    except (TypeError, ValueError, OverflowError):
        raise InvalidField(
            "Invalid request: alternatives parameter is not a number", param="alternatives"
        ) from None
    most = min(BOUNDS["beam"].high, service.cache.slots) - 1
    if count > most:
        raise InvalidField(
            f"Invalid request: alternatives parameter must be <= {most}", param="alternatives"
        )
    return count


def _format(fields: dict[str, Any]) -> Literal["text", "html"]:
    match fields.get("format") or "text":
        case "text":
            return "text"
        case "html":
            return "html"
        case other:
            raise InvalidField(f"{str(other)[:60]} format is not supported", param="format")


def _missing(name: str) -> InvalidField:
    return InvalidField(f"Invalid request: missing {name} parameter", param=name)


def _others(translation: Translation) -> list[str]:
    return [one.text for one in translation.alternatives if one.text != translation.text]


def _detected(found: Detection | None) -> dict[str, Any]:
    if found is None:
        return {"confidence": 0.0, "language": "en"}
    return {"confidence": round(found.confidence * 100, 2), "language": _told(found.language)}


def _told(code: str) -> str:
    return _TOLD.get(code, code)
