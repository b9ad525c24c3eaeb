"""OpenAI's completions over the generation task: /v1/completions and /v1/models/{model}.

The defaults are OpenAI's: 16 tokens, temperature 1. Options that only other servers of this API
have (`top_k`, `min_p`, `repetition_penalty`, `min_tokens`) are taken too; a null is an option left
out, unknown fields are ignored, and any key is accepted. Errors are `{"error": {"message", "type",
"param", "code"}}`, with 400 for a wrong field. /v1/models itself is one of the service's own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.access import ServicesOf
from app.api.openapi import events, shaped
from app.api.problems import detail
from app.api.requests import require_json, unless_gone
from app.api.schemas import Bias, ModelAnswer, Real, Stops, Texts, TokenId, within
from app.api.state import StateOf
from app.api.streams import EventStream, server_timing
from app.api.v1 import model_of
from app.errors import AppError, InvalidField
from app.service import Service
from app.tasks.generate import (
    BOUNDS,
    MAX_BIASES,
    SEEDS,
    GenerateOptions,
    Generation,
    GenerationStream,
    Scored,
)
from app.tasks.job import Usage


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


class CompletionRequest(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = Field(None, description="The name that `/v1/models` tells, or nothing.")
    prompt: Texts = Field(description="One text or several; token ids are not taken.")
    max_tokens: Annotated[int, within(BOUNDS["max_tokens"])] = 16
    temperature: Annotated[Real, within(BOUNDS["temperature"])] = 1.0
    top_p: Annotated[Real, within(BOUNDS["top_p"])] = 1.0
    n: Annotated[int, within(BOUNDS["n"])] = 1
    best_of: Annotated[int, within(BOUNDS["n"])] | None = Field(
        None, description="At least `n`: so many are made, and the `n` likeliest are told."
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, within(BOUNDS["logprobs"])] | None = None
    echo: bool = False
    stop: Stops = []
    presence_penalty: Annotated[Real, within(BOUNDS["presence_penalty"])] = 0.0
    frequency_penalty: Annotated[Real, within(BOUNDS["frequency_penalty"])] = 0.0
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES)] = {}
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        None, description="Modulo 2**32 the seed of `/v1/generate`."
    )
    suffix: str = Field("", description="Must be empty: there is no filling in.")
    top_k: Annotated[int, within(BOUNDS["top_k"])] = 0
    min_p: Annotated[Real, within(BOUNDS["min_p"])] = 0.0
    repetition_penalty: Annotated[Real, within(BOUNDS["repetition_penalty"])] = 1.0
    min_tokens: Annotated[int, within(BOUNDS["min_tokens"])] = 0

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def options(self) -> GenerateOptions:
        ranked = self.best_of is not None and self.best_of > self.n
        return GenerateOptions(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in self.logit_bias.items()),
            min_tokens=self.min_tokens,
            seed=None if self.seed is None else self.seed % SEEDS,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            logprobs=0 if ranked and self.logprobs is None else self.logprobs,
            n=self.best_of if ranked and self.best_of else self.n,
        )


def tell(error: AppError) -> tuple[int, dict[str, Any]]:
    status = 400 if error.status == 422 else error.status
    kind = "invalid_request_error" if status < 500 else "server_error"
    told = {"message": detail(error), "type": kind, "param": error.param, "code": error.code}
    return status, {"error": told}


_EXAMPLE = """\
data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"gpt2-mt-mini","choices":\
[{"index":0,"text":" is","logprobs":null,"finish_reason":"length"}]}

data: [DONE]

"""
router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=shaped(tell))


@router.post(
    "/completions",
    summary="Complete, as OpenAI does",
    response_model=None,
    responses={200: {"content": {"application/json": {}, **events(_EXAMPLE)}}},
    dependencies=[Depends(require_json)],
)
async def completions(
    body: CompletionRequest,
    request: Request,
    response: Response,
    state: StateOf,
    services: ServicesOf,
) -> dict[str, Any] | Response:
    service = services.named(body.model)
    _check(body, service)
    deadline = state.deadline(None)
    request_id = request.scope["state"]["request_id"]
    head = {
        "id": f"cmpl-{request_id}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.bundle.manifest.name,
    }
    if body.stream:
        stream = await service.generator.start(body.prompt, body.options, deadline)
        events = _events(stream, body, head)
        return EventStream(stream, events, lambda error: tell(error)[1], request_id)
    work = service.generator.run(body.prompt, body.options, deadline)
    result = await unless_gone(request, work)
    response.headers["Server-Timing"] = server_timing(result.timing)
    choices = []
    for i, generation in enumerate(_chosen(result.generations, body)):
        text = body.prompts[i // body.n] + generation.text if body.echo else generation.text
        tokens = None if body.logprobs is None else generation.tokens
        choices.append(_choice(i, text, tokens, generation.finish_reason))
    return {**head, "choices": choices, "usage": _usage(result.usage)}


@router.get("/models/{model}", summary="One model, as OpenAI tells it")
async def model(model: str, services: ServicesOf) -> ModelAnswer:
    return model_of(services.named(model))


def _check(body: CompletionRequest, service: Service) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidField("stream_options needs stream to be true", param="stream_options")
    if body.suffix:
        raise InvalidField("suffix is given: this server does not fill in", param="suffix")
    if body.echo and body.logprobs is not None:
        raise InvalidField("echo cannot go with logprobs: prompts are not scored", param="echo")
    if body.best_of is None:
        return
    if body.best_of < body.n:
        raise InvalidField(
            f"best_of is {body.best_of}: must be at least n, which is {body.n}", param="best_of"
        )
    if body.stream and body.best_of > body.n:
        raise InvalidField("best_of cannot be over n in a stream", param="best_of")
    if (count := body.best_of * len(body.prompts)) > service.limits.max_items:
        raise InvalidField(
            f"best_of makes {count} completions, at most {service.limits.max_items} are allowed",
            param="best_of",
        )


def _chosen(generations: Sequence[Generation], body: CompletionRequest) -> list[Generation]:
    """Of the `best_of` of each prompt the `n` likeliest."""
    made = body.options.n
    if made == body.n:
        return list(generations)
    groups = [generations[i : i + made] for i in range(0, len(generations), made)]
    return [
        one for of in groups for one in sorted(of, key=lambda g: g.score, reverse=True)[: body.n]
    ]


async def _events(
    stream: GenerationStream, body: CompletionRequest, head: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    rest: dict[str, Any] = {"usage": None} if with_usage else {}
    begun: set[int] = set()
    async for chunk in stream.chunks():
        text = chunk.text
        if body.echo and chunk.index not in begun:
            text = body.prompts[chunk.index // body.n] + text
        begun.add(chunk.index)
        tokens = None if body.logprobs is None else chunk.tokens
        choice = _choice(chunk.index, text, tokens, chunk.finish_reason)
        yield {**head, "choices": [choice], **rest}
    if with_usage:
        yield {**head, "choices": [], "usage": _usage(stream.usage)}


def _choice(
    index: int, text: str, tokens: Sequence[Scored] | None, finish_reason: str | None
) -> dict[str, Any]:
    logprobs = None
    if tokens is not None:
        logprobs = {
            "text_offset": [token.offset for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "tokens": [token.text for token in tokens],
            "top_logprobs": [_top(token) for token in tokens],
        }
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _top(token: Scored) -> dict[str, float]:
    """The likeliest at this place and the one that was taken; of equal texts the likelier."""
    told: dict[str, float] = {}
    for _, text, logprob in (*token.top, (token.id, token.text, token.logprob)):
        told.setdefault(text, logprob)
    return told


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
