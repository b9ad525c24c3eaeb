"""Pairs that go through another language: two translations, one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from app.errors import InvalidField
from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.settings import DEFAULT_BUNDLE
from app.tasks.job import Deadline
from app.tasks.options import TranslateOptions
from app.tasks.translate import Translator
from app.text.tokenizer import TextTokenizer
from tests.app.tasks.test_rounds import Bench

VIA = {"en-de": "fr"}
ONCE = TranslateOptions(retry=False)
TEXTS = ["Good morning. How are you?", "The train is late.", "My sister has bought a house."]


def script(text: str, beam: bool) -> str:
    return {"Hello": "Bonjour", "Bonjour": "Hallo"}.get(text, f"{text} so")


def translator(service: Service, via: dict[str, str]) -> Translator:
    manifest = service.bundle.manifest.model_copy(update={"via": via})
    tokenizer = TextTokenizer.of(service.bundle)
    return Translator(service.engine, tokenizer, service.detector, manifest, service.limits,
                      Metrics())  # fmt: skip


def run(
    service: Service, texts: list[str], source: str, target: str, via: dict[str, str],
    options: TranslateOptions = ONCE, **more: Any,
) -> Any:  # fmt: skip
    found = translator(service, via)
    return asyncio.run(
        found.run(texts, source, target, Deadline.after(60), options=options, **more)
    )


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The bundled model: what a random one writes is not cut or read as it was made."""
    opened = Service.open(DEFAULT_BUNDLE, ServiceOptions(slots=8, threads=1), Metrics())
    opened.engine.start()
    yield opened
    opened.engine.stop(drain=False)


@pytest.mark.parametrize("options", [ONCE, replace(ONCE, beam=3)])
def test_it_is_one_translation_after_the_other(
    service: Service, options: TranslateOptions
) -> None:
    told: list[tuple[int, int]] = []
    one = run(service, TEXTS, "en", "de", VIA, options,
              progress=lambda done, of: told.append((done, of)))  # fmt: skip
    for text, whole in zip(TEXTS[1:], one.translations[1:], strict=True):
        [middle] = run(service, [text], "en", "fr", {}).translations
        [end] = run(service, [middle.text], "fr", "de", {}, options).translations
        assert whole.text == end.text and whole.truncated == (middle.truncated or end.truncated)
        legs = [one.quality.sentences[0].score for one in (middle, end)]
        assert whole.quality.sentences[0].score == min(legs)  # what the first has lost is lost
    assert told == [(i, 8) for i in range(1, 9)]  # four sentences, two legs
    direct = run(service, TEXTS, "en", "de", {}, options)
    assert [t.text for t in one.translations] != [t.text for t in direct.translations]
    assert one.usage.prompt_tokens > direct.usage.prompt_tokens


def test_other_pairs_go_directly(service: Service) -> None:
    one, two = (run(service, TEXTS, "en", "fr", via) for via in (VIA, {}))
    assert [t.text for t in one.translations] == [t.text for t in two.translations]


def test_what_is_asked_of_each_leg(service: Service) -> None:
    bench = Bench(service, script, via=VIA)
    (one,) = bench.run("Hello", prefix="Na", beam=2, alternatives=2, retry=False)
    assert one.text == "Hallo"
    assert bench.engine.rounds == [["Hello"], ["Bonjour"]]
    first, second = bench.engine.requests
    assert not first.forced and first.beam is None
    assert second.forced and second.beam is not None
    tokens = service.bundle.manifest.tokens.languages
    assert {tokens["en"].source, tokens["fr"].target} <= set(first.prompt)
    assert {tokens["fr"].source, tokens["de"].target} <= set(second.prompt)


def test_protected_words_survive_both_legs(service: Service) -> None:
    bench = Bench(service, lambda text, beam: text.replace("Hello", "Bonjour"), via=VIA)
    (one,) = bench.run("Hello {name}, you!")
    assert one.text == "Bonjour {name}, you!" and one.quality.flags == ()
    assert bench.engine.rounds == [["Hello Boston, you!"], ["Bonjour Boston, you!"]]


def test_what_is_lost_is_sought_again_through_both(service: Service) -> None:
    answer: Callable[[str, bool], str] = lambda text, beam: text if beam else "Ja."  # noqa: E731
    bench = Bench(service, answer, via=VIA)
    (one,) = bench.run("Hello {name}, you!")
    assert "{name}" in one.text and one.quality.flags == ()
    methods = one.quality.sentences[0].method
    assert methods in ("beam", "segments")
    assert len(bench.engine.requests) > 4


def test_a_first_leg_that_was_cut_is_told(service: Service) -> None:
    long = "word " * 600
    bench = Bench(service, lambda text, beam: long if text == "Hello" else "Hallo", via=VIA)
    (one,) = bench.run("Hello", retry=False)
    assert one.text == "Hallo" and one.truncated


def test_an_empty_middle_is_not_sent(service: Service) -> None:
    bench = Bench(service, lambda text, beam: "" if len(bench.engine.requests) < 2 else "Hallo",
                  via=VIA)  # fmt: skip
    (one,) = bench.run("Hello", retry=False)
    assert bench.engine.rounds == [["Hello"], ["Hello"]] and one.text == "Hallo"


def test_a_stream_tells_the_second_leg_only(service: Service) -> None:
    async def parts(via: dict[str, str]) -> list[str]:
        found = translator(service, via).stream(TEXTS[1], "en", "de", Deadline.after(60), ONCE)
        return [part async for part in found]

    whole = run(service, [TEXTS[1]], "en", "de", VIA).translations[0].text
    found = asyncio.run(parts(VIA))
    assert "".join(found) == whole and len(found) > 1


def test_a_beam_too_wide_is_refused_before_the_first_leg(service: Service) -> None:
    narrow = replace(service, limits=replace(service.limits, slots=3))
    with pytest.raises(InvalidField, match="beam is 4: this server has 3 slots") as refused:
        run(narrow, TEXTS, "en", "de", VIA, replace(ONCE, beam=4))
    assert refused.value.param == "beam" and service.engine.stats().active == 0
