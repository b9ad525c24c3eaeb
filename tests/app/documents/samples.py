"""Documents of every format that the tests read and write, and how to translate without a model."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable

from app.documents.formats import FORMATS
from app.documents.units import Document, Translated, Unit

_TAG = re.compile(r"(?:<(code|kbd)\b.*?</\1>|<[^>]*>)", re.DOTALL)
_KEPT = re.compile(r"(%\(\w+\)[sd]|%[sd]|\{\w*\})")

PLAIN = "Title\n\n  One line.\r\n42\nLast line without end"
MARKDOWN = """\
---
title: Not text
---

# A *heading* with `code` #

A paragraph with **bold words**, a [link](https://a.example/x_y "Title"), an
<https://auto.example>, a [reference] and [another][ref] and ![image](a.png).
It goes on here  
behind a hard break, with snake\\_case and AT&amp;T.

> A quote
> of two lines.

1. First item
   goes on
2. Second item[^1]
   - [ ] a task

| Name | What it is |
|------|:----------:|
| `x`  | **first** one \\| two |

```python
print("not text")
```

    indented code

<div class="a"><p>HTML <b>block</b></p></div>

[reference]: https://r.example "Reference"
[ref]: https://s.example

[^1]: A footnote.
"""
HTML = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>1. The interpreter &#8212; docs</title>
<script>var a = "<p>Not text</p>" && b;</script><style>p > a { color: red }</style></head>
<body class="x" data-y='z'>
<nav><ul><li class="right"><a href="index.html" title="General Index">index</a> |</li></ul></nav>
<section id="first"><h1>Using the interpreter<a class="headerlink" href="#first">\u00b6</a></h1>
<p>Type <kbd>Ctrl-D</kbd> or call <code class="docutils literal notranslate"><span
 class="pre">quit()</span></code> to leave &mdash; the <em>primary</em> prompt
 is shown.<br/>Then go on.</p>
<div class="highlight"><pre><span></span><span class="gp">$ </span>python3 -c <span>command</span>
</pre></div>
<!-- a comment --><img src="a.png" alt="A picture">
<table><tr><td>One<td>Two</table></section></body></html>
"""
SRT = """\
1
00:00:01,000 --> 00:00:02,500
Where is the <i>station</i>?

2
00:00:03,000 --> 00:00:06,000 X1:40 X2:600
{\\an8}It is behind the church,
not far from here.

7
00:01:03,000 --> 00:01:06,000
- Good morning!
- Good evening!

8
00:02:00,000 --> 00:02:01,000
42
"""
PO = """\
# Translators' comment.
#
msgid ""
msgstr ""
"Project-Id-Version: x\\n"
"Content-Type: text/plain; charset=UTF-8\\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\\n"

#. Extracted comment
#: a.c:1
#, c-format
msgid "The file %s is missing."
msgstr ""

msgctxt "menu"
msgid "Open \\"it\\""
msgstr ""

msgid "Done"
msgstr "Fertig"

#, python-format
msgid "%(count)d file\\n"
msgid_plural "%(count)d files\\n"
msgstr[0] ""
msgstr[1] ""

msgid ""
"A long message that "
"stands on two lines.\\n"
"And a second one."
msgstr ""

#~ msgid "Gone"
#~ msgstr ""
"""


def docx(fill: Callable[..., None] | None = None) -> bytes:
    """A document with all that python-docx makes, and a footnote."""
    import docx as library
    from docx.shared import Pt

    made = library.Document()
    made.add_heading("A heading", 1)
    paragraph = made.add_paragraph("Plain and ")
    paragraph.add_run("bold").bold = True
    paragraph.add_run(" and plain")
    paragraph.add_run(" again.").font.size = Pt(20)
    made.add_paragraph("An item", style="List Bullet")
    made.add_paragraph("42")
    table = made.add_table(2, 2)
    table.cell(0, 0).text = "Upper left"
    table.cell(1, 1).text = "Lower right\tbehind a tab\nnew line"
    made.sections[0].header.paragraphs[0].text = "The header"
    made.sections[0].footer.paragraphs[0].text = "The footer"
    if fill:
        fill(made)
    stream = io.BytesIO()
    made.save(stream)
    return stream.getvalue()


def loud(text: str) -> str:
    return "".join(p if _KEPT.fullmatch(p) else p.upper() for p in _KEPT.split(text))


def louder(unit: Unit) -> Translated:
    """Upper case, where a translation would change words."""
    if unit.format == "text":
        return Translated(loud(unit.text))
    parts: list[str] = []
    at = 0
    for tag in [*_TAG.finditer(unit.text), None]:
        text = html.unescape(unit.text[at : tag.start() if tag else None])
        parts += (html.escape(text.upper(), quote=False), tag[0] if tag else "")
        at = tag.end() if tag else 0
    return Translated("".join(parts))


def read(name: str, data: bytes | str) -> Document:
    return FORMATS[name].read(data.encode() if isinstance(data, str) else data)


def same(name: str, data: bytes | str) -> bytes:
    document = read(name, data)
    return document.write([Translated(unit.text) for unit in document.units])


def upper(name: str, data: bytes | str) -> bytes:
    document = read(name, data)
    return document.write([louder(unit) for unit in document.units])
