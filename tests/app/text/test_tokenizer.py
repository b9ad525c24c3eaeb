"""Text to ids and back: specials stay text, pieces add up, prompts follow the templates."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from app.bundle import Bundle
from app.errors import InvalidField
from app.text.tokenizer import TextTokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(fp32_bundle: Bundle) -> TextTokenizer:
    return TextTokenizer.of(fp32_bundle)


def test_names_of_special_tokens_in_user_text_stay_text(
    tokenizer: TextTokenizer, fp32_bundle: Bundle
) -> None:
    text = "<|endoftext|>a<|sep|> <|tgt:de|><|mask|>"
    ids = tokenizer.encode(text, param="text")
    tokens = fp32_bundle.manifest.tokens
    assert min(ids) > max(tokens.reserved)
    assert tokenizer.decode(ids) == text


@given(text=TEXT)
@settings(max_examples=150, deadline=None)
def test_decoding_gives_the_text_back_in_nfc(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, param="text")) == unicodedata.normalize(
        "NFC", text
    )


def test_pieces_equal_the_whole_decode_for_any_ids(
    tokenizer: TextTokenizer, fp32_bundle: Bundle
) -> None:
    oracle = Tokenizer.from_file(str(fp32_bundle.tokenizer_path))
    ids = st.lists(st.integers(0, fp32_bundle.manifest.model.vocabulary - 1), max_size=40)
    # single bytes are the hard case: characters that begin and never end
    bytes_only = st.lists(st.integers(64, 64 + 255), max_size=40)

    @given(ids=ids | bytes_only)
    @settings(max_examples=300, deadline=None)
    def check(ids: list[int]) -> None:
        detokenizer = tokenizer.detokenizer()
        pieces = [detokenizer.push(token) for token in ids]
        assert "".join(pieces) + detokenizer.finish() == oracle.decode(
            ids, skip_special_tokens=True
        )

    check()


def test_half_a_character_is_held_back(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a😀b", param="text")
    assert len(ids) > 3  # the emoji takes several tokens
    detokenizer = tokenizer.detokenizer()
    assert [p for p in map(detokenizer.push, ids) if p] == ["a", "😀", "b"]


def test_a_lone_surrogate_names_its_field(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InvalidField, match=r"text\[2\].*U\+D800.*character 1") as caught:
        tokenizer.encode("a\ud800", param="text[2]")
    assert caught.value.param == "text[2]"


def test_prompts_follow_the_templates(tokenizer: TextTokenizer, fp32_bundle: Bundle) -> None:
    tokens = fp32_bundle.manifest.tokens
    source, target = tokens.languages["en"].source, tokens.languages["de"].target
    assert tokenizer.translation_prompt("en", "de", [70, 71]) == (
        source, target, 70, 71, tokens.separator,
    )  # fmt: skip
    assert tokenizer.generation_prompt([70]) == (tokens.end, 70)
    assert (tokenizer.overhead("translate"), tokenizer.overhead("generate")) == (3, 1)


@given(text=TEXT)
def test_spans_cover_the_text(tokenizer: TextTokenizer, text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    spans = tokenizer.spans(text, param="text")
    assert [token for token, _, _ in spans] == tokenizer.encode(text, param="text")
    assert {i for _, start, stop in spans for i in range(start, stop)} == set(range(len(text)))
