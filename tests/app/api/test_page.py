"""The web page over HTTP: what is sent with it, when it is sent again, and without it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.api.page import FOLDER
from app.main import create_app
from app.settings import Settings
from gpt2_mt.cli import build_parser
from tests.servers import serve

FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture(scope="module")
def page() -> Iterator[httpx.Client]:
    with serve(create_app(Settings(slots=1, threads=1))) as server:
        yield server.client


@pytest.mark.parametrize("path", ["/", *(f"/web/{name}" for name in FILES)])
def test_files_come_with_their_policy_and_are_validated(page: httpx.Client, path: str) -> None:
    response = page.get(path)
    assert response.status_code == 200
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-cache"
    again = page.get(path, headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["Content-Security-Policy"] == policy
    assert page.head(path).headers["Content-Length"] == str(len(response.content))


def test_media_types_are_those_that_nosniff_needs(page: httpx.Client) -> None:
    kinds = {".html": "text/html", ".css": "text/css", ".js": "javascript", ".svg": "image/svg"}
    for name in FILES:
        assert kinds[Path(name).suffix] in page.get(f"/web/{name}").headers["Content-Type"]


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", html)
    for name in FILES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text), name


def test_what_is_not_there_is_a_problem(page: httpx.Client) -> None:
    for path in ("/web/none.js", "/web/../main.py", "/web/%2e%2e/main.py", "/web/"):
        response = page.get(path)
        assert response.status_code == 404, path
        assert response.json()["code"] == "not_found"


def test_the_document_does_not_list_it(page: httpx.Client) -> None:
    assert not {"/", "/web"} & set(page.get("/openapi.json").json()["paths"])


def test_it_can_be_switched_off() -> None:
    with serve(create_app(Settings(page=False, slots=1, threads=1))) as server:
        first = server.client.get("/")
        assert (first.status_code, first.headers["Location"]) == (307, "/docs")
        assert server.client.get("/web/main.js").status_code == 404
    assert build_parser().parse_args(["serve", "--no-page"]).page is False
    assert build_parser().parse_args(["serve"]).page is None


def test_the_route_of_another_api_at_the_same_path_stays(page: httpx.Client) -> None:
    answer = page.post("/", json={"inputs": "The", "parameters": {"max_new_tokens": 4}})
    assert answer.status_code == 200 and "generated_text" in answer.text
    assert page.get("/").headers["Content-Type"].startswith("text/html")
