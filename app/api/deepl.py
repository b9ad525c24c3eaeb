"""DeepL's API: /v2/translate, /v2/languages, /v2/usage, and its glossaries.

Bodies are JSON or forms; without a file of keys any key is accepted. Codes are upper case, English
and Portuguese targets have a region, which changes nothing here. `context`, `split_sentences` and
`preserve_formatting` are taken and change nothing; what would have to change the answer and cannot
(formality, instructions) is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.api import deepl_glossaries
from app.api.access import CallerOf, ServiceOf
from app.api.deepl_errors import tell
from app.api.openapi import shaped
from app.api.requests import document, fields_of, unless_gone, validated
from app.api.state import State, StateOf
from app.api.streams import server_timing
from app.errors import InvalidField, UnknownLanguage
from app.service import Service
from app.tasks.languages import served
from app.tasks.translate import AUTO, TranslateOptions, Translation
from app.text.chinese import SIMPLIFIED, TRADITIONAL, VARIANTS, known_as, offered
from app.text.glossary import Glossary

# Languages that are a target by region only, and the regions' names.
_REGIONS = {
    "en": {"GB": "British", "US": "American"},
    "pt": {"BR": "Brazilian", "PT": "European"},
}
_REFUSED = ("glossary_ids", "style_id", "translation_memory_id", "custom_instructions")
_UNLIMITED = 10**12  # characters, as DeepL tells those who have no limit


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Choices(BaseModel):
    """What texts and documents have in common."""

    model_config = ConfigDict(extra="ignore")

    target_lang: str
    source_lang: str = AUTO
    context: str = ""
    split_sentences: Literal["0", "1", "nonewlines"] = "1"
    preserve_formatting: bool = False
    formality: Literal["default", "more", "less", "prefer_more", "prefer_less"] = "default"
    model_type: (
        Literal["latency_optimized", "prefer_quality_optimized", "quality_optimized"] | None
    ) = None
    show_billed_characters: bool = False
    tag_handling: Literal["xml", "html"] | None = None
    glossary_id: Annotated[str, Field(max_length=100)] | None = None
    glossary_ids: Any = Field(None, description="As the ones below: must be left out.")
    style_id: Any = None
    translation_memory_id: Any = None
    custom_instructions: Any = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in data.items() if value is not None}


class TranslateFields(Choices):
    text: Annotated[list[str], BeforeValidator(_several), Field(min_length=1)]


class LanguagesFields(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["source", "target"] = "source"


router = APIRouter(prefix="/v2", tags=["DeepL"], responses=shaped(tell))


@router.post(
    "/translate", summary="Translate, as DeepL does", openapi_extra=document(TranslateFields)
)
async def translate(
    request: Request, response: Response, state: StateOf, service: ServiceOf
) -> dict[str, Any]:
    fields = validated(TranslateFields, await fields_of(request, arrays={"text"}))
    refuse(fields)
    work = service.translator.run(
        fields.text,
        code_of(fields.source_lang, "source_lang", service),
        code_of(fields.target_lang, "target_lang", service),
        state.deadline(None),
        options=TranslateOptions(
            format=fields.tag_handling or "text", glossary=glossary_of(fields, state)
        ),
        unchanged=True,
    )
    result = await unless_gone(request, work)
    response.headers["Server-Timing"] = server_timing(result.timing)
    response.headers["X-Trace-ID"] = request.scope["state"]["request_id"]
    told = zip(fields.text, result.translations, strict=True)
    return {"translations": [_translation(text, one, fields) for text, one in told]}


@router.get("/languages", summary="Languages, as DeepL tells them")
async def languages(request: Request, service: ServiceOf) -> list[dict[str, Any]]:
    # its own client sends `type` as a form in the body of the GET
    kind = validated(LanguagesFields, await fields_of(request)).type
    manifest = service.bundle.manifest
    ends = {pair[kind == "target"] for pair in manifest.pairs}
    found: list[dict[str, Any]] = []
    for code, name in offered(manifest.languages).items():
        if code in VARIANTS and (code != TRADITIONAL or kind == "source"):
            continue  # sources have no script there, and targets no other one
        if known_as(code, manifest.languages) not in ends:
            continue
        if kind == "source":
            found.append({"language": code.upper(), "name": name})
            continue
        regions = _REGIONS.get(code, {})
        names = {f"{code}-{region}": f"{name} ({of})" for region, of in regions.items()}
        found += [
            {"language": one.upper(), "name": called, "supports_formality": False}
            for one, called in (names or {code: name}).items()
        ]
    return found


@router.get("/usage", summary="The caller's characters of today, or of all days if without limit")
async def usage(caller: CallerOf) -> dict[str, int]:
    quota = caller.key.characters_per_day
    if quota is None:
        return {"character_count": caller.characters, "character_limit": _UNLIMITED}
    return {"character_count": caller.today, "character_limit": quota}


def glossary_of(fields: Choices, state: State) -> Glossary:
    if not fields.glossary_id:
        return Glossary()
    if fields.source_lang == AUTO:
        raise InvalidField("'source_lang' is required with a glossary", param="source_lang")
    return state.glossaries.use(fields.glossary_id, "glossary_id")


def refuse(fields: Choices) -> None:
    for name in _REFUSED:
        if getattr(fields, name):
            raise InvalidField(f"'{name}' is not supported by this server", param=name)
    if fields.formality in ("more", "less"):
        raise InvalidField(
            "'formality' is not supported for given 'target_lang'", param="formality"
        )
    if fields.model_type == "quality_optimized":
        raise InvalidField("Value for 'model_type' not supported", param="model_type")


def code_of(given: str, param: str, service: Service) -> str:
    if param == "source_lang" and given == AUTO:
        return AUTO
    code = served(given[:60], offered(service.bundle.manifest.languages))
    if code is None:
        raise UnknownLanguage(f"Value for '{param}' not supported: {given[:60]!r}", param=param)
    return code


def _translation(text: str, one: Translation, fields: TranslateFields) -> dict[str, Any]:
    source = SIMPLIFIED if one.source in VARIANTS else one.source
    told: dict[str, Any] = {"detected_source_language": source.upper(), "text": one.text}
    if fields.show_billed_characters:
        told["billed_characters"] = len(text)
    if fields.model_type is not None:
        told["model_type_used"] = "latency_optimized"
    return told


router.routes.extend(deepl_glossaries.router.routes)
