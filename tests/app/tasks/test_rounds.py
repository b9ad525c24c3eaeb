"""What is tried again, what is taken, and what is told of it; the engine answers from a script."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.request import Finished, Hypothesis, Request, Token
from app.errors import InvalidField, QueueFull
from app.metrics import Metrics
from app.service import Service
from app.tasks.inputs import TaskLimits
from app.tasks.job import ZERO, Deadline
from app.tasks.options import TranslateOptions
from app.tasks.translate import Translation, Translator
from app.text.glossary import Glossary
from app.text.protect import protect
from app.text.tokenizer import TextTokenizer

Answer = Callable[[str, bool], str]  # of a prompt's text, and whether it is asked by beam


class Script:
    """An engine that answers at once; it is full at the submissions `full`."""

    def __init__(self, tokenizer: TextTokenizer, answer: Answer, full: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._answer = answer
        self._full = full
        self.rounds: list[list[str]] = []
        self.requests: list[Request] = []
        self.calls = 0

    def submit(self, requests: Sequence[Request], begun: bool = False) -> list[Any]:
        self.calls += 1
        if self.calls in self._full and not begun:
            raise QueueFull("full")
        self.rounds.append([self._tokenizer.decode(r.prompt) for r in requests])
        self.requests += requests
        for request, text in zip(requests, self.rounds[-1], strict=True):
            output = self._answer(text, request.beam is not None)
            ids = self._tokenizer.encode(output, param="text")[: request.max_tokens]
            reason: Any = "length" if len(ids) == request.max_tokens else "stop"
            found = Hypothesis(tuple(ids), (-0.5,) * len(ids), -1.0, reason)
            for token in ids:
                request.listener(Token(token, -0.5))
            hypotheses = (found,) * request.beam.best if request.beam else ()
            request.listener(Finished(reason, ZERO, hypotheses))
        return [None] * len(requests)


class Bench:
    def __init__(self, service: Service, answer: Answer, **more: Any) -> None:
        self.metrics = Metrics()
        tokenizer = TextTokenizer.of(service.bundle)
        self.engine = Script(tokenizer, answer, more.pop("full", ()))
        limits: TaskLimits = replace(service.limits, slots=more.pop("slots", 8))
        manifest = service.bundle.manifest.model_copy(update={"via": more.pop("via", {})})
        self.translator = Translator(
            self.engine, tokenizer, service.detector, manifest, limits, self.metrics, **more
        )

    def run(self, text: str | list[str], target: str = "de", **options: Any) -> list[Translation]:
        work = self.translator.run(
            text, "en", target, Deadline.after(20), options=TranslateOptions(**options)
        )
        return asyncio.run(work).translations

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"gpt2mt_{name}_total", labels) or 0.0


def test_a_kept_word_needs_no_second_round(service: Service) -> None:
    bench = Bench(service, lambda text, beam: text.replace("Hello", "Hallo"))
    (one,) = bench.run("Hello {name}! 😀")
    assert one.text == "Hallo {name}! 😀" and one.quality.flags == ()
    assert bench.engine.rounds == [["Hello Boston!"]]
    assert bench.count("translated_sentences", method="first") == 1


def test_a_lost_word_is_sought_by_beam(service: Service) -> None:
    bench = Bench(service, lambda text, beam: text.replace("Hello", "Hallo") if beam else "Ja.")
    lost, fine = bench.run(["Hello {name}, you!", "Hello Anna!"])
    assert (lost.text, fine.text) == ("Hallo {name}, you!", "Ja.")
    assert lost.quality.sentences[0].method == "beam" and lost.quality.flags == ()
    assert bench.engine.rounds[1] == ["Hello Boston, you!", "Hello Tom, you!"]
    assert bench.count("retried_sentences", result="cured") == 1
    assert bench.count("flagged_sentences", flag="spans") == 0


def test_in_the_last_resort_the_parts_around_it_are_translated(service: Service) -> None:
    words = {"Hello": "Hallo.", ", you!": ", du!"}
    bench = Bench(service, lambda text, beam: words.get(text, "Ja."))
    (one,) = bench.run("Hello {name}, you!")
    assert one.text == "Hallo {name}, du!"
    assert one.quality.sentences[0].method == "segments" and one.quality.sentences[0].lost == ()
    assert bench.engine.rounds[2] == ["Hello", ", you!"]


def test_more_words_than_names_are_translated_around(service: Service) -> None:
    text = "a {a} b {b} c {c} d {d} e {e} f {f} g {g} h"
    (one,) = Bench(service, lambda text, beam: text.upper()).run(text)
    assert one.text == "A {a} B {b} C {c} D {d} E {e} F {f} G {g} H"


@pytest.mark.parametrize("off", [{"retry": False}, {}])
def test_without_retry_it_is_only_told(service: Service, off: dict[str, bool]) -> None:
    bench = Bench(service, lambda text, beam: "Ja.", retry=bool(off))
    (one,) = bench.run("Hello {name}, you!", **off)
    assert one.text == "Ja." and one.quality.flags == ("spans",) and len(bench.engine.rounds) == 1
    assert one.quality.sentences[0].lost == ("{name}",)
    assert bench.count("flagged_sentences", flag="spans") == 1


def test_numbers_are_sought_then_put_right(service: Service) -> None:
    cats = "Ich habe Boston Katzen."
    bench = Bench(service, lambda text, beam: cats if "Boston" in text else "Ja.")
    (one,) = bench.run("I have 1,234.5 cats.")
    assert one.text == "Ich habe 1.234,5 Katzen." and one.quality.flags == ()
    assert bench.engine.rounds[1] == ["I have 1,234.5 cats.", "I have Boston cats."]
    wrong = Bench(service, lambda text, beam: "Ich habe 7 Katzen.")
    (one,) = wrong.run("I have 2 cats.")
    assert one.text == "Ich habe 2 Katzen." and one.quality.sentences[0].method == "repair"
    (one,) = wrong.run("I have 2 cats.", beam=2, alternatives=2)
    assert [other.text for other in one.alternatives] == [one.text] == ["Ich habe 2 Katzen."]
    (one,) = Bench(service, lambda text, beam: "Ich habe Katzen.").run("I have 2 cats.")
    assert one.quality.flags == ("numbers",)


def test_endless_repetition_is_taken_out_where_no_beam_helps(service: Service) -> None:
    bench = Bench(service, lambda text, beam: "die Katze Katze Katze Katze schläft.")
    (one,) = bench.run("The cat sleeps.")
    assert one.text == "die Katze schläft." and "repetition" in one.quality.flags
    assert one.quality.sentences[0].method == "repair" and len(bench.engine.rounds) == 2
    (one,) = bench.run("The cat sleeps.", beam=2, alternatives=2)
    assert one.text == "die Katze Katze Katze Katze schläft."  # alternatives are told as they are
    assert [other.text for other in one.alternatives] == [one.text]
    (one,) = bench.run("The cat sleeps.", retry=False)  # it may be told already
    assert one.text == "die Katze Katze Katze Katze schläft."
    cured = Bench(service, lambda text, beam: "die Katze." if beam else "Katze " * 4)
    (one,) = cured.run("The cat sleeps.")
    assert one.quality.flags == () and one.quality.sentences[0].method == "beam"


def test_what_is_not_far_too_long_is_left(service: Service) -> None:
    bench = Bench(service, lambda text, beam: "so so so so")
    (one,) = bench.run("The cat sleeps in the house of my friend.")
    assert one.text == "so so so so" and "repetition" in one.quality.flags


@pytest.mark.parametrize(
    ("text", "options", "kept"),
    [
        ("Hello {name}!", {}, "{name}"),
        ("Hello 🎉 you", {}, "🎉"),
        ("<p><b>The cat</b> sleeps.</p>", {"format": "html"}, "</b>"),
        ("The cat sleeps.", {"prefix": "no no no no"}, "no no no no"),
    ],
)
def test_marks_words_and_a_prefix_are_not_taken_out(
    service: Service, text: str, options: dict[str, Any], kept: str
) -> None:
    def loop(text: str, beam: bool) -> str:
        name = "Boston " if "Boston" in text else ""
        return "no no no no " + name + "und " * 40

    (one,) = Bench(service, loop).run(text, **options)
    assert kept in one.text


def test_what_a_repetition_took_with_it_is_judged_again(service: Service) -> None:
    glossary = Glossary.of({"dog": "Hund"})
    bench = Bench(service, lambda text, beam: "und so so so so ja ja ja ja Hund und viel mehr so")
    (one,) = bench.run("The dog sleeps.", glossary=glossary)
    assert one.text == "und so…"
    assert {"glossary", "repetition"} <= {*one.quality.flags} and one.quality.misses == ("dog",)


def test_terms_are_sought_then_told(service: Service) -> None:
    glossary = Glossary.of({"cat": "K & ter", "dog": "Hund"})
    bench = Bench(service, lambda text, beam: f"Der {text.split()[1]}")
    one, two = bench.run(["A cat.", "A dog."], glossary=glossary)
    assert (one.text, two.text) == ("Der K & ter.", "Der Hund.")
    assert (one.quality.hits, two.quality.hits) == (("cat",), ("dog",))
    (one,) = bench.run("<p>A cat.", glossary=glossary, format="html")
    assert one.text == "<p>Der K &amp; ter."
    (one,) = Bench(service, lambda text, beam: "Ja.").run("A cat.", glossary=glossary)
    assert one.quality.misses == ("cat",) and one.quality.flags == ("glossary",)


def test_alternatives_keep_what_is_protected(service: Service) -> None:
    bench = Bench(service, lambda text, beam: text.replace("Hello", "Hallo"))
    (one,) = bench.run("Hello {name}.", beam=2, alternatives=2)
    assert [a.text for a in one.alternatives] == ["Hallo {name}."]


def test_a_server_with_one_slot_tries_again_without_beam(service: Service) -> None:
    bench = Bench(service, lambda text, beam: text if "Tom" in text else "Ja.", slots=1)
    (one,) = bench.run("Hello {name}, you!")
    assert one.text == "Hello {name}, you!"


def test_a_later_round_is_taken_when_the_queue_is_full(service: Service) -> None:
    bench = Bench(service, lambda text, beam: text if beam else "Ja.", full=range(2, 99))
    (one,) = bench.run("Hello {name}, you!")
    assert one.text == "Hello {name}, you!" and bench.engine.calls == 2
    with pytest.raises(QueueFull):
        Bench(service, lambda text, beam: text, full=(1,)).run("Hello.")


def test_documents_keep_their_structure(service: Service) -> None:
    bench = Bench(service, lambda text, beam: text.upper())
    document = (
        '<!DOCTYPE html>\n<ul  id="a">\n <li>One <b>two</b> three. Four?\n'
        " <li>Five &lt; six\n</ul><script>if (a < b) {}</script><p translate=no>Keep</p>"
    )
    (one,) = bench.run(document, format="html", retry=False)
    assert one.text == (
        '<!DOCTYPE html>\n<ul  id="a">\n <li>ONE <b>TWO</b> THREE. FOUR?\n'
        " <li>FIVE &lt; SIX\n</ul><script>if (a < b) {}</script><p translate=no>Keep</p>"
    )
    same = "<p>12 &quot;34&quot;\n <b> </b>"
    assert bench.run([same, "x"], format="html", retry=False)[0].text == same
    with pytest.raises(InvalidField, match="500 elements") as caught:
        bench.run(["x", "<b>" * 6_000 + "y"], format="html")
    assert caught.value.param == "text[1]"


def test_the_stream_is_the_whole(service: Service) -> None:
    bench = Bench(service, lambda text, beam: text.upper())

    async def stream(**options: Any) -> str:
        parts = bench.translator.stream(
            "Hello {name}. 😀 You?\n7", "en", "de", Deadline.after(20), TranslateOptions(**options)
        )
        return "".join([part async for part in parts])

    lost = "".join(bench.run("Hello {name}. 😀 You?\n7", retry=False)[0].text)
    assert asyncio.run(stream(retry=False)) == lost
    assert asyncio.run(stream()) == "HELLO {name}. 😀 YOU?\n7"


PIECES = st.lists(
    st.sampled_from(
        ["{name}", "%1$s", "$VAR", "https://x.y/z", "a@b.co", "<b>", "</b>", "😀", "\x00", " ",
         "\n", "Hello", " you. ", "你好。", "مرحبا ", "12", "1,234.5 ", ", ", "\u202e", "é"]
    ),
    min_size=1,
    max_size=14,
).map("".join)  # fmt: skip
OUTPUTS = st.lists(
    st.sampled_from(["", "Ja.", "Boston", "Tom Tom", "7 Boston ja", "\U000f0000 \U0010fffd"]),
    min_size=3,
    max_size=3,
)


@given(
    texts=st.lists(PIECES, min_size=1, max_size=3),
    outputs=OUTPUTS,
    form=st.sampled_from(["text", "html"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_everything_protected_survives_whatever_the_model_says(
    service: Service, texts: list[str], outputs: list[str], form: str
) -> None:
    if not any(text.strip() for text in texts):
        return
    bench = Bench(service, lambda text, beam: outputs[len(text) % 3])
    results = bench.run(texts, format=form)
    assert len(results) == len(texts)
    for text, one in zip(texts, results, strict=True):
        raws = [span.raw.strip() for span in protect(text, "text").spans]
        for raw in raws:
            assert one.text.count(raw) >= raws.count(raw), (raw, one)
        assert re.findall("</?b>", one.text) == re.findall("</?b>", text)
        assert "spans" not in one.quality.flags
