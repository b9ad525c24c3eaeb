"""Every error as RFC 9457 problem details: application/problem+json.

`install` registers the handlers for the service's own errors, for bodies that do not validate and
for the router's 404 and 405; `problem` builds the answer, also for the middleware's use.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.api.schemas import TAGS
from app.errors import AppError, BadJson, InvalidField, MethodNotAllowed, NotFound, NotReady

MEDIA_TYPE = "application/problem+json"
_SHOWN = 60  # characters of an offending value


def problem(
    error: AppError,
    scope: Scope,
    *,
    errors: Sequence[Mapping[str, Any]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = members(error, scope)
    if errors is not None:
        body["errors"] = list(errors)
    sent = dict(headers or {})
    if "retry_after_s" in body:
        sent["Retry-After"] = str(body["retry_after_s"])
    # ASCII only: a detail may quote what is not valid text
    return Response(json.dumps(body), error.status, sent, MEDIA_TYPE)


def members(error: AppError, scope: Scope) -> dict[str, Any]:
    """The members of the problem; an event of a stream carries the same."""
    # 5xx without a named cause tells nothing of the inside
    anonymous = error.status == 500
    body: dict[str, Any] = {
        "type": f"urn:gpt2-mt:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.title if anonymous else error.detail,
        "instance": scope["path"],
        "code": error.code,
        "param": error.param,
        "request_id": scope["state"]["request_id"],
    }
    if error.retry_after_s is not None or error.status == NotReady.status:
        body["retry_after_s"] = max(1, math.ceil(error.retry_after_s or 1))
    return body


def install(app: FastAPI) -> None:
    @app.exception_handler(AppError)
    async def own(request: Request, error: AppError) -> Response:
        return problem(error, request.scope)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _invalid(error, request.scope)

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        return problem(_of_router(error, request.scope), request.scope, headers=error.headers)


def _of_router(error: HTTPException, scope: Scope) -> AppError:
    if error.status_code == 404:
        return NotFound(f"there is nothing at {_shown(scope['path'])}")
    if error.status_code == 405:
        return MethodNotAllowed(f"{scope['method']} is not allowed at {scope['path']}")
    if error.status_code == 400:  # the body could not be decoded at all
        return BadJson(_unreadable(error.__cause__))
    other = AppError(error.detail)
    other.status, other.title = error.status_code, error.detail
    return other


def _unreadable(cause: BaseException | None) -> str:
    """Why a body could not even be found to be wrong JSON."""
    if isinstance(cause, RecursionError):
        return "the JSON is nested too deeply"
    if isinstance(cause, UnicodeDecodeError):
        return f"the body is not UTF-8 (byte {cause.start})"
    if isinstance(cause, ValueError):  # Python's limit on the digits of an integer
        return "a number has too many digits"
    return "the body cannot be parsed as JSON"


def _invalid(error: RequestValidationError, scope: Scope) -> Response:
    found = error.errors()
    first = found[0]
    if first["type"] == "json_invalid":
        why = first["ctx"]["error"]
        return problem(BadJson(f"the body is not valid JSON: {why}, at {first['loc'][-1]}"), scope)
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return problem(BadJson("the body is empty"), scope)
    errors = [_field(entry) for entry in found]
    detail = errors[0]["detail"]
    if len(errors) > 1:
        detail += f" (and {len(errors) - 1} more)"
    whole = InvalidField(detail, param=errors[0]["param"])
    whole.code = errors[0]["code"]
    return problem(whole, scope, errors=errors[:50])


def _field(entry: Mapping[str, Any]) -> dict[str, Any]:
    param = _path(entry["loc"])
    kind, message = entry["type"], entry["msg"]
    code = InvalidField.code
    if param is None:
        detail = "the body must be a JSON object"
    elif kind == "missing":
        code, detail = "missing_field", f"{param} is missing"
    elif kind == "extra_forbidden":
        code, detail = "unknown_field", f"{param} is not a field of this request"
    else:
        detail = f"{param} is {_shown(entry['input'])}: {message}"
    return {"param": param, "code": code, "detail": detail}


def _path(location: Sequence[str | int]) -> str | None:
    """("body", "text", "<array>", 3) is `text[3]`."""
    path = ""
    for part in location[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in TAGS:
            path += f".{part}" if path else part
    return path[:200] or None


def _shown(value: Any) -> str:
    if isinstance(value, str):
        value = value[: _SHOWN + 1]  # no need to quote a megabyte
    elif isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value) if isinstance(value, str | bool | None) else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
