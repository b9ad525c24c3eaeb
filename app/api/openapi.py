"""The OpenAPI document: what every error answer looks like, worked out per error class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import RedirectResponse

from app.api.dialects import Telling
from app.api.problems import MEDIA_TYPE
from app.api.schemas import Problem
from app.errors import (
    AppError,
    BadForm,
    BadJson,
    BodyTooLarge,
    DeadlineExceeded,
    Exists,
    InvalidField,
    KeyMissing,
    NotReady,
    QueueFull,
    RateLimited,
    RequestTimeout,
    UnknownGlossary,
    UnknownModel,
    UnsupportedMediaType,
)

DESCRIPTION = """\
Translation and text generation by a compact GPT-2 on ONNX Runtime, with continuous batching.
The same request gets the same answer at any load. Errors are RFC 9457 problem details, and under
the name of another server's API in the shape of that one.
Send `X-Request-ID` to find a request again in the logs; it is echoed."""

_REF = "#/components/schemas/{model}"
_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "Needed where the server has a file of keys.",
}
_EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "A JSON object, or `[DONE]`."}},
    "required": ["data"],
}
_SAMPLES: dict[type[AppError], AppError] = {
    BadForm: BadForm("the form cannot be read: Missing boundary in multipart."),
    BadJson: BadJson("the body is not valid JSON: Expecting value, at 9"),
    RequestTimeout: RequestTimeout("the body did not arrive within 30 s"),
    BodyTooLarge: BodyTooLarge("the body may have at most 1048576 bytes"),
    UnsupportedMediaType: UnsupportedMediaType(
        "Content-Type is text/plain: send application/json", param="Content-Type"
    ),
    UnknownModel: UnknownModel("there is no model 'x'; here are 'gpt2-mt-mini'", param="model"),
    InvalidField: InvalidField('top_p is "0.9": Input should be a valid number', param="top_p"),
    UnknownGlossary: UnknownGlossary("there is no glossary 'animals'", param="glossary"),
    Exists: Exists("there is a glossary 'animals' already", param="name"),
    KeyMissing: KeyMissing("send an API key: Authorization: Bearer KEY", param="Authorization"),
    RateLimited: RateLimited("at most 60 requests a minute", retry_after_s=2),
    QueueFull: QueueFull("2048 sequences are waiting; the limit is 2048", retry_after_s=3),
    NotReady: NotReady("the model is being loaded", retry_after_s=1),
    DeadlineExceeded: DeadlineExceeded("no complete answer within timeout_s=5"),
}


def errors(*kinds: type[AppError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may fail in these ways."""
    return {kind.status: _response(_SAMPLES[kind]) for kind in kinds}


def shaped(telling: Telling) -> dict[int | str, dict[str, Any]]:
    """The `responses` of routes that tell their errors so."""
    told = [telling(sample)[1] for sample in _SAMPLES.values()]
    example = telling(_SAMPLES[InvalidField])[1]
    content = {"application/json": {"schema": _schema_of(told), "example": example}}
    return {"default": {"description": "An error, in the shape of this API", "content": content}}


def events(example: str) -> dict[str, Any]:
    """The `content` of an answer by server-sent events."""
    return {"text/event-stream": {"itemSchema": _EVENT, "example": example}}


def binary(kinds: Iterable[str]) -> dict[str, Any]:
    """The `content` of an answer that is a file of one of these types."""
    return dict.fromkeys(kinds, {"schema": {"type": "string", "format": "binary"}})


def _schema_of(samples: Sequence[Any]) -> dict[str, Any]:
    """What texts, nulls and objects of them have in common."""
    if not isinstance(samples[0], dict):
        kinds = {"null" if sample is None else "string" for sample in samples}
        return {"type": sorted(kinds)}
    names = list(dict.fromkeys(name for sample in samples for name in sample))
    return {
        "type": "object",
        "properties": {n: _schema_of([s[n] for s in samples if n in s]) for n in names},
        "required": [n for n in names if all(n in s for s in samples)],
    }


def describe(app: FastAPI) -> None:
    """Make the document one that knows the problem schema."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            problem = Problem.model_json_schema(ref_template=_REF)
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            components.update(problem.pop("$defs", {}))
            components["Problem"] = problem
            schema["components"]["securitySchemes"] = {"key": _KEY}
            schema["security"] = [{}, {"key": []}]
            for operation in (one for path in schema["paths"].values() for one in path.values()):
                if "v1" in operation["tags"]:
                    operation["responses"].update(errors(KeyMissing, RateLimited))
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def redirect_to_docs(app: FastAPI) -> None:
    """Make the document's page the first one."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def first(request: Request) -> Response:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/docs", 307)


def _response(sample: AppError) -> dict[str, Any]:
    example: dict[str, Any] = {
        "type": f"urn:gpt2-mt:problem:{sample.code}",
        "title": sample.title,
        "status": sample.status,
        "detail": sample.detail,
        "instance": "/v1/generate",
        "code": sample.code,
        "param": sample.param,
        "request_id": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
    }
    response: dict[str, Any] = {"description": sample.title}
    if sample.retry_after_s is not None:
        example["retry_after_s"] = int(sample.retry_after_s)
        response["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
        }
    schema = {"$ref": "#/components/schemas/Problem"}
    response["content"] = {MEDIA_TYPE: {"schema": schema, "example": example}}
    return response
