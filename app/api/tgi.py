"""Text Generation Inference's API over the generation task: /generate, /generate_stream, /tokenize,
/info, and POST / with `stream`, which is what `huggingface_hub` asks.

As there, a text ends with the stop string that ended it, sampling has to be asked for (except by
leaving `parameters` out), and without `max_new_tokens` the context is filled. Unknown fields are
ignored. Errors are `{"error", "error_type"}`, with 422 for a wrong field. An end token is not told
as a token. A stream's status is decided before its first event.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from app.api.access import ServiceOf
from app.api.openapi import events, shaped
from app.api.problems import detail
from app.api.requests import require_json, unless_gone
from app.api.state import State, StateOf
from app.api.streams import EventStream, server_timing
from app.api.tgi_schemas import MAX_BEST_OF, TgiCompatRequest, TgiRequest, TgiTokenizeRequest
from app.api.tgi_stream import events_of, finish_reason_of, token_of, tops_of
from app.errors import (
    AppError,
    EngineFailed,
    InvalidField,
    KeyMissing,
    KeyWrong,
    NotReady,
    QueueFull,
    QuotaExceeded,
    RateLimited,
)
from app.service import Service
from app.tasks.generate import MAX_STOPS, SEEDS, GenerateOptions, GenerateResult, Generation

_COMPUTE_TYPE = "onnxruntime"


def tell(error: AppError) -> tuple[int, dict[str, str]]:
    if isinstance(error, KeyMissing | KeyWrong):
        return 401, {"error": error.detail}  # an error without a type is one of HTTP to clients
    if isinstance(error, RateLimited | QuotaExceeded):
        return 429, _told(error.detail, "overloaded")
    if isinstance(error, QueueFull):
        return 429, _told(f"Model is overloaded: {error.detail}", "overloaded")
    if isinstance(error, EngineFailed):
        return 424, _told("Request failed during generation", "generation")
    if isinstance(error, NotReady):
        return error.status, _told(f"unhealthy: {error.detail}", "healthcheck")
    if error.status == 422:
        return 422, _told(f"Input validation error: {error.detail}", "validation")
    if error.status < 500:
        return error.status, _told(error.detail, "validation")
    return error.status, _told(detail(error), "incomplete_generation")


def _told(message: str, kind: str) -> dict[str, str]:
    return {"error": message, "error_type": kind}


_EXAMPLE = """\
data: {"index":1,"token":{"id":381,"text":" is","logprob":-1.4,"special":false},\
"generated_text":" is","details":null}

"""
router = APIRouter(tags=["Text Generation Inference"], responses=shaped(tell))


@router.post("/generate", summary="Generate, as TGI does", dependencies=[Depends(require_json)])
async def generate(
    body: TgiRequest, request: Request, state: StateOf, service: ServiceOf
) -> Response:
    return await _whole(body, request, state, service, as_array=False)


@router.post(
    "/generate_stream",
    summary="Generate as server-sent events, as TGI does",
    response_class=Response,
    responses={200: {"content": events(_EXAMPLE)}},
    dependencies=[Depends(require_json)],
)
async def generate_stream(
    body: TgiRequest, request: Request, state: StateOf, service: ServiceOf
) -> Response:
    return await _stream(body, request, state, service)


@router.post("/", include_in_schema=False, dependencies=[Depends(require_json)])
async def compat(
    body: TgiCompatRequest, request: Request, state: StateOf, service: ServiceOf
) -> Response:
    if body.stream:
        return await _stream(body, request, state, service)
    return await _whole(body, request, state, service, as_array=True)


@router.post(
    "/tokenize", summary="Tokens of a text, as TGI tells them", dependencies=[Depends(require_json)]
)
async def tokenize(body: TgiTokenizeRequest, service: ServiceOf) -> list[dict[str, Any]]:
    text = body.inputs
    return [
        {"id": token, "text": text[start:stop], "start": start, "stop": stop}
        for token, start, stop in service.generator.spans(text, "inputs")
    ]


@router.get("/info", summary="Model and limits, as TGI tells them")
async def info(request: Request, service: ServiceOf) -> dict[str, Any]:
    manifest, limits = service.bundle.manifest, service.limits
    graph = manifest.files.get("model.onnx")
    return {
        "model_id": manifest.name,
        "model_sha": graph.sha256 if graph else None,
        "model_dtype": manifest.model.precision,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": limits.max_pieces,
        "max_best_of": _most(service),
        "max_stop_sequences": MAX_STOPS,
        "max_input_tokens": limits.max_prompt_tokens,
        "max_total_tokens": limits.context,
        "validation_workers": 1,
        "max_client_batch_size": 1,
        "router": "gpt2-mt",
        "version": request.app.version,
        "sha": None,
        "docker_label": None,
    }


async def _whole(
    body: TgiRequest, request: Request, state: State, service: Service, *, as_array: bool
) -> Response:
    began = time.monotonic()
    _check_best_of(body, service)
    options = _options(body)
    work = service.generator.run(body.inputs, options, state.deadline(None), "inputs")
    result = await unless_gone(request, work)
    order = sorted(range(len(result.generations)), key=lambda i: -result.generations[i].score)
    told = [_sequence(result.generations[i], body, _seed(options, i)) for i in order]
    answer: dict[str, Any] = {"generated_text": told[0]["generated_text"]}
    if body.parameters.details:
        answer["details"] = {k: v for k, v in told[0].items() if k != "generated_text"}
        if len(told) > 1:
            answer["details"]["best_of_sequences"] = told[1:]
    best = result.generations[order[0]]
    headers = _headers(body.inputs, result, best, time.monotonic() - began)
    return JSONResponse([answer] if as_array else answer, headers=headers)


async def _stream(body: TgiRequest, request: Request, state: State, service: Service) -> Response:
    if body.parameters.best_of != 1:
        raise InvalidField("`best_of` != 1 is not supported when streaming", param="best_of")
    options = _options(body)
    stream = await service.generator.start(body.inputs, options, state.deadline(None), "inputs")
    end = service.bundle.manifest.tokens.end
    return EventStream(
        stream,
        events_of(stream, body, _seed(options, 0), end),
        lambda error: tell(error)[1],
        request.scope["state"]["request_id"],
        done=False,
        headers={
            "x-compute-type": _COMPUTE_TYPE,
            "x-compute-characters": str(len(body.inputs)),
        },
    )


def _most(service: Service) -> int:
    return min(MAX_BEST_OF, service.limits.max_items)


def _check_best_of(body: TgiRequest, service: Service) -> None:
    asked = body.parameters
    if asked.best_of == 1:
        return
    if asked.best_of > (most := _most(service)):
        raise InvalidField(
            f"`best_of` must be > 0 and <= {most}. Given: {asked.best_of}", param="best_of"
        )
    if not asked.sampling:
        raise InvalidField("you must use sampling when `best_of` is > 1", param="best_of")
    if asked.seed is not None:
        raise InvalidField("`seed` must not be set when `best_of` > 1", param="seed")


def _options(body: TgiRequest) -> GenerateOptions:
    asked = body.parameters
    seed = secrets.randbelow(SEEDS) if asked.seed is None else asked.seed % SEEDS
    return GenerateOptions(
        max_tokens=asked.max_new_tokens,
        temperature=asked.temperature or 1.0 if asked.sampling else 0.0,
        top_k=asked.top_k or 0,
        top_p=asked.top_p or 1.0,
        repetition_penalty=asked.repetition_penalty,
        frequency_penalty=asked.frequency_penalty,
        seed=seed,
        stop=tuple(asked.stop),
        logprobs=asked.top_n_tokens,
        n=asked.best_of,
        truncate=asked.truncate,
        keep_stop=True,
    )


def _seed(options: GenerateOptions, i: int) -> int | None:
    """What generation i was drawn with; None if nothing was drawn."""
    if options.seed is None or not options.temperature:
        return None
    return (options.seed + i) % SEEDS


def _sequence(one: Generation, body: TgiRequest, seed: int | None) -> dict[str, Any]:
    tokens = one.tokens or ()
    told = {
        "generated_text": body.before + one.text,
        "finish_reason": finish_reason_of(one.finish_reason, one.matched),
        "generated_tokens": len(tokens),
        "seed": seed,
        "prefill": [],
        "tokens": [token_of(token, token.text) for token in tokens],
    }
    if body.parameters.top_n_tokens:
        told["top_tokens"] = [tops_of(token) for token in tokens]
    return told


def _headers(
    inputs: str, result: GenerateResult, best: Generation, seconds: float
) -> dict[str, str]:
    timing, tokens = result.timing, len(best.tokens or ())
    inference = timing.prefill_s + timing.decode_s
    validation = max(seconds - timing.queue_s - inference, 0.0)
    headers = {
        "x-compute-type": _COMPUTE_TYPE,
        "x-compute-time": f"{seconds:.6f}",
        "x-compute-characters": str(len(inputs)),
        "Server-Timing": server_timing(timing),
        "x-prompt-tokens": str(result.usage.prompt_tokens),
        "x-generated-tokens": str(tokens),
    }
    milliseconds = {
        "x-total-time": seconds,
        "x-validation-time": validation,
        "x-queue-time": timing.queue_s,
        "x-inference-time": inference,
        "x-time-per-token": inference / max(tokens, 1),
    }
    return headers | {name: str(round(value * 1000)) for name, value in milliseconds.items()}
