"""Markup in texts: not protected yet, so every API that has an option for it refuses it here."""

from __future__ import annotations

from app.errors import InvalidField


def require_plain(param: str, kind: str) -> None:
    """`kind` is what the field `param` asks for: plain `text`, `html` or `xml`."""
    if kind != "text":
        raise InvalidField(
            f"{param} is {kind}: this server translates plain text only, tags would be damaged",
            param=param,
        )
