"""Worked examples of requests and answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from fastapi.openapi.models import Example

from app.api.openapi import events

_USAGE = {"prompt_tokens": 14, "completion_tokens": 9}
_TIMING = {"queue_s": 0.0004, "prefill_s": 0.0061, "decode_s": 0.0312}

TRANSLATE: dict[str, Example] = {
    "one": Example(
        summary="One text", value={"text": "Good morning!", "source": "en", "target": "de"}
    ),
    "several": Example(
        summary="Several texts, their languages detected",
        value={"text": ["Bonjour à tous.", "我喜欢猫。"], "source": "auto", "target": "en"},
    ),
    "layout": Example(
        summary="A text with lines",
        value={"text": "First line.\n\n  - Second line.\n", "source": "en", "target": "fr"},
    ),
    "markup": Example(
        summary="HTML with a placeholder and a glossary",
        value={
            "text": "<p>Dear {name}, the <b>cat</b> is here.</p>",
            "source": "en",
            "target": "de",
            "format": "html",
            "glossary": {"cat": "Kater"},
            "retry": True,
        },
    ),
    "alternatives": Example(
        summary="What may come next: several translations that begin alike",
        value={
            "text": "The weather is beautiful today.",
            "source": "en",
            "target": "de",
            "beam": 4,
            "length_penalty": 1.0,
            "alternatives": 4,
            "prefix": "Heute ist",
            "branch": True,
        },
    ),
}
TRANSLATE["stream"] = Example(
    summary="Server-sent events, sentence by sentence",
    value={"text": "Good morning! Where is it?", "source": "en", "target": "de", "stream": True},
)
GLOSSARY: dict[str, Example] = {
    "animals": Example(
        summary="Terms of one language pair",
        value={"name": "animals", "source": "en", "target": "de", "entries": {"cat": "Kater"}},
    )
}
GENERATE: dict[str, Example] = {
    "greedy": Example(
        summary="The likeliest continuation",
        value={"prompt": "The weather today is", "max_tokens": 32},
    ),
    "sampling": Example(
        summary="Sampling that can be repeated",
        value={
            "prompt": ["Once upon a time", "Es war einmal"],
            "max_tokens": 64,
            "temperature": 0.8,
            "top_k": 50,
            "top_p": 0.95,
            "repetition_penalty": 1.1,
            "seed": 7,
            "stop": ["\n\n"],
        },
    ),
    "several": Example(
        summary="Several continuations, with log-probabilities",
        value={
            "prompt": "The weather today is",
            "max_tokens": 16,
            "min_tokens": 4,
            "n": 3,
            "min_p": 0.05,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.2,
            "logit_bias": {"13": -2.0},
            "logprobs": 2,
            "seed": 1,
        },
    ),
    "stream": Example(
        summary="Server-sent events",
        value={"prompt": "The weather today is", "max_tokens": 32, "stream": True},
    ),
}
_TRANSLATE_EVENTS = """\
data: {"type":"token","index":0,"sentence":0,"offset":0,"text":"Guten"}

data: {"type":"token","index":0,"sentence":0,"offset":5,"text":" Morgen!"}

data: {"type":"sentence","index":0,"sentence":0,"source":{"start":0,"end":13},\
"target":{"start":0,"end":13},"text":"Guten Morgen!",\
"quality":{"score":-0.6,"flags":[],"lost":[],"method":"first"}}

data: {"type":"translation","index":0,"text":"Guten Morgen!","source":"en","detected":null,\
"finish_reason":"stop","truncated":false,"alternatives":[],"quality":{"score":-0.6,"flags":[],\
"sentences":[{"score":-0.6,"flags":[],"lost":[],"method":"first"}],"glossary":null},"error":null}

data: {"type":"done","usage":{"prompt_tokens":6,"completion_tokens":3},\
"timing":{"queue_s":0.0004,"prefill_s":0.0061,"decode_s":0.0312},"model":"gpt2-mt-default"}

data: [DONE]

"""
TRANSLATE_ANSWER: dict[str, Any] = {
    "content": {
        "application/json": {
            "example": {
                "translations": [
                    {
                        "text": "Good morning, everyone.",
                        "source": "fr",
                        "detected": {
                            "language": "fr",
                            "confidence": 0.9991,
                            "candidates": [{"language": "fr", "confidence": 0.9991}],
                        },
                        "finish_reason": "stop",
                        "truncated": False,
                        "alternatives": [],
                        "quality": {
                            "score": -0.6,
                            "flags": [],
                            "sentences": [
                                {"score": -0.6, "flags": [], "lost": [], "method": "first"}
                            ],
                            "glossary": None,
                        },
                        "error": None,
                    }
                ],
                "usage": _USAGE,
                "timing": _TIMING,
                "model": "gpt2-mt-default",
            }
        },
        **events(_TRANSLATE_EVENTS),
    }
}
_EVENTS = """\
data: {"index":0,"text":" sunny","finish_reason":null}

data: {"index":0,"text":" and warm.","finish_reason":null}

data: {"index":0,"text":"","finish_reason":"stop"}

data: [DONE]

"""
GENERATE_ANSWER: dict[str, Any] = {
    "content": {
        "application/json": {
            "example": {
                "generations": [
                    {"text": " sunny and warm.", "finish_reason": "stop", "logprobs": None}
                ],
                "usage": _USAGE,
                "timing": _TIMING,
                "model": "gpt2-mt-default",
            }
        },
        **events(_EVENTS),
    }
}
