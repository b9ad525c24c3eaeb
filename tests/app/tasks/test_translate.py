"""Translation of whole texts over the tiny bundle: its words are noise, its layout is not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from app.engine.engine import Ticket
from app.engine.request import Request
from app.errors import InvalidField, TooLong, UnknownLanguage
from app.service import Service
from app.tasks.job import Deadline
from app.tasks.translate import Translation, Translator
from app.text.tokenizer import TextTokenizer


def translate(
    service: Service, text: str | Sequence[str], source: str = "en", target: str = "de", **more: Any
) -> list[Translation]:
    work = service.translator.run(text, source, target, Deadline.after(60), **more)
    return asyncio.run(work).translations


def test_layout_is_kept_and_numbers_pass_through(service: Service) -> None:
    (result,) = translate(service, "  Hello.\n\n\t123 \r\nBye now!  ")
    body, separator, last = result.text.partition("\n\n\t123 \r\n")
    assert separator and body.startswith("  ") and body.strip()
    assert last.endswith("  ") and last.strip()
    assert (result.source, result.detected) == ("en", None)


def test_pieces_are_translated_as_they_would_be_alone(service: Service) -> None:
    both = translate(service, "Hello there. Where is it?")[0].text
    one, two = (t.text for t in translate(service, ["Hello there.", "Where is it?"]))
    assert both == f"{one} {two}"
    chinese = translate(service, "Hello there. Where is it?", target="zh")[0].text
    one, two = (t.text for t in translate(service, ["Hello there.", "Where is it?"], target="zh"))
    assert chinese == one + two


def test_items_keep_their_order_and_their_own_language(
    service: Service, sentences: list[str]
) -> None:
    results = translate(service, [*sentences, "42", "", "  "], source="auto", target="fr")
    assert [r.source for r in results[:12]] == ["en"] * 3 + ["zh"] * 3 + ["de"] * 3 + ["fr"] * 3
    assert all(r.detected is not None and r.detected.language == r.source for r in results)
    assert [r.text for r in results[9:]] == [*sentences[9:], "42", "", "  "]  # French already
    assert results[12].detected.confidence == 0.0
    alone = translate(service, sentences[4], source="zh", target="fr")[0]
    assert alone.text == results[4].text


def test_a_long_text_is_never_cut_silently(service: Service) -> None:
    text = "word, " * 300
    (result,) = translate(service, text)
    # the random model never ends by itself: every piece reaches its limit, which must be told
    assert (result.finish_reason, result.truncated) == ("length", True)
    prompts: list[Request] = []

    class Recorder:
        def submit(self, requests: Sequence[Request]) -> list[Ticket]:
            prompts.extend(requests)
            return service.engine.submit(requests)

    tokenizer = TextTokenizer.of(service.bundle)
    recorded = Translator(
        Recorder(), tokenizer, service.detector, service.bundle.manifest, service.limits
    )
    asyncio.run(recorded.run(text, "en", "de", Deadline.after(60)))
    words = "".join(tokenizer.decode(r.prompt) for r in prompts)
    assert words.replace(" ", "") == text.replace(" ", "")
    assert all(len(r.prompt) + r.max_tokens <= service.limits.context for r in prompts)
    assert all(r.max_tokens >= len(r.prompt) for r in prompts)


def test_the_stream_adds_up_to_the_whole(service: Service) -> None:
    text = " Hello there.  Where is it?\n7\nGood morning. "

    async def stream() -> list[str]:
        parts = service.translator.stream(text, "en", "de", Deadline.after(60))
        return [part async for part in parts]

    parts = asyncio.run(stream())
    assert "".join(parts) == translate(service, text)[0].text
    assert len([part for part in parts if part.strip()]) > 10


def test_progress_counts_pieces(service: Service) -> None:
    seen: list[tuple[int, int]] = []
    translate(service, ["One. Two.", "Three."], progress=lambda *x: seen.append(x))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("text", "source", "target", "kind", "param", "match"),
    [
        ("", "en", "de", InvalidField, "text", "empty"),
        (" \n ", "en", "de", InvalidField, "text", "empty"),
        ([], "en", "de", InvalidField, "text", "empty array"),
        (["", " "], "en", "de", InvalidField, "text", "empty"),
        ("a", "en", "xx", UnknownLanguage, "target", "'xx'"),
        ("a", "xx", "de", UnknownLanguage, "source", "'xx'"),
        ("a", "de", "de", UnknownLanguage, "source", "'de'"),
        ("a" * 20_001, "en", "de", TooLong, "text", "20000"),
        (["a", "a" * 20_000], "en", "de", TooLong, r"text[1]", "20000"),
        (["a"] * 1025, "en", "de", InvalidField, "text", "1025"),
        ("a\n" * 2049, "en", "de", TooLong, "text", "2048 sentences"),
        (["a", "\ud800"], "en", "de", InvalidField, "text[1]", "U\\+D800"),
    ],
)
def test_refusals(
    service: Service, text: Any, source: str, target: str, kind: type, param: str, match: str
) -> None:
    with pytest.raises(kind, match=match) as caught:
        translate(service, text, source, target)
    assert caught.value.param == param
