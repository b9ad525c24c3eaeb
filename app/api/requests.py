"""What routes ask of a request: its body as JSON or as a form, and whether the client waits.

`fields_of` reads the bodies of APIs that take both forms, `validated` makes a model of what it
read; all of them raise errors of the service, which the route's dialect tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from app.api.middleware import ClientGone
from app.api.problems import of_json
from app.errors import BadForm, InvalidField, UnsupportedMediaType

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
_MAX_PARTS = 2000  # of a form in parts


async def require_json(request: Request) -> None:
    require_plain(request)
    if (kind := media_type(request)) != "application/json":
        raise UnsupportedMediaType(
            f"Content-Type is {kind or 'missing'}: send application/json", param="Content-Type"
        )


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_plain(request: Request) -> None:
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"Content-Encoding is {coding}: send the body as it is", param="Content-Encoding"
        )


async def fields_of(request: Request, arrays: Collection[str] = ()) -> dict[str, Any]:
    """The members of a JSON object, or the fields of a query and a form.

    Of a field that comes several times in a query or form the first counts; one of `arrays` is the
    list of all.
    """
    require_plain(request)
    if media_type(request) == "application/json":
        return _object(await request.body())
    fields: dict[str, Any] = {}
    for name, value in [*request.query_params.multi_items(), *await _form(request)]:
        if name in arrays:
            fields.setdefault(name, []).append(value)
        else:
            fields.setdefault(name, value)
    return fields


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise of_json(error) from None
    if not isinstance(data, dict):
        raise InvalidField("the body must be a JSON object")
    return data


async def _form(request: Request) -> list[tuple[str, str]]:
    """Its fields in order, without files."""
    try:
        async with request.form(max_fields=_MAX_PARTS) as form:
            return [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    except HTTPException as error:
        raise BadForm(f"the form cannot be read: {error.detail}") from None


def validated(model: type[M], fields: Mapping[str, Any]) -> M:
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in found]) from None


KINDS = ("application/json", "application/x-www-form-urlencoded", "multipart/form-data")


def document(model: type[BaseModel], *kinds: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads the model by `fields_of`, or of these types."""
    content = {"schema": model.model_json_schema()}
    return {"requestBody": {"required": True, "content": dict.fromkeys(kinds or KINDS, content)}}


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        watch.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
