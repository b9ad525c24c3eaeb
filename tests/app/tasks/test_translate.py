"""Translation of whole texts over the tiny bundle: its words are noise, its layout is not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from app.engine.engine import Ticket
from app.engine.request import Request
from app.errors import InvalidField, TooLong, UnknownLanguage
from app.metrics import Metrics
from app.service import Service
from app.tasks.job import Deadline
from app.tasks.translate import TranslateOptions, Translation, Translator
from app.text.chinese import VARIANTS
from app.text.tokenizer import TextTokenizer

ONCE = TranslateOptions(retry=False)  # noise is always flagged
once = partial(TranslateOptions, retry=False)


def translate(
    service: Service, text: str | Sequence[str], source: str = "en", target: str = "de", **more: Any
) -> list[Translation]:
    more.setdefault("options", ONCE)
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


def test_what_needs_no_translation_is_an_error_or_comes_back(service: Service) -> None:
    for texts, source in (([" ", ""], "auto"), ("Hello.", "de")):
        with pytest.raises(InvalidField):
            translate(service, texts, source)
        results = translate(service, texts, source, unchanged=True)
        assert [one.text for one in results] == ([texts] if isinstance(texts, str) else texts)
    with pytest.raises(InvalidField, match=r"q\[1\]: lone") as caught:
        translate(service, ["a", "\ud800"], param="q")
    assert caught.value.param == "q[1]"


def test_a_script_is_not_left_out(service: Service) -> None:
    simplified = translate(service, "Hello.", target="zh-Hans")
    assert simplified == translate(service, "Hello.", target="zh")
    traditional = translate(service, "Hello.", target="zh-Hant")
    written = VARIANTS["zh-Hant"].from_model(simplified[0].text)
    assert [one.text for one in traditional] == [written]
    assert traditional == translate(service, "Hello.", target="ZH_HANT")


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
        def submit(self, requests: Sequence[Request], begun: bool = False) -> list[Ticket]:
            prompts.extend(requests)
            return service.engine.submit(requests, begun)

    tokenizer = TextTokenizer.of(service.bundle)
    recorded = Translator(
        Recorder(), tokenizer, service.detector, service.bundle.manifest, service.limits, Metrics()
    )
    asyncio.run(recorded.run(text, "en", "de", Deadline.after(60), options=ONCE))
    words = "".join(tokenizer.decode(r.prompt) for r in prompts)
    assert words.replace(" ", "") == text.replace(" ", "")
    assert all(len(r.prompt) + r.max_tokens <= service.limits.context for r in prompts)
    assert all(r.max_tokens >= len(r.prompt) for r in prompts)


def test_the_stream_adds_up_to_the_whole(service: Service) -> None:
    text = " Hello there.  Where is it?\n7\nGood morning. "

    async def stream() -> list[str]:
        parts = service.translator.stream(text, "en", "de", Deadline.after(60), ONCE)
        return [part async for part in parts]

    parts = asyncio.run(stream())
    assert "".join(parts) == translate(service, text)[0].text
    # not one for each token: on a busy machine several come at once
    assert len([part for part in parts if part.strip()]) > 3


def test_progress_counts_pieces(service: Service) -> None:
    seen: list[tuple[int, int]] = []
    translate(service, ["One. Two.", "Three."], progress=lambda *x: seen.append(x))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_alternatives_are_the_best_of_a_beam(service: Service) -> None:
    options = once(beam=4, alternatives=3)
    (result,) = translate(service, "Hello there.", options=options)
    assert result.alternatives[0].text == result.text
    scores = [one.score for one in result.alternatives]
    assert len(scores) == 3 == len({one.text for one in result.alternatives})
    assert scores == sorted(scores, reverse=True) and scores[0] < 0
    assert translate(service, "Hello there.", options=once(beam=4)) == [
        replace(result, alternatives=())
    ]
    (greedy,) = translate(service, "Hello there.")
    (one,) = translate(service, "Hello there.", options=once(alternatives=1))
    assert one.text == greedy.text == one.alternatives[0].text != result.text
    longer = translate(service, "Hello there.", options=replace(options, length_penalty=0.0))
    assert longer[0].alternatives[0].score < scores[0], "not divided by the length"


def test_the_score_is_the_mean_log_probability_of_its_tokens(service: Service) -> None:
    options = once(alternatives=1, length_penalty=0.0)
    (one,) = translate(service, "Hello there.", options=options)
    (both,) = translate(service, "Hello there.\n\n7\nHello there.")
    assert one.score is not None and one.score < 0 and both.score == pytest.approx(one.score)
    assert one.finish_reason == "length"  # else the beam's total had the end token besides
    count = one.alternatives[0].score / one.score
    assert count == pytest.approx(round(count)) and count > 1
    (number,) = translate(service, ["7", "Hello there."])[:1]
    assert number.score is None


def test_branches_part_at_the_first_word_behind_the_prefix(service: Service) -> None:
    options = once(beam=4, alternatives=4, prefix="Heute", branch=True)
    (result,) = translate(service, "The weather is beautiful today.", options=options)
    found = [one.text for one in result.alternatives]
    assert len(set(found)) == 4 and all(text.startswith("Heute") for text in found)
    (plain,) = translate(service, "I like it.")
    both = translate(service, "The weather is beautiful today. I like it.", options=options)[0]
    assert [one.text for one in both.alternatives] == [f"{text} {plain.text}" for text in found]


def test_alternatives_of_a_text_are_put_together_from_its_pieces(service: Service) -> None:
    options = once(beam=3, alternatives=3)
    (both,) = translate(service, "Hello there.\n\n 7 \nWhere is it?", options=options)
    one, two = translate(service, ["Hello there.", "Where is it?"], options=options)
    for k, found in enumerate(both.alternatives):
        first, second = one.alternatives[k], two.alternatives[k]
        assert found.text == f"{first.text}\n\n 7 \n{second.text}"
        assert found.score == first.score + second.score
    (number,) = translate(service, ["7", "Hello there."], options=options)[:1]
    assert [(a.text, a.score) for a in number.alternatives] == [("7", 0)]


def test_the_translation_begins_with_the_prefix(service: Service) -> None:
    text = "Hello there. Where is it?"
    (free,) = translate(service, text)
    for options in (
        once(prefix=" Heute ist "),
        once(prefix="Heute ist", beam=3, alternatives=3),
    ):
        (result,) = translate(service, text, options=options)
        assert result.text.startswith("Heute ist") and result.text != "Heute ist"
        assert all(one.text.startswith("Heute ist") for one in result.alternatives)
    (second,) = translate(service, "Where is it?")
    (forced,) = translate(service, text, options=once(prefix="Heute ist"))
    assert free.text.endswith(second.text) and forced.text.endswith(second.text)


@pytest.mark.parametrize(
    ("text", "options", "kind", "param", "match"),
    [
        (["a"], {"prefix": "b"}, InvalidField, "prefix", "array"),
        ("42", {"prefix": "b"}, InvalidField, "prefix", "no translation"),
        ("a", {"prefix": "b " * 200}, TooLong, "prefix", "tokens behind"),
        ("a", {"prefix": "\ud800"}, InvalidField, "prefix", "U\\+D800"),
        ("a\n" * 257, {"beam": 8}, TooLong, "text", "256 sentences"),
        ("a", {"beam": 9}, InvalidField, "beam", "at most 8"),
        ("a", {"beam": 0}, InvalidField, "beam", "at least 1"),
        ("a", {"length_penalty": -1}, InvalidField, "length_penalty", "at least 0"),
        ("a", {"beam": 2, "alternatives": 3}, InvalidField, "alternatives", "at most beam"),
        ("a", {"branch": True, "beam": 2}, InvalidField, "alternatives", "at least 2 with branch"),
    ],
)
def test_refused_options(
    service: Service, text: Any, options: dict[str, Any], kind: type, param: str, match: str
) -> None:
    with pytest.raises(kind, match=match) as caught:
        translate(service, text, options=TranslateOptions(**options))
    assert caught.value.param == param


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
