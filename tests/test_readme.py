"""The README's examples work: every curl is sent to a running server, every command parses."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from gpt2_mt.cli import build_parser

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line
]


def curls() -> Iterator[tuple[str, str, str | None]]:
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "curl":
            url = next(w for w in words if w.startswith("localhost:8000"))
            body = words[words.index("-d") + 1] if "-d" in words else None
            yield command, url.removeprefix("localhost:8000"), body


def test_readme_has_an_example_for_each_endpoint() -> None:
    paths = {path for _, path, _ in curls()}
    assert {"/v1/translate", "/v1/generate", "/v1/models", "/v1/languages",
            "/health/ready", "/metrics"} <= paths  # fmt: skip


def test_curl_examples_are_answered_by_the_bundled_model() -> None:
    app = create_app(Settings(slots=8, threads=1))

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
            app.router.lifespan_context(app),
        ):
            for command, path, body in curls():
                kind = {"Content-Type": "application/json"}
                answer = (
                    await client.post(path, content=body, headers=kind)
                    if body
                    else await client.get(path)
                )
                assert answer.status_code == 200, (command, answer.text)
                if body and not json.loads(body).get("stream"):
                    texts = answer.json().get("translations") or answer.json()["generations"]
                    assert all(item["text"].strip() for item in texts), command

    asyncio.run(main())


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("gpt2-mt")])
def test_commands_parse(command: str) -> None:
    words = shlex.split(command.split(" > ")[0])
    build_parser().parse_args(words[1:])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, re.M)
