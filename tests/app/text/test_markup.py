"""Markup comes back byte for byte, and what is text is found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import InvalidField
from app.text.markup import MAX_DEPTH, escape, parse
from app.text.protect import Protected

TAGS = ["<p>", "</p>", "<b>", "</b>", "<br>", "<a href='x>y'>", "</a>", "<!-- c -->",
        "<script>if(a<b){}</script>", '<i class="notranslate">', "</i>", "<", ">", "<li>", "</ul>",
        "<ul>", "<![CDATA[x]]>", "<?x?>", "<pre>", "</pre>", "<code>", "</code>", "</", "<!",
        '<p translate="no">', '<img src="a">', "<a ='", "&amp;", "<t/>", "<t>", "</t>"]  # fmt: skip
MARKUP = st.lists(st.sampled_from([*TAGS, " ", "\n", "1", "😀", "\x00"]), max_size=25).map("".join)
WORDS = [" ", "\n", "Hello", "you. ", "{x}", "é"]
TEXT = st.lists(st.sampled_from([*TAGS, *WORDS]), max_size=25).map("".join)


def back(parts: list[str | Protected], change: Any = str) -> str:
    return "".join(
        part if isinstance(part, str) else part.restore(change(part.text), escape) for part in parts
    )


def texts(document: str, form: Any = "html") -> list[str]:
    """The units, protected words as _ and marks as |."""
    found = []
    for part in parse(document, form, "text"):
        if isinstance(part, Protected):
            chars = ["_" if part.is_word(c) else "|" if part.is_mark(c) else c for c in part.text]
            found.append("".join(chars))
    return found


@given(document=MARKUP, form=st.sampled_from(["html", "xml"]))
@settings(max_examples=400, deadline=None)
def test_markup_without_text_is_literal(document: str, form: Any) -> None:
    if not texts(document, form):
        assert back(parse(document, form, "text")) == document


@given(document=TEXT, form=st.sampled_from(["html", "xml"]))
@settings(max_examples=400, deadline=None)
def test_all_of_a_document_comes_back(document: str, form: Any) -> None:
    parts = parse(document, form, "text")

    def plain(text: str) -> str:
        return "".join(text.split()).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")

    assert plain(back(parts)) == plain(document)
    assert all(unit == unit.strip(" \n") for unit in texts(document, form))


@pytest.mark.parametrize(
    ("document", "units"),
    [
        ("<p>Hello <b>you</b>!</p>", ["Hello |you|!"]),
        ("<p>Hello <B>you</B>!<P>Two", ["Hello |you|!", "Two"]),
        ("<ul>\n <li>One\n <li>Two\n</ul>", ["One", "Two"]),
        ("<td>A<br>B</td>", ["A", "B"]),
        ("<p>One\n   two\tthree</p>", ["One two three"]),
        ("<p>Use <code>ls <b>-l</b></code> now</p>", ["Use _ now"]),
        ('<p>I am <span translate="no">Not <i>me</i></span>.</p>', ["I am _."]),
        ('<p class="a notranslate">Keep</p><p translate=yes>Go', ["Go"]),
        ("<script>var a = '<p>no</p>'</script><style>p{}</style><p>Yes", ["Yes"]),
        ("<pre>keep\n me</pre>Text", ["Text"]),
        ("<title>A &amp; B</title>", ["A & B"]),
        ('<a title="x > y" href=\'z\'>Link</a>', ["|Link|"]),
        ("a < b and c > d", ["a < b and c > d"]),
        ("Hello <!-- secret --> you", ["Hello | you"]),
        ("Hi {name}, see https://x.y/?a=1&amp;b=2", ["Hi _, see _"]),
        ("<b>1</b> <i>2</i>", []),
        ("<b>Text <i", ["|Text <i"]),
    ],
)
def test_units_of_html(document: str, units: list[str]) -> None:
    assert texts(document) == units


@pytest.mark.parametrize(
    ("document", "units"),
    [
        ("<r><s>One</s><s>Two <x>three</x></s></r>", ["One", "Two |three|"]),
        ("<?xml version='1.0'?>\n<r><P>One</P><p>Two</p></r>", ["One", "Two"]),
        ("<s>Go <g id='1'/> on</s>", ["Go | on"]),
        ('<s translate="no">Keep</s><s>Go</s>', ["Go"]),
        ("<script>Hello</script>", ["Hello"]),
    ],
)
def test_units_of_xml(document: str, units: list[str]) -> None:
    assert texts(document, "xml") == units


def test_attributes_and_entities_are_written_back() -> None:
    document = "<a\n href = 'x&amp;y'  data-A=\"<>\" >Caf&eacute; &lt;3</A ><IMG\nSRC=a>"
    assert back(parse(document, "html", "text")) == document.replace("&eacute;", "é")


def test_depth_is_bounded() -> None:
    fine = "<b>" * MAX_DEPTH + "x" + "</b>" * MAX_DEPTH
    assert back(parse(fine, "html", "text")) == fine
    assert len(texts("<li>x" * 2000)) == 2000
    for tag in ("<b>", "<div>"):
        with pytest.raises(InvalidField, match="500 elements") as caught:
            parse(tag * 10_000 + "x", "html", "text[3]")
        assert caught.value.param == "text[3]"


def test_any_document_is_read_in_time() -> None:
    for part in ("<a ", '<a ="', "<a ='", "<!--", "<![CDATA[", "</b>", "<br/>", "<", "</", "<p>x",
                 "<b></b>", "<script>", "&", "&#1", "<a b='c'>x</a>", "<textarea>"):  # fmt: skip
        document = part * (100_000 // len(part))
        for form in ("html", "xml"):
            try:
                assert back(parse(document, form, "text"))  # type: ignore[arg-type]
            except InvalidField:
                assert part in ("<script>", "<p>x", "<textarea>")
