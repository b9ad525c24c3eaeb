"""What is scored as served is what the server answers."""

from __future__ import annotations

import httpx
import pytest

from app.bundle import Bundle
from app.errors import InvalidField
from app.main import create_app
from app.settings import Settings
from export.served import served_translator
from tests.servers import serve

TEXTS = [
    "Good morning.",
    "The train is late. It comes at 7:45, {name}.",
    "no no no no no no no no",
    "x",
]


@pytest.mark.parametrize("beam", [1, 2])
def test_texts_come_back_as_from_the_server(int8_bundle: Bundle, beam: int) -> None:
    with served_translator(int8_bundle.path, beam=beam) as translate:
        results = translate(TEXTS, "en", "de")
        assert translate([], "en", "de") == []
    with serve(create_app(Settings(bundle=int8_bundle.path))) as server:
        for text, result in zip(TEXTS, results, strict=True):
            body = {"text": text, "source": "en", "target": "de", "beam": beam}
            answer = httpx.post(
                f"http://127.0.0.1:{server.port}/v1/translate", json=body, timeout=60
            ).json()
            (found,) = answer["translations"]
            assert result.text == found["text"]
            assert (result.finish_reason == "length") == found["truncated"]


def test_what_the_server_refuses_is_refused(int8_bundle: Bundle) -> None:
    with served_translator(int8_bundle.path) as translate, pytest.raises(InvalidField):
        translate(["Hello."], "en", "xx")
