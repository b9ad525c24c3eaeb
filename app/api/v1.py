"""The service's own API: translate, generate, models, languages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response
from pydantic import BaseModel

from app.api import examples
from app.api.access import CallerOf, ServiceOf, ServicesOf
from app.api.openapi import errors
from app.api.problems import members
from app.api.requests import require_json, unless_gone
from app.api.schemas import (
    DetectAnswer,
    DetectRequest,
    GenerateAnswer,
    GenerateRequest,
    GenerationAnswer,
    KeyUsageAnswer,
    LanguageAnswer,
    LanguagesAnswer,
    LikelyToken,
    ModelAnswer,
    ModelsAnswer,
    ScoredToken,
    TranslateAnswer,
    TranslateRequest,
)
from app.api.state import StateOf
from app.api.streams import EventStream, server_timing
from app.api.translations import answer_of, detected_of, events_of, timing_of, usage_of
from app.engine.request import Timing
from app.errors import (
    BadJson,
    BodyTooLarge,
    DeadlineExceeded,
    InvalidField,
    NotReady,
    QueueFull,
    RequestTimeout,
    UnknownGlossary,
    UnknownModel,
    UnsupportedMediaType,
)
from app.service import Service
from app.tasks.generate import GenerateOptions, GenerationStream, Scored, default_temperature
from app.tasks.inputs import check_texts
from app.tasks.options import TranslateOptions
from app.text.chinese import offered
from app.text.glossary import Glossary

POST_ERRORS = errors(
    BadJson,
    RequestTimeout,
    BodyTooLarge,
    UnsupportedMediaType,
    UnknownModel,
    InvalidField,
    QueueFull,
    DeadlineExceeded,
)


router = APIRouter(prefix="/v1", tags=["v1"])


@router.post(
    "/translate",
    summary="Translate one text or several",
    response_model=TranslateAnswer,
    responses={200: examples.TRANSLATE_ANSWER, **POST_ERRORS, **errors(UnknownGlossary)},
    dependencies=[Depends(require_json)],
)
async def translate(
    body: Annotated[TranslateRequest, Body(openapi_examples=examples.TRANSLATE)],
    request: Request,
    state: StateOf,
    services: ServicesOf,
) -> Response:
    """Answers stand in the order of the texts; all sentences are batched together. An item of an
    array that cannot be translated has an `error`. With `stream`, server-sent events: `token` (the
    next characters of a draft, at `offset` in the item's translation), `sentence` (final, in place
    of the draft from `target.start` on), `translation` (an item), `done`; the last one is `[DONE]`,
    an error after the first event comes as `{"error": {...}}`."""
    service = services.named(body.model)
    deadline = state.deadline(body.timeout_s)
    found = body.glossary
    glossary = state.glossaries.use(found) if isinstance(found, str) else Glossary.of(found)
    options = TranslateOptions(
        body.beam, body.length_penalty, body.alternatives, body.prefix, body.branch,
        body.format, glossary, body.retry,
    )  # fmt: skip
    ask = (body.text, body.source, body.target, deadline)
    model = service.bundle.manifest.name
    if body.stream:
        live = await service.translator.start(*ask, options, each=True)
        drafts, scope = options.search is None and body.format == "text", request.scope
        return EventStream(
            live,
            events_of(live, model, bool(found), drafts),
            lambda error: {"error": members(error, scope)},
            scope["state"]["request_id"],
        )
    work = service.translator.run(*ask, options=options, each=True)
    result = await unless_gone(request, work)
    return _told(answer_of(result, model, bool(found)), result.timing)


@router.post(
    "/generate",
    summary="Continue one prompt or several",
    response_model=GenerateAnswer,
    responses={200: examples.GENERATE_ANSWER, **POST_ERRORS},
    dependencies=[Depends(require_json)],
)
async def generate(
    body: Annotated[GenerateRequest, Body(openapi_examples=examples.GENERATE)],
    request: Request,
    state: StateOf,
    services: ServicesOf,
) -> Response:
    """With `stream`, server-sent events carry `{"index", "text", "finish_reason"}` each, with
    `logprobs` those of the text's tokens as well, and the last one is `[DONE]`; an error after the
    first event comes as `{"error": {...}}`."""
    service = services.named(body.model)
    deadline = state.deadline(body.timeout_s)
    options = _options(body)
    if body.stream:
        stream = await service.generator.start(body.prompt, options, deadline)
        scope = request.scope
        return EventStream(
            stream,
            _events(stream, body.logprobs is not None),
            lambda error: {"error": members(error, scope)},
            scope["state"]["request_id"],
        )
    result = await unless_gone(request, service.generator.run(body.prompt, options, deadline))
    answer = GenerateAnswer(
        generations=[
            GenerationAnswer(
                text=g.text,
                finish_reason=g.finish_reason,
                logprobs=None if g.tokens is None else [_scored(token) for token in g.tokens],
            )
            for g in result.generations
        ],
        usage=usage_of(result.usage),
        timing=timing_of(result.timing),
        model=service.bundle.manifest.name,
    )
    return _told(answer, result.timing)


def _told(answer: BaseModel, timing: Timing) -> Response:
    """The answer as it is: the framework would validate and copy it again."""
    return Response(
        answer.model_dump_json(),
        media_type="application/json",
        headers={"Server-Timing": server_timing(timing)},
    )


@router.get("/usage", summary="What the caller's key may do and has done")
async def usage(caller: CallerOf) -> KeyUsageAnswer:
    """Counted by this process since it started; days are those of UTC."""
    return KeyUsageAnswer(
        name=caller.key.name,
        requests=caller.requests,
        characters=caller.characters,
        characters_today=caller.today,
        resets_s=caller.resets_s,
        requests_per_minute=caller.key.requests_per_minute,
        characters_per_day=caller.key.characters_per_day,
    )


@router.post(
    "/detect",
    summary="The languages that texts may be in",
    responses={**POST_ERRORS},
    dependencies=[Depends(require_json)],
)
async def detect(body: DetectRequest, service: ServiceOf) -> DetectAnswer:
    """Among the languages that are served; Chinese in traditional characters is `zh-Hant`."""
    texts = check_texts(body.text, service.limits, "text")
    found = await asyncio.to_thread(lambda: [service.detector.ranked(text) for text in texts])
    return DetectAnswer(detections=[one for c in found if (one := detected_of(c))])


@router.get("/models", summary="The models that are served", responses=errors(NotReady))
async def models(services: ServicesOf) -> ModelsAnswer:
    """The first one answers where none is named."""
    return ModelsAnswer(data=[model_of(service) for service in services.all()])


@router.get(
    "/languages",
    summary="Languages and their targets",
    responses=errors(UnknownModel, NotReady),
)
async def languages(services: ServicesOf, model: str | None = None) -> LanguagesAnswer:
    service = services.named(model)
    known = offered(service.bundle.manifest.languages)
    leads = service.translator.leads
    return LanguagesAnswer(
        languages=[
            LanguageAnswer(code=code, name=name, targets=[t for t in known if leads(code, t)])
            for code, name in known.items()
        ]
    )


def model_of(service: Service) -> ModelAnswer:
    manifest = service.bundle.manifest
    limits = service.limits
    return ModelAnswer(
        id=manifest.name,
        created=_unix_time(manifest.created),
        created_at=manifest.created,
        precision=manifest.model.precision,
        parameters=manifest.model.parameters,
        context=limits.context,
        tasks=sorted(manifest.templates),
        languages=list(manifest.languages),
        pairs=list(manifest.pairs),
        limits={
            "max_prompt_tokens": limits.max_prompt_tokens,
            "max_items": limits.max_items,
            "max_characters": limits.max_characters,
        },
    )


def _unix_time(created: str) -> int:
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:  # a manifest may say anything
        return 0


async def _events(stream: GenerationStream, logprobs: bool) -> AsyncIterator[dict[str, Any]]:
    async for chunk in stream.chunks():
        event = {"index": chunk.index, "text": chunk.text, "finish_reason": chunk.finish_reason}
        if logprobs:
            event["logprobs"] = [_scored(token).model_dump() for token in chunk.tokens]
        yield event


def _options(body: GenerateRequest) -> GenerateOptions:
    temperature = body.temperature
    if temperature is None:
        several = body.n if body.n > 1 else None
        temperature = default_temperature(body.top_k, body.top_p, body.min_p, body.seed, several)
    stop = body.stop or []
    return GenerateOptions(
        max_tokens=body.max_tokens,
        temperature=temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=tuple((int(token), bias) for token, bias in body.logit_bias.items()),
        min_tokens=body.min_tokens,
        seed=body.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        logprobs=body.logprobs,
        n=body.n,
        task=body.task,
    )


def _scored(token: Scored) -> ScoredToken:
    top = [LikelyToken(id=i, text=text, logprob=logprob) for i, text, logprob in token.top]
    return ScoredToken(id=token.id, text=token.text, logprob=token.logprob, top=top)
