"""A generation as Text Generation Inference streams it: an event a token, the last with the whole.

The texts of the events put together are the generated text: where a token's own text is not that
(it ends within a character, or a stop string was being looked for), the next certain text stands
with the last token that it is of. Each event waits for the next token, since the last one is told
with the text and the details.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from app.api.tgi_schemas import TgiRequest
from app.tasks.generate import Chunk, GenerationStream, Scored


def token_of(token: Scored, text: str) -> dict[str, Any]:
    return {"id": token.id, "text": text, "logprob": token.logprob, "special": False}


def tops_of(token: Scored) -> list[dict[str, Any]]:
    return [
        {"id": i, "text": text, "logprob": logprob, "special": False}
        for i, text, logprob in token.top
    ]


def finish_reason_of(reason: str, matched: bool) -> str:
    if reason == "length":
        return "length"
    return "stop_sequence" if matched else "eos_token"


async def events_of(
    stream: GenerationStream, body: TgiRequest, seed: int | None, end: int
) -> AsyncIterator[dict[str, Any]]:
    """`end` is told as the only token of an empty text."""
    held: dict[str, Any] | None = None
    whole, count, reason = body.before, 0, "eos_token"
    async for chunk in stream.chunks():
        whole += chunk.text
        if chunk.finish_reason:
            reason = finish_reason_of(chunk.finish_reason, chunk.matched)
        if held is not None and not chunk.tokens:
            held["token"]["text"] += chunk.text
        for token, text in zip(chunk.tokens, _texts(chunk), strict=True):
            if held is not None:
                yield held
            count += 1
            held = _event(count, token_of(token, text))
            if body.parameters.top_n_tokens:
                held["top_tokens"] = tops_of(token)
    if held is None:
        held = _event(1, {"id": end, "text": "", "logprob": 0.0, "special": True})
    held["generated_text"] = whole
    if body.parameters.details:
        held["details"] = {
            "finish_reason": reason,
            "generated_tokens": count,
            "seed": seed,
            "input_length": stream.usage.prompt_tokens,
        }
    yield held


def _event(index: int, token: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "token": token, "generated_text": None, "details": None}


def _texts(chunk: Chunk) -> list[str]:
    """The chunk's text, shared among its tokens."""
    own = [token.text for token in chunk.tokens]
    if "".join(own) == chunk.text:
        return own
    return [""] * (len(own) - 1) + [chunk.text]
