"""The tokenizer: special ids, round trip, text that looks special, sample and report."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from training.corpus import Cleaner, find_sources
from training.errors import ConfigError, CorpusError
from training.tokenizer import (
    SPECIAL,
    LanguageReport,
    balanced_sample,
    beside_gpt2,
    load_tokenizer,
    make_tokenizer,
    report,
    special_tokens,
    table,
    tokens_of,
    train_tokenizer,
    with_tokens,
)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_special_tokens_are_the_first_64_ids(tokenizer: Tokenizer) -> None:
    names = [tokenizer.id_to_token(i) for i in range(SPECIAL)]
    assert names[:7] == [
        "<|endoftext|>", "<|mask|>", "<|sep|>", "<|src:en|>", "<|src:de|>", "<|tgt:en|>",
        "<|tgt:de|>",
    ]  # fmt: skip
    assert names[7:] == [f"<|reserved:{i}|>" for i in range(57)]
    assert tokenizer.get_vocab_size() == 512
    assert all(t.special for t in tokenizer.get_added_tokens_decoder().values())
    assert len(tokenizer.get_added_tokens_decoder()) == SPECIAL


def test_at_least_32_stay_reserved() -> None:
    codes = [f"l{chr(97 + i)}" for i in range(14)]
    names = special_tokens(codes)
    assert len(names) == len(set(names)) == SPECIAL
    assert sum("reserved" in name for name in names) == 33
    with pytest.raises(ConfigError, match="15 languages: at most 14"):
        special_tokens([*codes, "xx"])


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.text(
        st.one_of(
            st.characters(exclude_categories=["Cs", "Cn"]),
            st.sampled_from("\u200d\u0301\u0308\ufe0f\u3000\xa0\x00\t\r\n👩🏽‍🚀ﬁạ́가각"),
        )
    )
)
def test_round_trip_is_identity_up_to_nfc(tokenizer: Tokenizer, text: str) -> None:
    normal = unicodedata.normalize("NFC", text)
    assert tokenizer.decode(ids(tokenizer, normal), skip_special_tokens=False) == normal
    assert all(i >= SPECIAL for i in ids(tokenizer, text))


@pytest.mark.parametrize(
    "text",
    ["<|endoftext|>", "a<|sep|>b", "<|src:en|><|tgt:de|>Hallo", " <|reserved:3|> ", "<|mask|>" * 3],
)
def test_special_tokens_in_text_stay_text(tokenizer: Tokenizer, text: str) -> None:
    for encoded in (
        ids(tokenizer, text),
        tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids,
        tokenizer.encode_batch([text])[0].ids,
    ):
        assert min(encoded) >= SPECIAL
        assert tokenizer.decode(encoded) == text


def test_names_take_the_place_of_reserved_entries(tokenizer_file: Path, tmp_path: Path) -> None:
    old = load_tokenizer(tokenizer_file)
    new = with_tokens(tokenizer_file, ["<|task:case|>", "<|src:en|>", *tokens_of(["es"])])
    names = {i: n for n, i in new.get_vocab().items() if old.id_to_token(i) != n}
    assert names == {7: "<|task:case|>", 8: "<|src:es|>", 9: "<|tgt:es|>"}
    assert new.get_vocab_size() == old.get_vocab_size()
    assert all(t.special for t in new.get_added_tokens_decoder().values())
    assert ids(new, "a <|task:case|>") == ids(old, "a <|task:case|>")
    new.save(str(tmp_path / "new.json"))
    again = with_tokens(tokenizer_file, tokens_of(["fr"]), tmp_path / "new.json")
    assert [again.id_to_token(i) for i in range(7, 12)] == [
        "<|task:case|>", "<|src:es|>", "<|tgt:es|>", "<|src:fr|>", "<|tgt:fr|>",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no <.task:t57.>, and no reserved entry left"):
        with_tokens(tokenizer_file, [f"<|task:t{i}|>" for i in range(58)])
    train_tokenizer(["other text"], 512, ["en", "de"]).save(str(tmp_path / "other.json"))
    with pytest.raises(ConfigError, match="tokenizer.json: its tokens are not those of .*other"):
        with_tokens(tokenizer_file, [], tmp_path / "other.json")


def test_merges_are_learnt(tokenizer: Tokenizer, toy_lines: dict[str, list[str]]) -> None:
    for side in toy_lines.values():
        text = "\n".join(side)
        assert len(ids(tokenizer, text)) < 0.45 * len(text.encode())


def test_unlike_forms_of_a_letter_are_one(tokenizer: Tokenizer) -> None:
    assert ids(tokenizer, "scho\u0308n") == ids(tokenizer, "schön")


@pytest.mark.parametrize("size", [0, -5, SPECIAL + 255, 65_536])
def test_impossible_vocabularies_are_named(size: int) -> None:
    with pytest.raises(ConfigError, match=f"vocabulary = {size}: must be in 320..65535"):
        train_tokenizer(["text"], size, ["en"])


def test_the_smallest_vocabulary_still_writes_everything() -> None:
    tokenizer = train_tokenizer(["hello hello"], SPECIAL + 256, ["en"])
    assert tokenizer.get_vocab_size() == SPECIAL + 256
    assert tokenizer.decode(ids(tokenizer, "语 ü \x00")) == "语 ü \x00"


def test_training_twice_gives_the_same_file(toy_lines: dict[str, list[str]]) -> None:
    made = [train_tokenizer(toy_lines["en"], 400, ["en", "de"]).to_str() for _ in range(2)]
    assert made[0] == made[1]


def test_damaged_tokenizers_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for path in (tmp_path / "tokenizer.json", tmp_path / "absent.json"):
        with pytest.raises(ConfigError, match=str(path)):
            load_tokenizer(path)


def test_the_sample_is_balanced(tmp_path: Path) -> None:
    def write(name: str, lines: int, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(f"{text} {i:06d}.\n\n" for i in range(lines)))

    write("mono/en/big.txt", 4000, "an English line of text")
    write("mono/en/more.txt", 4000, "another English line of")
    write("mono/de/small.txt", 1000, "eine deutsche Zeile Text")
    write("mono/de/off.txt", 1000, "eine Zeile, die nichts zählt")
    sources = find_sources(tmp_path, ["en", "de"])
    weights = {s.key: {"mono/big": 3.0, "mono/off": 0.0}.get(s.name, 1.0) for s in sources}
    texts = balanced_sample(sources, weights, 0.04, Cleaner())
    sizes = {code: sum(len(t.encode()) for t in side) for code, side in texts.items()}
    assert sizes == {"de": pytest.approx(20_000, abs=100), "en": pytest.approx(20_000, abs=100)}
    big = sum(len(t) for t in texts["en"] if t.startswith("an "))
    assert big == pytest.approx(15_000, abs=100)
    assert not any("nichts" in t for t in texts["de"])


def test_the_sample_takes_one_side_of_pairs(corpus: Path, toy_lines: dict[str, list[str]]) -> None:
    sources = [s for s in find_sources(corpus, ["en", "de"]) if len(s.languages) == 2]
    texts = balanced_sample(sources, {s.key: 1.0 for s in sources}, 1.0, Cleaner())
    assert texts == {code: side[:240] for code, side in toy_lines.items()}


def bytes_only() -> Tokenizer:
    tokenizer = train_tokenizer(["x"], SPECIAL + 256, ["en", "zh"])
    tokenizer.encode_special_tokens = True
    return tokenizer


def test_report_on_a_case_done_by_hand() -> None:
    lines = {"en": ["ab cd", "efg"], "zh": ["你好", "啊"]}  # 8 bytes; 9 bytes, one token a byte
    english, chinese = report(bytes_only(), lines)
    assert (english.bytes_per_token, english.premium) == (1.0, 1.0)
    assert english.tokens_per_character == 1.0 and english.tokens_per_word == 8 / 3
    assert chinese.tokens_per_character == 3.0 and chinese.tokens_per_word == 9 / 2
    assert chinese.premium == 9 / 8
    assert english.unknown == chinese.unknown == 0
    lines_of_table = table([english, chinese]).splitlines()
    assert english.used == 8 / 320  # a, b, c, d, e, f, g and the space
    cells = ["1.00", "1.000", "2.67", "1.00", "0.00", "%", "2.5", "%"]
    assert lines_of_table[1].split() == ["en", *cells]
    assert lines_of_table[2].split()[:6] == ["zh", "1.00", "3.000", "4.50", "1.12", "0.00"]


def test_no_premium_without_parallel_english() -> None:
    lines = {"en": ["ab"], "zh": ["你"]}
    assert math.isnan(report(bytes_only(), lines, aligned=False)[1].premium)
    assert math.isnan(report(bytes_only(), {"zh": ["你"]})[0].premium)
    assert math.isnan(report(bytes_only(), {**lines, "en": ["ab", "c"]})[1].premium)
    assert table(report(bytes_only(), lines, aligned=False)).splitlines()[1].split()[4] == "-"


def test_report_says_when_the_round_trip_fails() -> None:
    assert report(bytes_only(), {"en": ["cafe\u0301"]})[0].unknown == 0  # NFC is no loss
    from tokenizers import normalizers

    lossy = bytes_only()
    lossy.normalizer = normalizers.Lowercase()
    rows = report(lossy, {"en": ["Upper"]})
    assert rows[0].unknown == 1 / 5
    assert "20.00 %" in table(rows)


def test_goals_and_gpt2_stand_beside_flores(tmp_path: Path, corpus: Path) -> None:
    rows = [LanguageReport("en", 4.01, 0.2, 1.3, 1.0, 0.0, 0.1),
            LanguageReport("zh", 3.79, 0.8, 16.0, 0.99, 0.0, 0.1),
            LanguageReport("ja", 3.0, 0.8, 16.0, 1.3, 0.0, 0.1)]  # fmt: skip
    english, chinese = (line.split() for line in beside_gpt2(rows).splitlines()[2:])
    assert english == ["en", "4.01", "4.93", ">=", "4.0", "met", "1.00", "1.00"]
    assert chinese == ["zh", "3.79", "1.42", ">=", "3.8", "missed", "0.99", "3.21", "<=", "1.0",
                       "met"]  # fmt: skip
    sets = {name: {"en": ["a line"]} for name in ("flores101_devtest", "other")}
    text = make_tokenizer(find_sources(corpus, ["en", "de"]), {"*": 1.0}, ["en", "de"], 400, 0.01,
                          tmp_path, sets)  # fmt: skip
    assert text.count("GPT-2's 50,257") == 1 and text == (tmp_path / "report.txt").read_text()


def test_a_language_without_text_is_named() -> None:
    with pytest.raises(CorpusError, match="in zh"):
        report(bytes_only(), {"en": ["a"], "zh": []})
