"""What the proxy of Ray says by itself; `test_ray.py` has the real one."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from app.commands.edge import Edge

OURS = [(b"server-timing", b"total;dur=1"), (b"x-request-id", b"r1"), (b"x-request-id", b"r1")]


def answers(status: int, headers: list[tuple[bytes, bytes]], body: bytes, more: bool) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})

    return app


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """As the proxy is when a replica died before it answered."""


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("inside")


def ask(app: ASGIApp, path: str = "/v1/translate") -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(Edge(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(path, headers={"X-Request-ID": "r1"})

    return asyncio.run(main())


NOT_FOUND = answers(404, [(b"content-type", b"text/plain")], b"Path not found", False)


@pytest.mark.parametrize("app", [silent, broken, NOT_FOUND])
def test_what_no_replica_says_may_be_tried_again(app: ASGIApp) -> None:
    answer = ask(app)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json()["code"] == "not_ready"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"] == "r1"


def test_it_is_told_in_the_form_of_the_api() -> None:
    assert set(ask(silent, "/translate").json()) == {"error"}
    assert "error_type" in ask(silent, "/generate").json()


def test_what_a_replica_says_goes_through() -> None:
    answer = ask(answers(422, OURS, b"its own", False))
    assert (answer.status_code, answer.content) == (422, b"its own")
    assert answer.headers.get_list("X-Request-ID") == ["r1"]


def test_a_broken_stream_ends_with_the_error() -> None:
    headers = [*OURS, (b"content-type", b"text/event-stream; charset=utf-8")]
    answer = ask(answers(200, headers, b'data: {"text":"a"}\n\n', True), "/v1/generate")
    assert answer.status_code == 200
    first, last, _ = answer.text.split("\n\n")
    assert first == 'data: {"text":"a"}'
    assert '"error": {' in last and '"code": "not_ready"' in last


def test_rays_own_health_is_left_alone() -> None:
    assert ask(NOT_FOUND, "/-/healthz").status_code == 404
