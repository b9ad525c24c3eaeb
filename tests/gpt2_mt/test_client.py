"""The client against the running server, and against answers that a server seldom gives."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpt2_mt.client import (
    AsyncClient,
    BadAnswer,
    Client,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    Drafted,
    Problem,
    Rejected,
    Retry,
    Sentence,
    ServerFailed,
    Translated,
    Translation,
    Unavailable,
)
from gpt2_mt.messages import Chunk, Events, Language, chunk, live, read
from tests.fakes import FakeDecoder, RunFailed
from tests.gpt2_mt.answers import EVENT, LANGUAGES, busy, giving, ok

ONCE = Retry(attempts=1)
QUICK = Retry(first_s=0.001, most_s=0.002)


def url(server: Any) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(url(server)) as made:
        yield made


def test_translate(client: Client, server: Any, sentences: list[str]) -> None:
    one = client.translate(sentences[0], "de", "en")
    assert isinstance(one, Translation)
    assert (one.source, one.detected, one.alternatives) == ("en", None, ())
    several = client.translate(sentences, "fr", beam=2, alternatives=2, glossary={"cat": "chat"})
    assert [t.source for t in several] == ["en"] * 3 + ["zh"] * 3 + ["de"] * 3 + ["fr"] * 3
    first = several[0]
    assert first.detected is not None and 0 < first.detected.confidence <= 1
    assert first.alternatives[0].text == first.text and len(first.alternatives) == 2
    assert first.quality.sentences[0].method in ("first", "beam", "segments", "repair")
    assert first.quality.glossary is not None and first.quality.glossary.hits == ()
    body = {"text": sentences[0], "source": "en", "target": "de"}
    told = server.client.post("/v1/translate", json=body).json()["translations"][0]
    assert (told["text"], told["truncated"], told["quality"]["score"]) == (
        one.text, one.truncated, one.quality.score,
    )  # fmt: skip


def test_generate_and_stream_agree(client: Client) -> None:
    plain = client.generate(["The", "Das"], max_tokens=12, min_tokens=2, n=2, seed=3, logprobs=1)
    assert len(plain) == 4
    for found in plain:
        assert found.logprobs is not None and len(found.logprobs[0].top) == 1
    (whole,) = client.generate("The", max_tokens=12)
    chunks = list(client.stream("The", max_tokens=12))
    assert "".join(chunk.text for chunk in chunks) == whole.text and whole.logprobs is None
    assert chunks[-1].finish_reason == whole.finish_reason
    scored = list(client.stream("The", max_tokens=3, logprobs=0))
    assert all(token.top == () for chunk in scored for token in chunk.logprobs or ())


def told(found: list[Any], index: int) -> str:
    """An item as its reader puts it together."""
    text = ""
    for event in found:
        if not isinstance(event, Translated) and event.index == index:
            start = event.offset if isinstance(event, Drafted) else event.target.start
            text = text[:start] + event.text
    return text


def test_translate_stream(client: Client, server: Any) -> None:
    texts = ["Hello there. Where is it?", "a" * 20_001, "Guten Morgen!"]
    plain = client.translate(texts, "fr")
    found = list(client.translate_stream(texts, "fr"))
    assert [e.translation for e in found if isinstance(e, Translated)] == plain
    assert [told(found, i) for i in range(3)] == [one.text for one in plain]
    assert sum(isinstance(event, Sentence) for event in found) == 3
    assert plain[1].error is not None and plain[1].error.code == "too_long"
    assert plain[0].error is None and plain[0].detected.candidates[0].language == "en"
    with pytest.raises(Rejected) as caught:
        next(client.translate_stream("a", "tlh"))
    assert caught.value.param == "target"

    async def main() -> list[Any]:
        async with AsyncClient(url(server)) as other:
            return [event async for event in other.translate_stream(texts, "fr")]

    again = asyncio.run(main())
    assert [told(again, i) for i in range(3)] == [one.text for one in plain]


def test_events_of_a_newer_server_are_left_out() -> None:
    assert list(live({"type": "hint", "new": 1})) == []
    for event in ({"index": 0}, [], {"type": "token"}, {"type": "translation"}):
        with pytest.raises(BadAnswer):
            if not list(live(event)):
                raise BadAnswer("nothing")


def test_what_is_served(client: Client) -> None:
    assert [(one.code, one.name) for one in client.languages()][0] == ("en", "English")
    (model,) = client.models()
    assert ("en", "de") in model.pairs and model.limits["max_items"] > 0
    assert client.ready()


def test_a_wrong_field_is_named(client: Client, waits: list[float]) -> None:
    with pytest.raises(Rejected) as caught:
        client.translate("a", "tlh", "en")
    error = caught.value
    assert (error.status, error.code, error.param) == (422, "unknown_language", "target")
    assert error.request_id and error.request_id in str(error) and "tlh" in error.detail
    with pytest.raises(Rejected) as caught:
        client.generate("a", max_tokens=0, seed=-1)
    assert [one["param"] for one in caught.value.errors] == ["max_tokens", "seed"]
    with pytest.raises(Rejected):
        next(client.stream("a", max_tokens=0))
    assert waits == []


def test_an_error_within_a_stream_is_raised(
    fake_server: Callable[..., Any], waits: list[float]
) -> None:
    def fail(phase: str, call: int) -> None:
        if phase == "decode" and call > 4:
            raise RunFailed("a secret")

    with fake_server(FakeDecoder(vocabulary=600, capacity=128, hook=fail)) as server:
        with Client(url(server), headers={"X-Request-ID": "mine"}) as client:
            found: list[Chunk] = []
            with pytest.raises(ServerFailed) as caught:
                for chunk in client.stream("a", max_tokens=60, logit_bias={"0": -100}):
                    found.append(chunk)
        error = caught.value
        assert found and (error.status, error.code) == (500, "engine_failed")
        assert error.request_id == "mine" and waits == []
        server.wait_until_idle()


def test_a_stream_that_is_closed_frees_its_slot(fake_server: Callable[..., Any]) -> None:
    with (
        fake_server(FakeDecoder(vocabulary=600, capacity=1024)) as server,
        Client(url(server)) as client,
    ):
        chunks = client.stream("a", max_tokens=900, logit_bias={"0": -100})
        next(chunks)
        chunks.close()
        server.wait_until_idle()


def test_a_draining_server_is_not_ready(fake_server: Callable[..., Any]) -> None:
    with fake_server(FakeDecoder(vocabulary=600)) as server, Client(url(server)) as client:
        assert client.ready()
        server.app.state.gpt2mt.draining = True
        assert not client.ready()
        server.app.state.gpt2mt.draining = False
    with Client(url(server)) as client:  # nothing listens there any more
        assert not client.ready()
    with Client(transport=giving(httpx.Response(404))) as other, pytest.raises(Rejected):
        other.ready()  # not this service


def test_async(server: Any, sentences: list[str]) -> None:
    async def main() -> None:
        async with AsyncClient(url(server)) as client:
            one, several = await asyncio.gather(
                client.translate(sentences[0], "de"), client.translate(sentences[:2], "de")
            )
            assert several[0] == one
            (whole,) = await client.generate("The", max_tokens=12)
            chunks = [chunk async for chunk in client.stream("The", max_tokens=12)]
            assert "".join(chunk.text for chunk in chunks) == whole.text
            assert len(await client.languages()) == 7 and len(await client.models()) == 1
            assert await client.ready()
            with pytest.raises(Rejected):
                await client.translate("a", "tlh")
            with pytest.raises(Rejected):
                await anext(client.stream("a", max_tokens=0))
        async with AsyncClient(transport=giving(busy(), httpx.ConnectError("no"), ok()),
                               retry=QUICK) as client:  # fmt: skip
            assert len(await client.languages()) == 1
        events = [httpx.Response(503), httpx.Response(200, text=EVENT)]
        found = []
        async with AsyncClient(transport=giving(*events), retry=QUICK) as client:
            with pytest.raises(ConnectionFailed):
                async for chunk in client.stream("a"):
                    found.append(chunk)
            assert len(found) == 1
        async with AsyncClient(transport=giving(httpx.ConnectError("no"))) as client:
            assert not await client.ready()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Rejected), (404, Rejected), (413, Rejected), (422, Rejected), (429, Unavailable),
     (500, ServerFailed), (502, ServerFailed), (503, Unavailable), (504, DeadlineExceeded),
     (302, ServerFailed)],
)  # fmt: skip
def test_each_status_has_its_error(status: int, kind: type[Problem]) -> None:
    with (
        Client(transport=giving(busy(status)), retry=ONCE) as client,
        pytest.raises(kind) as caught,
    ):
        client.languages()
    told = caught.value
    assert type(told) is kind and isinstance(told, ClientError)
    assert (told.status, told.code, told.request_id) == (status, "queue_full", "mine")
    assert str(told) == f"{status} queue_full: 2 are waiting (request mine)"
    assert pickle.loads(pickle.dumps(told)).detail == told.detail


@pytest.mark.parametrize("body", [b"<html>", b"", b"[1]", b'"x"', b"\xff"])
def test_an_error_of_a_proxy(body: bytes) -> None:
    with (
        Client(transport=giving(httpx.Response(502, content=body))) as client,
        pytest.raises(ServerFailed, match="^502: Bad Gateway$") as caught,
    ):
        client.models()
    assert (caught.value.code, caught.value.param, caught.value.request_id) == ("", None, None)


@pytest.mark.parametrize(
    "body",
    ["<html>", "[]", "{}", '{"languages": 5}', '{"languages": [{"code": "en"}]}',
     '{"languages": [{"code": 5, "name": "", "targets": []}]}', '{"languages": ["en"]}',
     '{"languages": [{"code": "en", "name": "", "targets": "de"}]}', '{"languages": null}'],
)  # fmt: skip
def test_an_answer_of_another_service(body: str) -> None:
    with (
        Client(transport=giving(httpx.Response(200, text=body))) as client,
        pytest.raises(BadAnswer),
    ):
        client.languages()


def test_another_number_of_translations() -> None:
    answer = httpx.Response(200, json={"translations": []})
    with Client(transport=giving(answer)) as client, pytest.raises(BadAnswer):
        client.translate("a", "de")


def test_unknown_members_are_left_out() -> None:
    (given,) = LANGUAGES["languages"]
    assert read(Language, given) == Language("en", "English", ("de",))


def test_events_in_any_pieces() -> None:
    text = "a\u2028b\u0085c é"  # ends of lines for str.splitlines
    event = json.dumps({"index": 0, "text": text, "finish_reason": "stop"}, ensure_ascii=False)
    data = f"data: {event}\r\n\r\ndata:[DONE]\n\n".encode()
    for size in (1, 2, 7, len(data)):
        events = Events(chunk)
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        assert [c.text for piece in pieces for c in events.read(piece)] == [text]
        events.close()


@pytest.mark.parametrize("event", [b"nope", b"[]", b"{}", b"5", b"\xff"])
def test_an_event_of_another_service(event: bytes) -> None:
    with pytest.raises(BadAnswer):
        list(Events(chunk).read(b"data: " + event + b"\n\n"))


def test_over_a_socket_that_hangs_up_then_is_busy_then_answers() -> None:
    body = json.dumps(LANGUAGES).encode()
    heads = [b"", b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
             b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body]  # fmt: skip

    def answer(listener: socket.socket) -> None:
        for head in heads:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(address, retry=QUICK, timeout=10) as client:
            assert client.languages()[0].code == "en"
        thread.join(10)


def test_the_example_of_the_readme(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from gpt2_mt.*?)```", readme, re.S)
    exec(code.replace("http://localhost:8000", url(server)), {})
    assert "422 invalid_field temperature" in capsys.readouterr().out
