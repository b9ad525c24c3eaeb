"""Requests of every API and what became of them: `ask` and loops over it, with aiohttp.

A `Call` flows in, a `Reply` flows out; `Reply.answer` is what must be the same whenever the same
call is made: all of a body but times and ids.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import aiohttp

from benchmarks.client import TIMEOUT

SENTENCES = (
    "Where is the station?", "I would like a cup of tea.", "The children play in the garden.",
    "She has bought a new house and wants to show it to her friends.", "Please close the window.",
    "The weather will be cold and rainy tomorrow, but the train leaves at half past seven.",
)  # fmt: skip
LONG = " ".join(SENTENCES * 4)
DOCUMENT = "# A title\n\n" + "\n\n".join(f"{text} *{text}*" for text in SENTENCES * 2)
_VARYING = frozenset({"timing", "request_id", "id", "created", "model"})
_JSON = "application/json"
_BORDER = "border"


@dataclass(frozen=True)
class Call:
    name: str
    path: str
    body: bytes | None  # None: GET
    status: int = 200  # that is expected
    kind: str = _JSON

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"


@dataclass(frozen=True)
class Reply:
    call: Call
    begun: float  # time.monotonic()
    seconds: float
    status: int  # 0: no answer began
    whole: bool
    data: bytes = field(repr=False, default=b"")
    retry_after: str | None = None

    @property
    def expected(self) -> bool:
        return self.whole and self.status == self.call.status

    @property
    def busy(self) -> bool:
        """Refused in the way that is asked for."""
        after = self.retry_after or ""
        return self.whole and self.status == 503 and after.isdecimal() and int(after) > 0

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")

    @cached_property
    def answer(self) -> str:
        text = self.text
        if text.startswith("data: "):
            return _of_stream(text)
        try:
            return json.dumps(_constant(json.loads(text)), sort_keys=True)
        except ValueError:
            return text


def _constant(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _constant(one) for key, one in value.items() if key not in _VARYING}
    return [_constant(one) for one in value] if isinstance(value, list) else value


def _of_stream(text: str) -> str:
    """What the events say together: where one ends and the next begins may vary."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    texts = "".join(event["text"] for event in events if "finish_reason" in event)
    others = [_constant(one) for one in events if one.get("type") == "translation"]
    return json.dumps([texts, others], sort_keys=True)


def post(name: str, path: str, status: int = 200, **body: Any) -> Call:
    return Call(name, path, json.dumps(body).encode(), status)


def translate(text: str | Sequence[str], target: str = "de", **more: Any) -> Call:
    name = f"translate {text} {target}"
    return post(name, "/v1/translate", text=text, source="en", target=target, **more)


def document(text: str) -> Call:
    parts = [("target", "", "de"), ("source", "", "en"), ("file", "; filename=a.md", text)]
    body = "".join(
        f'--{_BORDER}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'
        for name, more, value in parts
    )
    kind = f"multipart/form-data; boundary={_BORDER}"
    return Call("document", "/v1/documents", f"{body}--{_BORDER}--\r\n".encode(), 200, kind)


def work() -> list[Call]:
    """Of every API, streams and searches among them."""
    sampled = {"max_tokens": 24, "temperature": 0.8, "top_k": 50, "seed": 7}
    text = list(SENTENCES[:3])
    return [
        translate(text),
        translate(SENTENCES[3], "fr", beam=4, alternatives=2),
        translate(SENTENCES[0], "zh", stream=True),
        translate(f"<p>{SENTENCES[1]} <b>{SENTENCES[4]}</b></p>", format="html"),
        translate("Dear {name}, the {item} costs 25.", "fr", glossary={"costs": "coûte"}),
        document(DOCUMENT),
        post("sample", "/v1/generate", prompt=["The weather", "A man"], n=2, **sampled),
        post("stream", "/v1/generate", prompt="Once upon", max_tokens=24, stream=True),
        post("openai", "/v1/completions", prompt="The", max_tokens=16, seed=3),
        post("tgi", "/generate", inputs="The", parameters={"max_new_tokens": 16, "details": True}),
        post("deepl", "/v2/translate", text=text, target_lang="DE"),
        post("libretranslate", "/translate", q=text, source="auto", target="fr"),
        post("detect", "/v1/detect", text=text),
        Call("languages", "/v1/languages", None),
        Call("models", "/v1/models", None),
    ]


def mistakes() -> list[Call]:
    """Calls that must be refused, each with its status."""
    return [
        Call("bad JSON", "/v1/translate", b'{"text": ', 400),
        Call("media type", "/v1/generate", b"text", 415, "text/plain"),
        Call("not there", "/v1/nothing", None, 404),
        post("unknown language", "/v1/translate", 422, text="a", target="xx"),
        post("temperature", "/v1/generate", 422, prompt="a", temperature=9),
        post("model", "/v1/generate", 404, prompt="a", model="none"),
        post("deepl target", "/v2/translate", 400, text=["a"], target_lang="XX"),
    ]


def session(url: str, *, fresh: bool = False) -> aiohttp.ClientSession:
    """`fresh`: a connection for each request."""
    connector = aiohttp.TCPConnector(limit=0, force_close=fresh)
    return aiohttp.ClientSession(url, timeout=TIMEOUT, connector=connector)


async def ask(client: aiohttp.ClientSession, call: Call, headers: Any = None) -> Reply:
    begun, status, whole, data, after = time.monotonic(), 0, False, b"", None
    sent = {"Content-Type": call.kind, **(headers or {})}
    try:
        request = client.request(call.method, call.path, data=call.body, headers=sent)
        async with request as response:
            status, after = response.status, response.headers.get("Retry-After")
            data = await response.read()
            streamed = response.content_type == "text/event-stream"
            whole = not streamed or data.endswith(b"data: [DONE]\n\n")
    except (aiohttp.ClientError, TimeoutError, OSError):
        pass
    return Reply(call, begun, time.monotonic() - begun, status, whole, data, after)


async def closed_loop(
    client: aiohttp.ClientSession,
    calls: Sequence[Call],
    callers: int,
    going: Callable[[], bool],
    replies: list[Reply],
    pause_s: float = 0.0,
) -> None:
    """So many callers, each with its next call when it is answered, while `going`."""

    async def caller(seed: int) -> None:
        rng = random.Random(seed)
        while going():
            reply = await ask(client, rng.choice(calls))
            replies.append(reply)
            if pause_s or not reply.expected:
                await asyncio.sleep(pause_s or 0.05)

    await asyncio.gather(*map(caller, range(callers)))


async def open_loop(
    client: aiohttp.ClientSession, calls: Sequence[Call], times: Sequence[float]
) -> list[tuple[float, Reply]]:
    """Each at its time, whatever has become of those before; with that time."""
    began, tasks = time.monotonic(), []
    for planned, call in zip(times, calls, strict=True):
        wait = began + planned - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(ask(client, call)))
    return list(zip(times, await asyncio.gather(*tasks), strict=True))


async def quiet(client: aiohttp.ClientSession, calls: Sequence[Call]) -> dict[str, str]:
    """The answers of the calls when nothing else is asked, by name."""
    found = {}
    for call in calls:
        reply = await ask(client, call)
        assert reply.expected, (call.name, reply.status, reply.data[:500])
        found[call.name] = reply.answer
    return found
