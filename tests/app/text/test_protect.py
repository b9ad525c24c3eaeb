"""What must not change is found, set aside and written back, character by character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.protect import protect

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PARTS = st.lists(
    st.sampled_from(
        ["{name}", "{0}", "%1$s", "%(x)d", "{{x}}", "${VAR}", "$VAR", "%s", "https://x.y/z?a=1",
         "a@b.co", "<b>", "</b>", "<br/>", "😀", "👨\u200d👩\u200d👧", "🇩🇪", "\x00", "\U000f0001",
         " ", "Hello", "你好", ".", "`x`"]
    ),
    max_size=20,
).map("".join)  # fmt: skip


@given(text=ANY | PARTS)
@settings(max_examples=300, deadline=None)
def test_restored_is_what_it_was(text: str) -> None:
    found = protect(text, "text")
    assert found.restore(found.text) == text


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("Hello {name}, hi", ["{name}"]),
        ("{0} of {1:.2f} and {}", ["{0}", "{1:.2f}", "{}"]),
        ("%1$s, %(x)d, %s, %.2f and %d.", ["%1$s", "%(x)d", "%s", "%.2f", "%d"]),
        ("{{x}} ${VAR} $VAR %{n} #{y} [[z]]",
         ["{{x}}", "${VAR}", "$VAR", "%{n}", "#{y}", "[[z]]"]),
        ("See https://e.com/a?b=1&c=(2). Or www.x.org, ok",
         ["https://e.com/a?b=1&c=(2", "www.x.org"]),
        ("请访问https://example.com/了解，谢谢", ["https://example.com/"]),
        ("Mail a.b+c@mail.example.com!", ["a.b+c@mail.example.com"]),
        ("a@b.co%1$sc@d.co", ["a@b.co", "%1$s", "c@d.co"]),
        ("50 % of $5, 100% sure, 5 %", []),
        ("Use `ls -l` now", ["`ls -l`"]),
    ],
)  # fmt: skip
def test_words(text: str, raw: list[str]) -> None:
    found = protect(text, "text")
    assert [span.raw for span in found.spans if span.place == "word"] == raw


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("Great! 😀 See", [("😀 ", "before")]),
        ("Great 😀", [(" 😀", "after")]),
        ("😀 Hi", [("😀 ", "before")]),
        ("a👍🏽b", [("👍🏽", "after")]),
        ("x 👨‍👩‍👧 🇩🇪 y", [("👨‍👩‍👧 🇩🇪 ", "before")]),
        ("<b>x</b><br>y", [("<b>", "before"), ("</b>", "after"), ("<br>", "before")]),
        ("1 < 2 > 0", []),
        ("a\x00b", [("\x00", "after")]),
    ],
)
def test_marks(text: str, spans: list[tuple[str, str]]) -> None:
    assert [(s.raw, s.place) for s in protect(text, "text").spans] == spans


def test_a_megabyte_is_read_in_time() -> None:
    for part in ("{", "%", "$", "a@", "http://", "<a ", "x", "😀", "`", "[[", "{{", "<a '", "%%a",
                 "a.@b."):  # fmt: skip
        text = part * (300_000 // len(part))
        found = protect(text, "text") if part != "😀" else protect(text[:100_000], "text")
        assert found.restore(found.text).startswith(part)
