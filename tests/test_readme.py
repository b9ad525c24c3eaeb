"""The examples of README and docs work: each curl is sent to a server, each command parses."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from gpt2_mt.cli import build_parser
from training.pipeline import load_pipeline, stage_data, stage_recipe

ROOT = Path(__file__).parent.parent
TEXT = "\n".join(
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/RESULTS.md", "docs/LOG.md")
)
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
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
            "/health/ready", "/metrics", "/translate", "/v2/translate", "/v1/completions",
            "/generate", "/v2/health/ready"} <= paths  # fmt: skip


def outputs(answer: Any) -> list[str]:
    """The texts in an answer of any API."""
    if isinstance(answer, list):
        return [text for item in answer for text in outputs(item)]
    if not isinstance(answer, dict):
        return []
    for name in ("text", "translatedText", "generated_text"):
        if name in answer:
            return [answer[name]] if isinstance(answer[name], str) else answer[name]
    return [text for value in answer.values() for text in outputs(value)]


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
                    texts = outputs(answer.json())
                    assert texts and all(text.strip() for text in texts), command

    asyncio.run(main())


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("gpt2-mt")])
def test_commands_parse_and_their_recipes_are_there(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    general = tmp_path / "build" / "general"  # where the pipeline multi30k goes on from
    general.mkdir(parents=True)
    (general / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(re.split(r" > | &$", command)[0])
    arguments = build_parser().parse_args(words[1:])
    if hasattr(arguments, "stage"):
        given = {"init": arguments.init, "adds": arguments.add}
        stage_recipe(arguments.recipe, given=[key for key, value in given.items() if value])
    elif getattr(arguments, "recipe", None):
        stage_data(arguments.recipe)
    elif hasattr(arguments, "pipeline"):
        parts = [text.split("=", 1) for text in arguments.set]
        load_pipeline(arguments.pipeline, [(k, tomllib.loads(f"x={v}")["x"]) for k, v in parts])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
def test_scripts_are_there(command: str) -> None:
    _, *words = command.split()
    assert find_spec(words[1]) if words[0] == "-m" else (ROOT / words[0]).is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, re.M)


def test_settings_that_are_named_exist() -> None:
    named = re.findall(r"\bGPT2MT_([A-Z_]+[A-Z])\b", TEXT)
    assert named and {name.lower() for name in named} <= Settings.model_fields.keys()
