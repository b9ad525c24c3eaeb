"""Answers that a server might give, in place of one."""

from __future__ import annotations

import httpx

LANGUAGES = {"languages": [{"code": "en", "name": "English", "targets": ["de"], "new": 1}]}
EVENT = 'data: {"index":0,"text":"a","finish_reason":null}\n\n'
Answers = list[httpx.Response | Exception]


def giving(*answers: httpx.Response | Exception) -> httpx.MockTransport:
    """Each answer in turn; asked more often, it fails."""
    rest = iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        found = next(rest)
        if isinstance(found, Exception):
            raise found
        return found

    return httpx.MockTransport(answer)


def ok() -> httpx.Response:
    return httpx.Response(200, json=LANGUAGES)


def busy(status: int = 503, retry_after: str | None = None) -> httpx.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    body = {"code": "queue_full", "detail": "2 are waiting", "param": None, "request_id": "mine"}
    return httpx.Response(status, json=body, headers=headers)
