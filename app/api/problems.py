"""Every error as RFC 9457 problem details: application/problem+json.

`of_body` and `of_router` make errors of the service of what FastAPI raises for a body that does not
validate and of the router's 404 and 405; `problem` builds the answer of any error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Response
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
    body: dict[str, Any] = {
        "type": f"urn:gpt2-mt:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": detail(error),
        "instance": scope["path"],
        "code": error.code,
        "param": error.param,
        "request_id": scope["state"]["request_id"],
    }
    if (seconds := retry_after_s(error)) is not None:
        body["retry_after_s"] = seconds
    return body


def detail(error: AppError) -> str:
    """What a client may read: a 500, which has no named cause, tells nothing of the inside."""
    return error.title if error.status == 500 else error.detail


def retry_after_s(error: AppError) -> int | None:
    if error.retry_after_s is None and error.status != NotReady.status:
        return None
    return max(1, math.ceil(error.retry_after_s or 1))


def of_router(error: HTTPException, scope: Scope) -> AppError:
    if error.status_code == 404:
        return NotFound(f"there is nothing at {_shown(scope['path'])}")
    if error.status_code == 405:
        return MethodNotAllowed(f"{scope['method']} is not allowed at {scope['path']}")
    if error.status_code == 400:  # the body could not be decoded at all
        return BadJson(unreadable(error.__cause__))
    other = AppError(error.detail)
    other.status, other.title = error.status_code, error.detail
    return other


def unreadable(cause: BaseException | None) -> str:
    """Why a body could not even be found to be wrong JSON."""
    if isinstance(cause, RecursionError):
        return "the JSON is nested too deeply"
    if isinstance(cause, UnicodeDecodeError):
        return f"the body is not UTF-8 (byte {cause.start})"
    if isinstance(cause, ValueError):  # Python's limit on the digits of an integer
        return "a number has too many digits"
    return "the body cannot be parsed as JSON"


def of_json(error: ValueError | RecursionError) -> BadJson:
    """Of what `json.loads` raises."""
    if isinstance(error, json.JSONDecodeError):
        return BadJson(f"the body is not valid JSON: {error.msg}, at {error.pos}")
    return BadJson(unreadable(error))


def of_body(error: RequestValidationError) -> tuple[AppError, list[dict[str, Any]] | None]:
    """The error as a whole and, if it is of fields, each of them."""
    found = error.errors()
    first = found[0]
    if first["type"] == "json_invalid":
        why = first["ctx"]["error"]
        return BadJson(f"the body is not valid JSON: {why}, at {first['loc'][-1]}"), None
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return BadJson("the body is empty"), None
    errors = [_field(entry) for entry in found]
    text = errors[0]["detail"]
    if len(errors) > 1:
        text += f" (and {len(errors) - 1} more)"
    whole = InvalidField(text, param=errors[0]["param"])
    whole.code = errors[0]["code"]
    return whole, errors[:50]


def _field(entry: Mapping[str, Any]) -> dict[str, Any]:
    param = _path(entry["loc"])
    kind, message = entry["type"], entry["msg"]
    code = InvalidField.code
    if param is None:
        text = "the body must be a JSON object"
    elif kind == "missing":
        code, text = "missing_field", f"{param} is missing"
    elif kind == "extra_forbidden":
        code, text = "unknown_field", f"{param} is not a field of this request"
    else:
        text = f"{param} is {_shown(entry['input'])}: {message}"
    return {"param": param, "code": code, "detail": text}


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
