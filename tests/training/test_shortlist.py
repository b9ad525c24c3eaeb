"""Shortlists from pairs: a toy lexicon is learnt, the file is always the same, errors name what."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from gpt2_mt.cli import main
from training.errors import ConfigError, CorpusError
from training.shortlist import Options, make_shortlist, model_one
from training.tokenizer import load_tokenizer, train_tokenizer

WORDS = {"dog": "Hund", "cat": "Katze", "house": "Haus", "tree": "Baum", "red": "rot",
         "blue": "blau", "big": "gross", "small": "klein", "bread": "Brot"}


def lines(count: int = 400) -> list[tuple[str, str]]:
    rng = random.Random(3)
    made = []
    for i in range(count):
        words = rng.sample(sorted(WORDS), 4)
        other = [WORDS[word] for word in words]
        rng.shuffle(other)
        made.append((f"{' '.join(words)} {i}.", f"{' '.join(other)} {i}."))
    return made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    with gzip.open(folder / "toy.en-de.tsv.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"{a}\t{b}\n" for a, b in lines())
    return folder


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    texts = [text for pair in lines() for text in pair]
    train_tokenizer(texts, 400, ["en", "de", "fr"]).save(str(path))
    return path


def token(tokenizer: Tokenizer, word: str) -> int:
    [found] = tokenizer.encode(f" {word}", add_special_tokens=False).ids
    return int(found)


def test_model_one_is_em_by_hand() -> None:
    """The two sentences of Knight's tutorial: b c / x y, b / y."""
    keys, chance = model_one([[0, 1], [0]], [[2, 3], [3]], 4, 1)
    assert keys.tolist() == [2, 3, 6, 7, 18, 19]  # of 0, 1 and the empty word to 2 and 3
    third, half = 1 / 3, 1 / 2
    both = [third, third + half]  # the first pair shares each token among three, the second two
    total = sum(both)
    expected = [both[0] / total, both[1] / total, half, half, both[0] / total, both[1] / total]
    np.testing.assert_allclose(chance, expected)
    _, later = model_one([[0, 1], [0]], [[2, 3], [3]], 4, 30)
    assert later[1] > 0.98 and later[2] > 0.9, "what b means explains what c means"


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sources, targets = ([rng.integers(0, 30, rng.integers(1, 9)).tolist() for _ in range(50)]
                        for _ in range(2))  # fmt: skip
    keys, chance = model_one(sources, targets, 30, 4)
    monkeypatch.setattr("training.shortlist._LINKS", 40)
    again, other = model_one(sources, targets, 30, 4)
    assert np.array_equal(keys, again)
    np.testing.assert_allclose(chance, other)


def test_an_obvious_lexicon_is_learnt(
    corpus: Path, tokenizer_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "made.npz"
    assert main([
        "train", "shortlist", "--corpus", str(corpus), "--tokenizer", str(tokenizer_file),
        "--out", str(out), "--candidates", "1", "--common", "1",
    ]) == 0  # fmt: skip
    assert "wrote" in capsys.readouterr().out
    tokenizer, found = load_tokenizer(tokenizer_file), np.load(out)
    assert found["pairs"].tolist() == ["de-en", "en-de"]
    for code, words in (("de", WORDS), ("en", {b: a for a, b in WORDS.items()})):
        offsets, ids, common = (found[f"{code}.{name}"] for name in ("offsets", "ids", "common"))
        signs = {tokenizer.decode([i]).strip() for i in common.tolist()}
        assert 0 in common and "." in signs and any(sign.isdigit() for sign in signs)
        assert not set(ids.tolist()) & set(common.tolist())
        for word, other in words.items():
            given, told = token(tokenizer, word), token(tokenizer, other)
            assert told in {*ids[offsets[given] : offsets[given + 1]], *common}, word
    text = out.read_bytes()
    make_shortlist(corpus, tokenizer_file, out, Options(candidates=1, common=1))
    assert out.read_bytes() == text, "the same corpus, the same file"


def test_one_way_pairs_and_limits(corpus: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    text = "".join(f"{a}\t{b}\n" for a, b in lines())
    (tmp_path / "c" / "made.en-to-de.tsv").write_text(text, encoding="utf-8")
    out = tmp_path / "s.npz"
    table = make_shortlist(tmp_path / "c", tokenizer_file, out, Options(pairs=100))
    assert np.load(out)["pairs"].tolist() == ["en-de"] and " 100 " in table
    with pytest.raises(CorpusError, match="no pair"):
        make_shortlist(tmp_path / "c", tokenizer_file, out, Options(longest=2))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--languages", "en,xx"], "--languages xx"),
        (["--languages", "en,fr"], "no such pairs"),
        (["--sources", "toy", "nothing*"], "--sources nothing"),
        (["--pairs", "0"], "--pairs 0"),
        (["--candidates", "0"], "--candidates 0"),
        (["--common", "-1"], "--common -1"),
        (["--corpus", "nowhere"], "nowhere"),
        (["--tokenizer", "nowhere.json"], "nowhere.json"),
    ],
)
def test_errors_name_the_option(
    corpus: Path, tokenizer_file: Path, tmp_path: Path, words: list[str], match: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "s.npz"
    code = main(["train", "shortlist", "--corpus", str(corpus), "--tokenizer",
                 str(tokenizer_file), "--out", str(out), *words])  # fmt: skip
    assert code != 0 and match in capsys.readouterr().err and not out.exists()


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="--longest 0"):
        Options(longest=0)
