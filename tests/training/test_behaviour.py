"""Behaviour of translations: each fault is counted where it is, and only there."""

from __future__ import annotations

import pytest

from training.behaviour import Behaviour, names, numbers, observe, table
from training.rules import Identifier
from training.scores import TestSet

SOURCES = (
    "Tom bought 1,000.5 kilos of rice in Boston.", "The weather is very nice today, isn't it?",
    "We met Mary at 10:30 in the old town.", "In summer the children play in the garden.",
)  # fmt: skip
REFERENCES = (
    "Tom kaufte 1.000,5 Kilo Reis in Boston.", "Das Wetter ist heute sehr schön, nicht wahr?",
    "Wir trafen Mary um 10:30 in der Altstadt.", "Im Sommer spielen die Kinder im Garten.",
)  # fmt: skip
TEST = TestSet("talks", "en", "de", SOURCES, REFERENCES)
IDENTIFIER = Identifier(["en", "de", "fr", "zh"])


def of(*texts: str, reasons: tuple[str, ...] = ("stop",) * 4) -> Behaviour:
    return observe(TEST, list(zip(texts, reasons, strict=True)), IDENTIFIER)


def test_references_behave() -> None:
    assert of(*REFERENCES) == Behaviour(0, 1, 1, 0, 0, 0, 0, 1, 1)


def test_each_fault_is_counted() -> None:
    one, two, three, four = REFERENCES
    assert of(one, SOURCES[1], three, four).copied == 0.25
    assert of(one, SOURCES[1].lower(), three, four).in_language == 0.75
    assert of(one, "", three, four).empty == 0.25
    assert of(one, "Das", three, four).short == 0.25
    assert of(one, two * 3, three, four).long == 0.25
    assert of(one, "ja ja ja ja ja ja ja", three, four).runaway == 0.25
    assert of(one, two, three, four, reasons=("stop", "length", "stop", "stop")).runaway == 0.25


def test_numbers_and_names_are_counted_one_by_one() -> None:
    found = of("Tim kaufte 1000,5 Kilo Reis in Boston.", *REFERENCES[1:3], "Im Sommer.")
    assert found.numbers == 1 and found.names == pytest.approx(2 / 3)  # of Tom, Boston, Mary
    assert of("Tom, Boston", REFERENCES[1], "Mary um halb elf", "").numbers == 0
    nothing = observe(TestSet("s", "en", "de", ("yes",), ("ja",)), [("ja", "stop")], IDENTIFIER)
    assert nothing.numbers is nothing.names is None


def test_a_reference_that_is_the_source_is_no_copy() -> None:
    test = TestSet("s", "en", "de", ("OK!", "Well?"), ("Ok.", "Nun?"))
    assert observe(test, [("OK", "stop"), ("Nun?", "stop")], IDENTIFIER).copied == 0


def test_what_numbers_and_names_are() -> None:
    assert numbers("1.000,5 and 7, then 10:30; no x") == {"10005", "7", "1030"}
    assert numbers("他有 3 本书，12,000 元") == {"3", "12000"}
    assert names("In Köln A meets Jean-Luc, IT, 他是 Tom", {"in"}) == {
        "Köln", "Jean-Luc", "IT", "Tom",
    }  # fmt: skip


def test_table() -> None:
    row = Behaviour(0.015, 0.99, 1, 0, 0, 0.25, 0, None, 0.5)
    lines = table([("talks", "en", "de", row)]).splitlines()
    assert lines[2] == ("| talks | en-de | 1.5 | 99.0 (100.0) | 0.0 | 0.0 | 25.0 | 0.0 |  | 50.0 |")
