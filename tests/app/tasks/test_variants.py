"""Traditional Chinese around a model of simplified: prompts, outputs, prefixes, glossaries."""

from __future__ import annotations

import asyncio
from typing import Any

from app.service import Service
from app.tasks.job import Deadline
from app.tasks.live import Translation
from app.tasks.options import TranslateOptions
from app.text.glossary import Glossary
from tests.app.tasks.test_rounds import Bench

SAYS = "软件在里面，{}头发。"


def run(
    bench: Bench, text: str, source: str, target: str, **options: Any
) -> Translation:
    work = bench.translator.run(
        text, source, target, Deadline.after(60), options=TranslateOptions(**options),
        unchanged=True,
    )  # fmt: skip
    return asyncio.run(work).translations[0]


def test_a_target_is_written_in_its_script_and_words_are_kept(service: Service) -> None:
    bench = Bench(service, lambda text, beam: SAYS.format("波士顿" if "Boston" in text else ""))
    one = run(bench, "Software is in {{头发}}, hair.", "en", "zh-TW", retry=False)
    assert one.text == "軟體在裡面，{{头发}}頭髮。" and "script" not in one.quality.flags
    assert run(bench, "Software.", "en", "zh-HK", retry=False).text == "軟件在裏面，頭髮。"
    assert run(bench, "Software.", "en", "zh", retry=False).text == SAYS.format("")


def test_a_source_is_read_in_the_models_script(service: Service) -> None:
    bench = Bench(service, lambda text, beam: "Yes.")
    for source in ("zh-TW", "auto", "zh"):
        one = run(bench, "軟體在裡面，頭髮。", source, "en", retry=False)
        assert one.source == ("zh-Hant" if source == "auto" else source)
    asked = [texts[0] for texts in bench.engine.rounds]
    assert asked == ["软件在里面，头发。", "软体在里面，头发。", "软体在里面，头发。"]


def test_one_script_becomes_the_other_without_a_model(service: Service) -> None:
    bench = Bench(service, lambda text, beam: "Yes.")
    assert run(bench, "头发 {{头发}}\n", "auto", "zh-Hant").text == "頭髮 {{头发}}\n"
    assert run(bench, "<p>頭髮 &amp; <b>軟件", "zh-Hant", "zh", format="html").text == (
        "<p>头发 &amp; <b>软件"
    )
    assert run(bench, "頭髮", "auto", "zh-TW").text == "頭髮"
    assert bench.engine.rounds == [] or not any(bench.engine.rounds)


def test_a_prefix_stays_as_it_was_given(service: Service) -> None:
    options = TranslateOptions(prefix="裏面", retry=False)

    async def main() -> tuple[Translation, list[str]]:
        ask = ("Where is it?", "en", "zh-TW", Deadline.after(60))
        whole = (await service.translator.run(*ask, options=options)).translations[0]
        return whole, [part async for part in service.translator.stream(*ask, options)]

    whole, parts = asyncio.run(main())
    assert whole.text.startswith("裏面") and whole.text != "裏面"
    assert "".join(parts) == whole.text


def test_alternatives_are_converted(service: Service) -> None:
    options = {"beam": 3, "alternatives": 3}
    bench = Bench(service, lambda text, beam: SAYS.format(""))
    one = run(bench, "Software.", "en", "zh-Hant", **options)
    assert [found.text for found in one.alternatives] == ["軟件在裡面，頭髮。"] and (
        one.text == one.alternatives[0].text
    )


def test_terms_are_compared_in_the_models_script(service: Service) -> None:
    glossary = Glossary.of({"hair": "頭髮", "software": "軟件"})
    bench = Bench(service, lambda text, beam: "头发")
    one = run(bench, "Hair and software.", "en", "zh-Hant", glossary=glossary, retry=False)
    assert (one.quality.hits, one.quality.misses) == (("hair",), ("software",))


def test_a_stored_glossary_of_another_script_is_read_in_the_models(service: Service) -> None:
    pairs = (("hair", "頭髮"), ("software", "軟體"))
    bench = Bench(service, lambda text, beam: "头发在软件里。")
    for target, made in (("zh", "头发在软件里。"), ("zh-TW", "頭髮在軟體裡。")):
        glossary = Glossary(pairs, "terms", ("en", "zh-TW"))
        one = run(bench, "Hair in software.", "en", target, glossary=glossary, retry=False)
        assert (one.text, one.quality.hits) == (made, ("hair", "software"))
    back = Glossary((("頭髮", "hair"),), "back", ("zh-Hant", "en"))
    bench = Bench(service, lambda text, beam: "His hair.")
    one = run(bench, "他的头发。", "zh", "en", glossary=back, retry=False)
    assert one.quality.hits == ("頭髮",)
