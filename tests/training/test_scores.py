"""Test sets and scores: what sacreBLEU itself says, health counts, faults that are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import sacrebleu

from training.errors import CorpusError
from training.scores import Scores, TestSet, find_sets, loops, score, table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "talks.en": "one\ntwo\nthree\n", "talks.de": "eins\nzwei\ndrei\n", "talks.v2.en": "a\n",
        "talks.v2.fr": "un\n", "alone.en": "x\n", "README.md": "no set\n", "notes.txt": "",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    (tmp_path / "talks.zh.gz").write_bytes(gzip.compress("一\n二\n三\n".encode()))
    return tmp_path


def test_every_direction_of_every_set(folder: Path) -> None:
    found = find_sets(folder, ["en", "de", "zh", "fr"])
    assert {(s.name, s.source, s.target) for s in found} == {
        *(("talks", a, b) for a in ("en", "de", "zh") for b in ("en", "de", "zh") if a != b),
        ("talks.v2", "en", "fr"), ("talks.v2", "fr", "en"),
    }  # fmt: skip
    one = next(s for s in found if (s.source, s.target) == ("zh", "de"))
    assert one.sources == ("一", "二", "三") and one.references == ("eins", "zwei", "drei")


def test_sets_can_be_chosen_and_cut(folder: Path) -> None:
    found = find_sets(folder, ["en", "de", "fr"], names=["talks"], limit=2)
    assert [(s.source, s.target, s.sources) for s in found] == [
        ("de", "en", ("eins", "zwei")), ("en", "de", ("one", "two")),
    ]  # fmt: skip


def test_faults_of_a_folder_are_named(folder: Path) -> None:
    with pytest.raises(CorpusError, match="nowhere: no such folder"):
        find_sets(folder / "nowhere", ["en", "de"])
    with pytest.raises(CorpusError, match="no set in two of de, ja"):
        find_sets(folder, ["ja", "de"])
    with pytest.raises(CorpusError, match="'alone': not in .* there are talks, talks.v2"):
        find_sets(folder, ["en", "de", "fr"], names=["alone"])
    (folder / "talks.de").write_text("eins\nzwei\n")
    with pytest.raises(CorpusError, match="'talks': its files differ in lines: de 2, en 3"):
        find_sets(folder, ["en", "de"])


REFERENCES = {
    "de": ["Das Haus ist klein, aber schön.", "Wo ist der Bahnhof?", "Ich komme morgen."],
    "zh": ["这座房子很小，但是很漂亮。", "火车站在哪里？", "我明天来。"],
    "ja": ["その家は小さいが美しい。", "駅はどこですか。", "明日来ます。"],
}
OUTPUTS = {
    "de": ["Das Haus ist klein und schön.", "Wo ist der Bahnhof?", "Ich gehe morgen."],
    "zh": ["这座房子很小，也很漂亮。", "火车站在哪儿？", "我明天来。"],
    "ja": ["その家は小さくて美しい。", "駅はどこですか。", "明日行きます。"],
}


@pytest.mark.parametrize(("target", "tokenize"), [("de", "13a"), ("zh", "zh"), ("ja", "char")])
def test_scores_are_sacrebleus(target: str, tokenize: str) -> None:
    test = TestSet("talks", "en", target, ("a", "b", "c"), tuple(REFERENCES[target]))
    found = score(test, [(text, "stop") for text in OUTPUTS[target]])
    bleu = sacrebleu.corpus_bleu(OUTPUTS[target], [REFERENCES[target]], tokenize=tokenize)
    chrf = sacrebleu.corpus_chrf(OUTPUTS[target], [REFERENCES[target]])
    assert found.bleu == round(bleu.score, 2) and 10 < found.bleu < 90
    assert found.chrf == round(chrf.score, 2) and 10 < found.chrf < 95
    assert f"tok:{tokenize}" in found.bleu_signature and "version:" in found.bleu_signature
    assert "nc:6" in found.chrf_signature and "nw:0" in found.chrf_signature
    assert (found.sentences, found.cut, found.looping) == (3, 0.0, 0.0)


def test_health_counts() -> None:
    test = TestSet("talks", "en", "de", ("a",) * 4, ("x",) * 4)
    outputs = [("gut", "stop"), ("a b c d " * 4, "length"), ("lang", "length"), ("", "stop")]
    found = score(test, outputs)
    assert (found.cut, found.looping) == (0.5, 0.25)


def test_outputs_and_references_must_be_as_many() -> None:
    test = TestSet("talks", "en", "de", ("a", "b"), ("x", "y"))
    with pytest.raises(ValueError, match="1 outputs for 2 lines of talks"):
        score(test, [("x", "stop")])


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("", False),
        ("one two three", False),
        ("a b c d " * 3, False),
        ("a b c d " * 4, True),
        ("so so so so so so so", True),  # four overlapping runs of four
        ("so so so so so so", False),
        ("the same words come back but never four in a row the same words come", False),
        ("我喜欢猫" * 4, True),
        ("我喜欢猫" * 3, False),
        ("哈哈哈哈哈哈哈", True),
        ("今天天气很好，孩子们在花园里玩。", False),
    ],
)
def test_loops(text: str, looping: bool) -> None:
    assert loops(text) is looping


def test_table() -> None:
    row = Scores("talks", "en", "de", 3, 12.345, "sig|13a", 45.0, "sig|chrf", 0.5, 0.015)
    lines = table([row, row]).splitlines()
    assert lines[2] == lines[3] == "| talks | en-de | 3 | 12.3 | 45.0 | 50.0 % | 1.5 % |"
    assert lines[4:] == ["", "- `sig|13a`", "- `sig|chrf`"]
    assert row.as_dict()["bleu_signature"] == "sig|13a"
