"""What the client sends and gets: options, answers, events of a stream, errors.

JSON flows in, frozen dataclasses flow out; what a newer server says beyond them is left out. An
error becomes the exception of its status with what its problem details tell. No transport here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Generic, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class TranslateOptions(TypedDict, total=False):
    beam: int
    length_penalty: float
    alternatives: int
    prefix: str
    branch: bool
    format: Literal["text", "html", "xml"]
    glossary: Mapping[str, str] | str
    retry: bool
    timeout_s: float


class GenerateOptions(TypedDict, total=False):
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[str, float]
    min_tokens: int
    seed: int
    stop: str | list[str]
    logprobs: int
    n: int
    task: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Candidate:
    language: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Detected:
    language: str
    confidence: float
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Alternative:
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class SentenceQuality:
    score: float | None
    flags: tuple[str, ...]
    lost: tuple[str, ...]
    method: str


@dataclass(frozen=True, slots=True)
class GlossaryUse:
    hits: tuple[str, ...]
    misses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Quality:
    score: float | None
    flags: tuple[str, ...]
    sentences: tuple[SentenceQuality, ...]
    glossary: GlossaryUse | None = None


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one of several texts has no translation."""

    code: str
    detail: str
    param: str | None


@dataclass(frozen=True, slots=True)
class Translation:
    text: str
    source: str
    detected: Detected | None
    finish_reason: str
    truncated: bool
    alternatives: tuple[Alternative, ...]
    quality: Quality
    error: ItemError | None = None


@dataclass(frozen=True, slots=True)
class Drafted:
    """The next characters of a draft, at `offset` in the translation of text number `index`."""

    index: int
    sentence: int
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class Place:
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Sentence:
    """A final sentence, in place of all from `target.start` on; `source` is its place there."""

    index: int
    sentence: int
    source: Place
    target: Place
    text: str
    quality: SentenceQuality


@dataclass(frozen=True, slots=True)
class Translated:
    """The whole translation of text number `index`."""

    index: int
    translation: Translation



@dataclass(frozen=True, slots=True)
class LikelyToken:
    id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredToken:
    id: int
    text: str
    logprob: float
    top: tuple[LikelyToken, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    text: str
    finish_reason: str
    logprobs: tuple[ScoredToken, ...] | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of generation number `index`; its last one has a `finish_reason`."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: tuple[ScoredToken, ...] | None = None


@dataclass(frozen=True, slots=True)
class Language:
    code: str
    name: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    id: str
    created: int
    created_at: str
    precision: str
    parameters: int
    context: int
    tasks: tuple[str, ...]
    languages: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    limits: Mapping[str, int]


class ClientError(Exception):
    """Base of all that the client raises."""


class ConnectionFailed(ClientError):
    """No whole answer came: refused, broken off, not in time."""


class TimedOut(ConnectionFailed):
    """The client's own timeout passed."""


class BadAnswer(ClientError):
    """An answer with status 200 that this service does not give."""


class Problem(ClientError):
    """An error that the server (or a proxy before it: then without `code`) answers with."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: str | None = None,
        errors: tuple[Mapping[str, Any], ...] = (),
    ) -> None:
        super().__init__(status, code, detail, param, request_id, retry_after, errors)
        self.status = status
        self.code = code
        self.detail = detail
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after  # the header: seconds or a date
        self.errors = errors  # each wrong field: param, code, detail

    def __str__(self) -> str:
        request = f" (request {self.request_id})" if self.request_id else ""
        return " ".join(filter(None, [str(self.status), self.code])) + f": {self.detail}{request}"


class Rejected(Problem):
    """4xx: the request is wrong, and will be the next time."""


class Unavailable(Problem):
    """429 and 503: a full queue, a server that starts or stops; later it may do."""


class DeadlineExceeded(Problem):
    """504: `timeout_s`, or the server's own limit, passed."""


class ServerFailed(Problem):
    """Any other status."""


def problem(
    status: int,
    body: object,
    request_id: str | None = None,
    retry_after: str | None = None,
    reason: str = "",
) -> Problem:
    """Of RFC 9457 problem details or whatever else an error comes with."""
    told = body if isinstance(body, dict) else {}
    kind: type[Problem] = Rejected if 400 <= status < 500 else ServerFailed
    kind = {429: Unavailable, 503: Unavailable, 504: DeadlineExceeded}.get(status, kind)
    errors = told.get("errors")
    return kind(
        status,
        str(told.get("code", "")),
        str(told.get("detail") or reason or "an error without details"),
        told.get("param"),
        told.get("request_id", request_id),
        retry_after,
        tuple(errors) if isinstance(errors, list) else (),
    )


def read(kind: type[T], value: Any) -> T:
    """A dataclass of JSON; an answer that lacks what it must have is a `BadAnswer`."""
    try:
        found: T = _read(kind, value)
    except (TypeError, ValueError) as error:
        raise BadAnswer(f"not a {kind.__name__}: {str(value)[:200]}") from error
    return found


def _read(kind: Any, value: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else _read(inner[0], value)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(inner[0], one) for one in value)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        hints = _hints(kind)
        return kind(**{name: _read(hints[name], value[name]) for name in hints if name in value})
    plain = int | float if kind is float else origin or kind
    if not isinstance(value, plain):
        raise TypeError(f"{value!r:.60} is not {kind}")
    return value


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def chunk(event: Any) -> Iterator[Chunk]:
    yield read(Chunk, event)


Live = Drafted | Sentence | Translated


def live(event: Any) -> Iterator[Live]:
    """Of a translation's event; the last one, and such as a newer server has, are nothing."""
    match event:
        case {"type": "token"}:
            yield read(Drafted, event)
        case {"type": "sentence"}:
            yield read(Sentence, event)
        case {"type": "translation", "index": int(index)}:
            yield Translated(index, read(Translation, event))
        case {"type": str()}:
            return
        case _:
            raise BadAnswer(f"not an event of a translation: {str(event)[:200]}")


class Events(Generic[T]):
    """Server-sent events: bytes in as they come, what `reading` makes of each out.

    Lines end at a line feed only: text may hold characters that `str.splitlines` takes for ends.
    """

    def __init__(self, reading: Callable[[Any], Iterator[T]]) -> None:
        self.begun = self.done = False
        self._reading = reading
        self._rest = b""

    def read(self, data: bytes) -> Iterator[T]:
        """The events that `data` completes; an error among them is raised."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):  # all else are comments and ends of events
                yield from self._event(line.removeprefix(b"data:").strip())

    def _event(self, event: bytes) -> Iterator[T]:
        self.begun = True
        if event == b"[DONE]":
            self.done = True
            return
        try:
            body = json.loads(event)
        except ValueError as error:
            raise BadAnswer(f"an event that is not JSON: {event[:200]!r}") from error
        # beside a type it is the error of one text
        told = body.get("error") if isinstance(body, dict) and "type" not in body else None
        if isinstance(told, dict):
            status = told.get("status")
            raise problem(status if isinstance(status, int) else 500, told)
        yield from self._reading(body)

    def close(self) -> None:
        if not self.done:
            raise ConnectionFailed("the stream broke off before its end")
