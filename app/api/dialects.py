"""How a route tells an error: as a problem or, if it speaks another API, in that one's shape.

An API registers its router's paths with a function from error to status and body. Whatever goes
wrong on such a path, in its own code, in the checks of the body, in the router (405) or before it
(413, 408), is told in that shape; every other path answers RFC 9457 problem details.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.api.problems import of_body, of_router, problem, retry_after_s
from app.errors import AppError, MethodNotAllowed
from app.record import note_error

Telling = Callable[[AppError], tuple[int, Any]]


class Dialects:
    def __init__(self) -> None:
        self._by_path: dict[str, Telling] = {}
        self._methods: dict[str, set[str]] = {}

    def speak(self, router: APIRouter, telling: Telling | None = None) -> None:
        """All routes of the router tell their errors by `telling`, or as problems."""
        for route in router.routes:
            path = getattr(route, "path", "")
            self._methods.setdefault(path, set()).update(getattr(route, "methods", ()))
            if telling:
                self._by_path[path] = telling

    def allowed(self, scope: Scope, found: str) -> str:
        """The methods of all routes of a path, of which the router tells one route's."""
        path = str(getattr(scope.get("route"), "path", scope["path"]))
        methods = {name.strip() for name in found.split(",") if name.strip()}
        methods |= self._methods.get(path, set())
        return ", ".join(sorted(methods or {"GET", "HEAD"}))  # of the page's files nothing is told

    def answer(
        self,
        error: AppError,
        scope: Scope,
        *,
        errors: Sequence[Mapping[str, Any]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        note_error(error.code)
        path = getattr(scope.get("route"), "path", scope["path"])
        telling = self._by_path.get(str(path))
        if error.status == 401:
            headers = {**(headers or {}), "WWW-Authenticate": "Bearer"}
        if telling is None:
            return problem(error, scope, errors=errors, headers=headers)
        status, body = telling(error)
        sent = dict(headers or {})
        if (seconds := retry_after_s(error)) is not None:
            sent["Retry-After"] = str(seconds)
        # ASCII only: a detail may quote what is not valid text
        return Response(json.dumps(body), status, sent, "application/json")


def install(app: FastAPI, dialects: Dialects) -> None:
    """The handlers of the service's own errors, of bodies that do not validate, of 404 and 405."""

    @app.exception_handler(AppError)
    async def own(request: Request, error: AppError) -> Response:
        return dialects.answer(error, request.scope)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        whole, errors = of_body(error)
        return dialects.answer(whole, request.scope, errors=errors)

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        whole = of_router(error, request.scope)
        headers = dict(error.headers or {})
        if error.status_code == MethodNotAllowed.status:
            headers["Allow"] = dialects.allowed(request.scope, headers.get("Allow", ""))
        return dialects.answer(whole, request.scope, headers=headers)
