"""A client of the server: `Client`, and `AsyncClient` for asyncio.

Texts flow in and dataclasses flow out (`gpt2_mt.messages`); what fails is a `ClientError`. The same
request has the same answer, so one that met a full queue, a server that starts or stops or a broken
connection is sent again. Needs httpx (the extra `client`) and nothing else of this project.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from time import sleep
from typing import Any, NamedTuple, Self, TypeVar, Unpack, overload

import httpx

from gpt2_mt.messages import (
    BadAnswer,
    Chunk,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    Drafted,
    Events,
    GenerateOptions,
    Generation,
    Language,
    Live,
    Model,
    Problem,
    Quality,
    Rejected,
    Sentence,
    ServerFailed,
    TimedOut,
    Translated,
    TranslateOptions,
    Translation,
    Unavailable,
    chunk,
    live,
    problem,
    read,
)
from gpt2_mt.retry import Retry, Tries

__all__ = [
    "AsyncClient", "BadAnswer", "Chunk", "Client", "ClientError", "ConnectionFailed",
    "DeadlineExceeded", "Drafted", "Generation", "Language", "Model", "Problem", "Quality",
    "Rejected", "Retry", "Sentence", "ServerFailed", "TimedOut", "Translated", "Translation",
    "Unavailable",
]  # fmt: skip

URL = "http://127.0.0.1:8000"
TIMEOUT = httpx.Timeout(130, connect=5)  # a little longer than the server's own limit
READY = httpx.Timeout(5)
RETRY = Retry()
T = TypeVar("T")
Several = list[str] | tuple[str, ...]  # not Sequence: a string is one
Texts = str | Several


class Call(NamedTuple):
    method: str
    url: str
    json: Mapping[str, Any] | None = None


LANGUAGES, MODELS, IS_READY = (
    Call("GET", url) for url in ("/v1/languages", "/v1/models", "/health/ready")
)


def checked(response: httpx.Response) -> httpx.Response:
    """The (read) response of a call that went well."""
    if response.is_success:
        return response
    headers = response.headers
    try:
        body = response.json()
    except ValueError:
        body = None
    request_id, retry_after = headers.get("X-Request-ID"), headers.get("Retry-After")
    status, reason = response.status_code, response.reason_phrase
    raise problem(status, body, request_id, retry_after, reason)


def items(kind: type[T], answer: httpx.Response, name: str) -> list[T]:
    """What the array `name` of an answer holds."""
    try:
        return [read(kind, one) for one in answer.json()[name]]
    except (ValueError, TypeError, KeyError) as error:
        raise BadAnswer(f"no array {name!r} in the answer: {answer.text[:200]}") from error


def translation(
    text: Texts, source: str, target: str, options: Mapping[str, object], stream: bool = False
) -> Call:
    body = {"text": text, "source": source, "target": target, **options}
    return Call("POST", "/v1/translate", {**body, "stream": True} if stream else body)


def generation(prompt: Texts, options: Mapping[str, object], stream: bool = False) -> Call:
    return Call("POST", "/v1/generate", {"prompt": prompt, "stream": stream, **options})


def translated(text: Texts, answer: httpx.Response) -> Any:
    """One of a string, as many of an array."""
    found = items(Translation, answer, "translations")
    if len(found) != (1 if isinstance(text, str) else len(text)):
        raise BadAnswer(f"{len(found)} translations")
    return found[0] if isinstance(text, str) else found


class Client:
    """Blocking; threads may share one.

    `timeout` is of each wait for the server, not of a call; a long `timeout_s` needs a longer one.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        timeout: float | httpx.Timeout = TIMEOUT,
        retry: Retry = RETRY,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(
            base_url=url, timeout=timeout, headers=headers, transport=transport
        )
        self._retry = retry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @overload
    def translate(
        self, text: str, target: str, source: str = ..., **options: Unpack[TranslateOptions]
    ) -> Translation: ...
    @overload
    def translate(
        self, text: Several, target: str, source: str = ..., **options: Unpack[TranslateOptions]
    ) -> list[Translation]: ...
    def translate(
        self, text: Texts, target: str, source: str = "auto", **options: Unpack[TranslateOptions]
    ) -> Translation | list[Translation]:
        found: Translation | list[Translation] = translated(
            text, self._ask(translation(text, source, target, options))
        )
        return found

    def generate(self, prompt: Texts, **options: Unpack[GenerateOptions]) -> list[Generation]:
        """In the order of the prompts, `n` (1) of each."""
        return items(Generation, self._ask(generation(prompt, options)), "generations")

    def stream(
        self, prompt: Texts, **options: Unpack[GenerateOptions]
    ) -> Generator[Chunk, None, None]:
        """Asks when the first chunk is wanted; closing it frees the server."""
        return self._events(generation(prompt, options, stream=True), chunk)

    def translate_stream(
        self, text: Texts, target: str, source: str = "auto", **options: Unpack[TranslateOptions]
    ) -> Generator[Live, None, None]:
        """In the order of the texts: drafts, final sentences, translations. As `stream`."""
        return self._events(translation(text, source, target, options, stream=True), live)

    def _events(
        self, call: Call, reading: Callable[[Any], Iterator[T]]
    ) -> Generator[T, None, None]:
        tries = Tries(self._retry)
        while True:
            events = Events(reading)
            try:
                with self._http.stream(*call[:2], json=call.json) as response:
                    if not response.is_success:
                        response.read()
                    for data in checked(response).iter_bytes():
                        yield from events.read(data)
                    return events.close()
            except (httpx.RequestError, ClientError) as error:
                seconds = tries.pause(error, final=events.begun)
            sleep(seconds)

    def languages(self) -> list[Language]:
        return items(Language, self._ask(LANGUAGES), "languages")

    def models(self) -> list[Model]:
        return items(Model, self._ask(MODELS), "data")

    def ready(self) -> bool:
        """Asked once; a server that cannot be reached is not ready."""
        try:
            return checked(self._http.request(*IS_READY[:2], timeout=READY)).is_success
        except (httpx.TransportError, Unavailable):
            return False

    def _ask(self, call: Call) -> httpx.Response:
        tries = Tries(self._retry)
        while True:
            try:
                return checked(self._http.request(*call[:2], json=call.json))
            except (httpx.RequestError, ClientError) as error:
                seconds = tries.pause(error)
            sleep(seconds)


class AsyncClient:
    """As `Client`, for asyncio."""

    def __init__(
        self,
        url: str = URL,
        *,
        timeout: float | httpx.Timeout = TIMEOUT,
        retry: Retry = RETRY,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, timeout=timeout, headers=headers, transport=transport
        )
        self._retry = retry

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    @overload
    async def translate(
        self, text: str, target: str, source: str = ..., **options: Unpack[TranslateOptions]
    ) -> Translation: ...
    @overload
    async def translate(
        self, text: Several, target: str, source: str = ..., **options: Unpack[TranslateOptions]
    ) -> list[Translation]: ...
    async def translate(
        self, text: Texts, target: str, source: str = "auto", **options: Unpack[TranslateOptions]
    ) -> Translation | list[Translation]:
        found: Translation | list[Translation] = translated(
            text, await self._ask(translation(text, source, target, options))
        )
        return found

    async def generate(self, prompt: Texts, **options: Unpack[GenerateOptions]) -> list[Generation]:
        return items(Generation, await self._ask(generation(prompt, options)), "generations")

    def stream(
        self, prompt: Texts, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Chunk, None]:
        return self._events(generation(prompt, options, stream=True), chunk)

    def translate_stream(
        self, text: Texts, target: str, source: str = "auto", **options: Unpack[TranslateOptions]
    ) -> AsyncGenerator[Live, None]:
        return self._events(translation(text, source, target, options, stream=True), live)

    async def _events(
        self, call: Call, reading: Callable[[Any], Iterator[T]]
    ) -> AsyncGenerator[T, None]:
        tries = Tries(self._retry)
        while True:
            events = Events(reading)
            try:
                async with self._http.stream(*call[:2], json=call.json) as response:
                    if not response.is_success:
                        await response.aread()
                    async for data in checked(response).aiter_bytes():
                        for event in events.read(data):
                            yield event
                    events.close()
                    return
            except (httpx.RequestError, ClientError) as error:
                seconds = tries.pause(error, final=events.begun)
            await asyncio.sleep(seconds)

    async def languages(self) -> list[Language]:
        return items(Language, await self._ask(LANGUAGES), "languages")

    async def models(self) -> list[Model]:
        return items(Model, await self._ask(MODELS), "data")

    async def ready(self) -> bool:
        try:
            return checked(await self._http.request(*IS_READY[:2], timeout=READY)).is_success
        except (httpx.TransportError, Unavailable):
            return False

    async def _ask(self, call: Call) -> httpx.Response:
        tries = Tries(self._retry)
        while True:
            try:
                return checked(await self._http.request(*call[:2], json=call.json))
            except (httpx.RequestError, ClientError) as error:
                seconds = tries.pause(error)
            await asyncio.sleep(seconds)
