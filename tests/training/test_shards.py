"""Shards: what is written is read back, faults are named, some lines are held out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from training.corpus import Cleaner, LeakCheck, Source, find_sources
from training.errors import CorpusError
from training.shards import Shard, Side, encode, held_line, held_out, prepare, write_shard

PAIRS = Source("web", ("en", "de"), ())
SEQUENCES = [[1, 2, 3], [65_535], [], [7] * 300]


@pytest.fixture
def shard_path(tmp_path: Path) -> Path:
    write_shard(tmp_path / "deep" / "web.en-de.train.bin", PAIRS, SEQUENCES, "abc")
    return tmp_path / "deep" / "web.en-de.train.bin"


def test_round_trip(shard_path: Path) -> None:
    shard = Shard(shard_path)
    assert [shard[i].tolist() for i in range(len(shard))] == SEQUENCES
    assert shard.lengths.tolist() == [3, 1, 0, 300]
    assert (shard.header.name, shard.header.languages) == ("web", ("en", "de"))
    assert (shard.header.tokenizer_sha256, shard.header.tokens) == ("abc", 304)
    assert shard[0].dtype == np.uint16 and isinstance(shard.tokens, np.memmap)
    assert shard_path.stat().st_size == 2 * 304


def test_an_empty_shard(tmp_path: Path) -> None:
    for sequences in ([], [[]]):
        shard = write_shard(tmp_path / "none.bin", PAIRS, sequences, "")
        assert len(Shard(tmp_path / "none.bin")) == len(shard) == len(sequences)


def test_an_id_beyond_uint16_is_never_wrapped(tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        write_shard(tmp_path / "big.bin", PAIRS, [[1], [65_536]], "")
    with pytest.raises(CorpusError, match="big"):
        Shard(tmp_path / "big.bin")


def test_one_side_of_pairs_reads_like_text(shard_path: Path) -> None:
    sides = [Side(Shard(shard_path), side) for side in (0, 1)]
    assert [len(side) for side in sides] == [2, 2]
    assert [sides[0][i].tolist() for i in (0, 1)] == [[1, 2, 3], []]
    assert [sides[1][i].tolist() for i in (0, 1)] == [[65_535], [7] * 300]
    assert sides[1].lengths.tolist() == [1, 300]


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_file_that_is_cut_altered_or_of_another_shard_is_named(
    shard_path: Path, suffix: str
) -> None:
    other = shard_path.with_name("other.bin")
    write_shard(other, PAIRS, [s[::-1] for s in reversed(SEQUENCES)], "abc")  # as many tokens
    file = shard_path.with_suffix(suffix)
    data = file.read_bytes()
    flipped = bytes([data[0] ^ 1]) + data[1:]
    for content in (data[:-8], flipped, b"", other.with_suffix(suffix).read_bytes()):
        file.write_bytes(content)
        with pytest.raises(CorpusError, match=rf"web.en-de.train.bin: \{suffix} is not the file"):
            Shard(shard_path)
    file.write_bytes(data)
    assert Shard(shard_path)[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("missing", [".bin", ".idx", ".json"])
def test_a_missing_file_is_named(shard_path: Path, missing: str) -> None:
    shard_path.with_suffix(missing).unlink()
    with pytest.raises(CorpusError, match="web.en-de.train.bin"):
        Shard(shard_path)


@pytest.mark.parametrize(
    "change",
    [{"sequences": 5}, {"extra": 1}, {"languages": None}, {"tokens": 0}, {"name": ...},
     {"blake2b": ...}, {"blake2b": None}, {"blake2b": {".bin": ""}}],
)
def test_a_wrong_header_is_named(shard_path: Path, change: dict[str, object]) -> None:
    file = shard_path.with_suffix(".json")
    values = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    with pytest.raises(CorpusError, match="web.en-de.train.bin"):
        Shard(shard_path)
    file.write_text("{")
    with pytest.raises(CorpusError, match="web.en-de.train.bin"):
        Shard(shard_path)


def test_a_shard_that_was_being_written_anew_is_not_taken_for_whole(shard_path: Path) -> None:
    def interrupted() -> object:
        yield [4, 5, 6]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(shard_path, PAIRS, interrupted(), "abc")  # type: ignore[arg-type]
    with pytest.raises(CorpusError):
        Shard(shard_path)


def test_prepare_holds_out_a_few_and_loses_none(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pairs = [(f"line number {i}", f"Zeile mit Nummer {i}") for i in range(3000)]
    lines = "".join(f"{a}\t{b}\n" for a, b in [*pairs, ("leaked line", "x"), pairs[0]])
    (tmp_path / "web.en-de.tsv").write_text(lines)
    (tmp_path / "mono" / "en").mkdir(parents=True)
    (tmp_path / "mono" / "en" / "m.txt").write_text("one\ntwo\n\nthree\n")
    cleaner = Cleaner(LeakCheck(["Leaked line!"]))
    sources = find_sources(tmp_path, ["en", "de"])
    assert [s.name for s in sources] == ["mono/m", "web"]
    train, valid = prepare(sources, tokenizer, "abc", cleaner, tmp_path / "shards", 7)
    documents, kept, held = (
        [tokenizer.decode(shard[i].tolist()) for i in range(len(shard))]
        for shard in (*train, valid[1])
    )
    assert len(held) == 14  # seven pairs: no more than asked for
    found = [list(zip(side[0::2], side[1::2], strict=True)) for side in (kept, held)]
    out = [pair for pair in pairs if held_out(pair)]
    assert 7 < len(out) < 40 and found[1] == out[:7], "the rest is not learnt from either"
    assert found[0] == [pair for pair in pairs if pair not in out]
    assert documents == ["one\ntwo", "three"]
    assert cleaner.report.counts["web.en-de"] == {
        "kept": 3007 - len(out), "held out": len(out) - 7, "leak: sentence": 1, "duplicate": 1
    }  # fmt: skip


def test_what_is_held_out_is_learnt_from_no_other_pair(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A corpus of three languages, of which each pair is a file, and machine translations."""
    for a, b in (("de", "en"), ("de", "fr"), ("en", "fr")):
        lines = "".join(f"{a} sentence {i}\t{b} sentence {i}\n" for i in range(1500))
        (tmp_path / f"web.{a}-{b}.tsv").write_text(lines)
    lines = "".join(f"en sentence {i}\tother {i}\n" for i in range(1500))
    (tmp_path / "made.en-to-de.tsv").write_text(lines)
    sources = find_sources(tmp_path, ["en", "de", "fr"])
    train, valid = prepare(sources, tokenizer, "abc", Cleaner(), tmp_path / "shards", 5)
    learnt, held = ({s[i].tobytes() for s in shards for i in range(len(s))}
                    for shards in (train, valid))  # fmt: skip
    texts = [f"{code} sentence {i}" for code in ("en", "de", "fr") for i in range(1500)]
    marked = {np.array(tokenizer.encode(text).ids, np.uint16).tobytes()
              for text in texts if held_line(text)}  # fmt: skip
    assert marked & held and not marked & learnt
    assert [len(shard) for shard in valid] == [0, 10, 10, 10]


def test_nothing_is_held_out_when_none_is_asked(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    sources = find_sources(corpus, ["en", "de"])
    _, valid = prepare(sources, tokenizer, "abc", Cleaner(), tmp_path, valid_examples=0)
    assert [len(shard) for shard in valid] == [0] * len(sources)


def test_text_is_encoded_in_order_and_never_as_special_tokens(tokenizer: Tokenizer) -> None:
    texts = [f"text {i} <|sep|>" for i in range(5000)]  # more than a block
    encoded = list(encode(tokenizer, texts))
    assert len(encoded) == 5000 and min(min(ids) for ids in encoded) >= 64
    for i in (0, 4095, 4096, 4999):
        assert tokenizer.decode(encoded[i]) == texts[i]


def test_machine_translations_give_no_validation_examples(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for name in ("web.en-to-de", "web.task-shout"):
        lines = "".join(f"line {name} {i}\tZeile {name} {i}\n" for i in range(2000))
        (tmp_path / f"{name}.tsv").write_text(lines)
    sources = find_sources(tmp_path, ["en", "de"], tasks=["shout"])
    train, valid = prepare(sources, tokenizer, "abc", Cleaner(), tmp_path / "shards", 5)
    name = "web.en-to-de"
    out = sum(held_out((f"line {name} {i}", f"Zeile {name} {i}")) for i in range(2000))
    assert out > 0, "texts that other pairs are validated on are not learnt from here either"
    assert [len(s) // 2 for s in train] == [2000 - out, 1995] and [len(s) for s in valid] == [0, 10]
    headers = [Shard(tmp_path / "shards" / f"{s.key}.train.bin").header for s in sources]
    assert [(h.languages, h.one_way, h.task) for h in headers] == [
        (("en", "de"), True, ""), ((), False, "shout"),
    ]  # fmt: skip
