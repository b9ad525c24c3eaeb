"""A teacher's translations: what is in the files, what is left out, and going on where it stood."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_mt.cli import main
from training import shards, teach
from training.checkpoint import save_checkpoint
from training.corpus import Cleaner, LeakCheck, Source, scan
from training.errors import CheckpointError, ConfigError, CorpusError
from training.evaluate import Translator, checkpoint_translator
from training.model import GPT, preset
from training.tokenizer import TRANSLATE, sha256

FILE = "toy.en-to-de.tsv.gz"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """Knows nothing, but wants to end the more, the farther on it is."""
    torch.manual_seed(1)
    model = GPT(preset("test", 512))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        weights = model.state_dict()
        end = weights["transformer.wte.weight"][0]
        weights["transformer.wpe.weight"] += torch.arange(128)[:, None] * 0.5 * end
    folder = tmp_path_factory.mktemp("teacher") / "checkpoint"
    save_checkpoint(folder, model, tokenizer_file, {
        "pairs": [["en", "de"]], "languages": {"en": "", "de": ""}, "mask": "causal",
        "templates": {"translate": TRANSLATE}, "tokenizer_sha256": sha256(tokenizer_file),
    })  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, toy_lines: dict[str, list[str]]) -> Path:
    """50 aligned lines, and running text of 20 of them and 20 more."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    (folder / "mono" / "en").mkdir(parents=True)
    for code, lines in toy_lines.items():
        (folder / f"train.{code}").write_text("\n".join(lines[:50]) + "\n", encoding="utf-8")
    text = "\n".join(toy_lines["en"][30:70])
    (folder / "mono" / "en" / "book.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def sources(corpus: Path) -> list[Source]:
    return teach.texts_to_translate(teach.TranslateConfig("", "en-de", ("toy", "mono/*")), corpus)


def rows(file: Path) -> list[list[str]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n").split("\t") for line in lines]


@pytest.mark.parametrize("beam", [1, 2])
def test_rows_are_the_translators_own(
    tmp_path: Path, checkpoint: Path, sources: list[Source], toy_lines: dict[str, list[str]],
    beam: int,
) -> None:  # fmt: skip
    counts = teach.teach(checkpoint, sources, "en-de", tmp_path, beam, progress=False)
    translator = checkpoint_translator(checkpoint, beam=beam)
    for name, texts in (("toy", toy_lines["en"][:50]), ("mono_book", toy_lines["en"][50:70])):
        assert texts == teach.texts_of(sources, "en", None)[name.replace("_", "/")]
        expected: list[tuple[str, str, Any]] = [
            (text, " ".join(output.split()), pytest.approx(score, abs=1e-4))
            for text, (output, reason, score) in zip(
                texts, translator.scored(texts, "en", "de"), strict=True
            ) if reason == "stop" and output.split()
        ]  # fmt: skip
        file = tmp_path / f"{name}.en-to-de.tsv.gz"
        assert len(expected) > 10
        assert [(a, b, float(c)) for a, b, c in rows(file)] == expected
        assert counts[file.name]["kept"] == len(expected)
        assert counts[file.name].total() == len(texts)


def test_the_files_are_read_as_one_way_sources(
    tmp_path: Path, checkpoint: Path, sources: list[Source]
) -> None:
    teach.teach(checkpoint, sources, "en-de", tmp_path, progress=False)
    found = {source.key: source for source in scan(tmp_path)}
    assert found.keys() == {"toy.en-to-de", "mono_book.en-to-de"}
    assert all(source.one_way and source.languages == ("en", "de") for source in found.values())
    cleaner = Cleaner(languages=("en", "de"), min_score=-50.0)
    list(cleaner.pairs(found["toy.en-to-de"]))
    assert cleaner.report.counts["toy.en-to-de"].total() == len(rows(tmp_path / FILE))


def test_held_out_and_test_sentences_are_not_translated(
    tmp_path: Path, checkpoint: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = [s for s in scan(corpus) if s.name == "toy"]
    english, german = ((corpus / f"train.{c}").read_text().splitlines() for c in ("en", "de"))
    out = (german[7], english[11])  # one side is enough
    monkeypatch.setattr(shards, "hash64", lambda text: 0 if text in out else 1)
    leaks = LeakCheck([german[9]])
    found = teach.texts_of([source], "en", leaks)["toy"]
    assert found == [t for i, t in enumerate(english) if i not in (7, 9, 11)]
    document = Source("mono/x", ("en",), (corpus / "train.en",))
    found = teach.texts_of([document], "en", None)["mono/x"]
    assert found == [t for i, t in enumerate(english) if i != 11]
    assert english[7] not in teach.texts_of([source, document], "en", None)["mono/x"]


def test_what_cannot_be_used_is_left_out_and_counted(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["good", "cut here", "nothing", "word " * 400, "spaced"]
    (tmp_path / "mono" / "en").mkdir(parents=True)
    (tmp_path / "mono" / "en" / "a.txt").write_text("\n".join(lines))
    outputs = {"good": ("gut", "stop", -0.5), "cut here": ("a b", "length", -1.0),
               "nothing": (" ", "stop", -1.0), "spaced": ("a\tb\n c", "stop", -0.25)}  # fmt: skip

    def scored(self: Translator, texts: list[str], source: str, target: str) -> list[Any]:
        assert (source, target) == ("en", "de")
        return [outputs[text] for text in texts]

    monkeypatch.setattr(Translator, "scored", scored)
    counts = teach.teach(checkpoint, scan(tmp_path), "en-de", tmp_path / "out", progress=False)
    file = tmp_path / "out" / "mono_a.en-to-de.tsv.gz"
    assert rows(file) == [["good", "gut", "-0.5000"], ["spaced", "a b c", "-0.2500"]]
    assert counts == {file.name: {"kept": 2, "cut": 1, "empty": 1, "too long": 1}}


def test_a_teacher_bounded_by_the_clock_takes_a_sample(
    tmp_path: Path, checkpoint: Path, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teach, "BLOCK", 8)
    seconds = iter(range(0, 10_000, 10))  # each look at the clock is ten later
    monkeypatch.setattr(teach.time, "monotonic", lambda: next(seconds))
    whole = teach.teach(checkpoint, sources, "en-de", tmp_path / "whole", progress=False)
    part = teach.teach(checkpoint, sources, "en-de", tmp_path / "part", progress=False,
                       minutes=1.0)  # fmt: skip
    for name, counts in part.items():
        kept, known = ({tuple(row) for row in rows(tmp_path / at / name)}
                       for at in ("part", "whole"))  # fmt: skip
        assert kept < known and 0 < counts["not reached"] < whole[name].total()
        assert counts.total() == whole[name].total()
        texts = [row[0] for row in rows(tmp_path / "whole" / name)]
        assert [row[0] for row in rows(tmp_path / "part" / name)] != texts[: len(kept)]
    again = teach.teach(checkpoint, sources, "en-de", tmp_path / "part", progress=False,
                        minutes=1.0)  # fmt: skip
    assert again == part


def test_a_stopped_teacher_goes_on(
    tmp_path: Path, checkpoint: Path, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teach, "BLOCK", 8)
    real, calls = Translator.scored, [0]

    def counted(stop: int) -> Callable[..., Any]:
        def scored(self: Translator, *rest: Any) -> Any:
            calls[0] += 1
            if calls[0] == stop:
                raise KeyboardInterrupt
            return real(self, *rest)

        return scored

    def run(out: Path, stop: int = 0, beam: int = 1) -> dict[str, Any]:
        calls[0] = 0
        monkeypatch.setattr(Translator, "scored", counted(stop))
        return teach.teach(checkpoint, sources, "en-de", out, beam, progress=False)  # type: ignore[return-value]

    whole = run(tmp_path / "whole")
    blocks = calls[0]
    assert blocks == 7 + 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", 4)
    (partial,) = (tmp_path / "stopped").glob("*.partial")
    with partial.open("a") as file:
        file.write('{"rows": [["half a bl')
    assert run(tmp_path / "stopped") == whole
    assert calls[0] == blocks - 3
    files = [sorted((tmp_path / name).iterdir()) for name in ("whole", "stopped")]
    assert [f.name for f in files[0]] == [f.name for f in files[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))
    assert run(tmp_path / "stopped") == whole and calls[0] == 0  # done before
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", 4, beam=2)  # other translations: nothing of the old is taken
    run(tmp_path / "stopped", beam=2)
    assert calls[0] == blocks - 3
    report = json.loads((tmp_path / "stopped" / "toy.en-to-de.json").read_text())
    assert report["counts"]["kept"] == len(rows(tmp_path / "stopped" / FILE))


def test_what_cannot_teach_is_refused(
    tmp_path: Path, checkpoint: Path, sources: list[Source], corpus: Path
) -> None:
    with pytest.raises(CheckpointError, match="not trained for de-en; it has en-de"):
        teach.teach(checkpoint, sources, "de-en", tmp_path / "out")
    with pytest.raises(CheckpointError, match="nowhere"):
        teach.teach(tmp_path / "nowhere", sources, "en-de", tmp_path / "out")
    with pytest.raises(CorpusError, match="nothing in en to translate into de"):
        teach.teach(checkpoint, [], "en-de", tmp_path / "out")
    for keys, words in (
        ({"sources": ("other",)}, "no source in en matches other"),
        ({"direction": "english"}, "direction = 'english'"),
        ({"beam": 0}, "beam = 0"),
    ):
        values: dict[str, Any] = {"direction": "en-de", "sources": ("*",), **keys}
        with pytest.raises((ConfigError, CorpusError), match=words):
            teach.texts_to_translate(teach.TranslateConfig("", **values), corpus)


def test_the_command(
    tmp_path: Path, checkpoint: Path, corpus: Path, sources: list[Source],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "tests").mkdir()
    tested = (corpus / "train.en").read_text().splitlines()[3]
    (tmp_path / "tests" / "set.en").write_text(tested + "\n")
    status = main([
        "train", "teach", str(checkpoint), "--corpus", str(corpus), "--direction", "en-de",
        "--sources", "toy", "--out", str(tmp_path / "out"), "--tests", str(tmp_path / "tests"),
        "--device", "cpu", "--threads", "1", "--quiet",
    ])  # fmt: skip
    assert status == 0
    teach.teach(checkpoint, sources, "en-de", tmp_path / "all", progress=False)
    written = rows(tmp_path / "out" / FILE)
    assert written == [row for row in rows(tmp_path / "all" / FILE) if row[0] != tested]
    assert f"out/{FILE}: {len(written)} translations" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "out").glob("*.gz")] == [FILE]
