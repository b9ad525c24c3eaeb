"""The commands over the tiny bundle, as a user types them."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app import cli
from app.bundle import Bundle
from app.commands.progress import Progress
from app.errors import BundleError, InvalidField, SettingsError, UnknownLanguage

Run = Callable[..., tuple[int, str]]
BLANK = "blank.txt"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("gpt2-mt")
    cli.register(made.add_subparsers(required=True))
    return made


@pytest.fixture
def run(
    int8_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    def call(*words: str, stdin: bytes = b"") -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        args = parser().parse_args([*words, "--bundle", str(int8_bundle.path)])
        code = args.run(args)
        return code, capsys.readouterr().out

    return call


def test_a_text_is_translated(run: Run) -> None:
    code, out = run("translate", "--target", "de", "--source", "en", "Hello", "there.", "\n 7 \n")
    assert code == 0
    assert out.endswith("\n 7 \n") and len(out.strip()) > 10
    assert run("translate", "--target", "de", stdin=b"Hello there.\n")[1].strip()


def test_lines_give_lines(
    run: Run, tmp_path: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.commands.local._LINES", 4)
    lines = [*sentences[::2], "", "42", "  "] * 2
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    code, out = run("translate", "--target", "en", "--source", "auto", "--file", str(path))
    answers = out.split("\n")
    assert code == 0 and len(answers) == len(lines) + 1 and answers.pop() == ""
    assert answers[:2] == sentences[:3:2]  # English already
    assert answers[6:9] == ["", "42", "  "]
    assert answers[9:] == answers[:9]  # batches do not matter
    piped = run("translate", "--target", "en", stdin="\n".join(lines[:9]).encode())
    assert piped[1].split("\n")[:9] == answers[:9]


def test_alternatives(run: Run) -> None:
    beam = ["translate", "--target", "de", "--source", "en", "--beam", "3"]
    best = run(*beam, "--no-retry", "Hello there.")[1]  # nor are alternatives tried again
    code, out = run(*beam, "--alternatives", "3", "Hello there.")
    scores, texts = zip(*(line.split("\t") for line in out.splitlines()), strict=True)
    assert code == 0 and len(texts) == 3 and texts[0] == best.rstrip("\n")
    assert list(map(float, scores)) == sorted(map(float, scores), reverse=True)
    lines = b"Hello there.\n\n7\ttwo\n"
    code, out = run(*beam, "--alternatives", "3", stdin=lines)
    first, blank, number = out.splitlines()
    assert (first.split("\t"), blank) == (list(texts), "") and number.startswith("7 ")


def test_a_folder_becomes_files_to_train_on(
    run: Run, tmp_path: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("app.commands.folder._LINES", 2)
    english = [*sentences[:3], sentences[0], "", "42"]
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    (corpus / "mono" / "de").mkdir(parents=True)
    (corpus / "notes.txt").write_text("\n".join(english) + "\n", encoding="utf-8")
    (corpus / "mono" / "de" / "book.txt").write_text("Guten Tag.\n")
    chinese = ["Here.\t\u8fd9", "A new line.\t\u65b0"]
    for pair, lines in (("de-en", ["Ja\tA new line."]), ("en-zh", chinese)):
        with gzip.open(corpus / f"web.{pair}.tsv.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    (corpus / "train.en").write_text("Hello there.\n")
    command = ["translate", "--source", "en", "--target", "fr", "--folder", str(corpus)]
    assert run(*command, "--out", str(out)) == (0, "")
    made = {p.name: gzip.decompress(p.read_bytes()).decode().splitlines() for p in out.iterdir()}
    columns = [line.split("\t") for lines in made.values() for line in lines]
    assert all(len(row) == 3 and float(row[2]) <= 0 for row in columns)  # log-probabilities
    rows = {name: [line.split("\t")[:2] for line in lines] for name, lines in made.items()}
    # the tiny model is random: what it cuts is left out, so sources are a subset of the lines
    cut = {t for t in english if t} - {row[0] for row in rows["notes.en-to-fr.tsv.gz"]}
    names = ("notes", "web.de-en", "web.en-zh", "corpus")
    assert rows.keys() == {f"{name}.en-to-fr.tsv.gz" for name in names}
    assert rows["notes.en-to-fr.tsv.gz"][-1] == ["42", "42"] and len(cut) <= 3
    assert [row[0] for row in rows["web.en-zh.en-to-fr.tsv.gz"]] in ([], ["Here."])  # each once
    whole = run("translate", "--source", "en", "--target", "fr", english[0])[1].strip()
    expected = [] if english[0] in cut else [[english[0], " ".join(whole.split())]]
    assert [r for r in rows["notes.en-to-fr.tsv.gz"] if r[0] == english[0]] == expected

    first = out / "notes.en-to-fr.tsv.gz"
    first.write_bytes(gzip.compress("kept\tgard\u00e9\n".encode()))
    (out / "corpus.en-to-fr.tsv.gz").unlink()
    run(*command, "--out", str(out))  # goes on with what is missing
    assert gzip.decompress(first.read_bytes()).decode() == "kept\tgard\u00e9\n"
    assert (out / "corpus.en-to-fr.tsv.gz").exists() and not list(out.glob("*.partial"))


def test_a_folder_that_cannot_be_translated(run: Run, tmp_path: Path) -> None:
    def refused(match: str, *more: str) -> None:
        with pytest.raises(InvalidField, match=match):
            run("translate", "--target", "fr", *more)

    folder, out = tmp_path / "in", ("--out", str(tmp_path / "out"))
    refused("in'?: no such folder", "--folder", str(folder), *out, "--source", "en")
    folder.mkdir()
    refused("no text in 'en'", "--folder", str(folder), *out, "--source", "en")
    (folder / "a.en-de.tsv").write_text("one\ttwo\n")
    refused("--source", "--folder", str(folder), *out)
    refused("go together", "--folder", str(folder))
    refused("not both", "--folder", str(folder), *out, "text")
    (folder / "a.de-en.tsv").write_text("no tab\n")
    refused("a.de-en.tsv', line 1: no tab", "--folder", str(folder), *out, "--source", "en")
    (folder / "a.de-en.tsv").write_bytes(b"fine\tfine\nD\xfcrr\tx\n")
    refused("a.de-en.tsv', line 2: .*utf-8", "--folder", str(folder), *out, "--source", "en")


def test_a_prompt_is_continued(run: Run) -> None:
    code, out = run("generate", "--max-tokens", "8", "The")
    assert code == 0 and out.strip("\n")
    options = ["--seed", "3", "--temperature", "1", "--top-k", "40", "--top-p", "0.9"]
    first = run("generate", *options, "The")
    assert first == run("generate", *options, stdin=b"The")
    assert first[1] != run("generate", "The")[1]
    stop = first[1][3:6]
    assert run("generate", *options, "--stop", stop, "The")[1] == first[1].split(stop)[0] + "\n"
    plain = run("generate", "The")[1]
    assert run("generate", "--seed", "3", "--min-p", "1", "The")[1] == plain  # only the likeliest
    for penalty in ("--presence-penalty", "--frequency-penalty", "--repetition-penalty"):
        assert run("generate", penalty, "2", "The")[1] != plain


def test_settings_of_the_server_hold(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run("translate", "--source", "en", "--target", "de", "A dog.")
    monkeypatch.setenv("GPT2MT_PREFIX_SLOTS", "4")
    monkeypatch.setenv("GPT2MT_TRANSLATION_CACHE", "8")
    assert run("translate", "--source", "en", "--target", "de", "A dog.") == plain
    monkeypatch.setenv("GPT2MT_CACHE_MB", "1")
    monkeypatch.setenv("GPT2MT_PREFIX_SLOTS", "1000")
    with pytest.raises(SettingsError, match="cache_mb 1 contradict"):
        run("translate", "--target", "de", "A dog.")


def test_info(run: Run, int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2MT_ENGINES", "1")
    out = run("info")[1]
    parts = ("tiny-int8", "int8", "en (English)", "en-zh", "32 + 1 slots x 128 tokens", "CC0-1.0")
    for part in parts:
        assert part in out
    facts = json.loads(run("info", "--json")[1])
    assert facts["languages"] == int8_bundle.manifest.languages
    assert facts["kv_memory"]["bytes"] == 33 * 128 * 2 * 2 * 64  # int8
    monkeypatch.setenv("GPT2MT_ENGINES", "3")
    assert "3 x (11 + 1) slots x 128 tokens" in run("info")[1]


def test_info_tells_how_many_engines_are_suited(
    run: Run, monkeypatch: pytest.MonkeyPatch, int8_bundle: Bundle
) -> None:
    from app.engine import placement

    def told(*words: str) -> int:
        return int(json.loads(run("info", "--json", *words)[1])["kv_memory"]["engines"])

    def suited(choice: placement.Choice) -> int:
        return placement.suited_engines(int8_bundle, choice, None, 0)

    monkeypatch.setattr(placement, "available_threads", lambda: 2)
    assert told() == 2 and told("--threads", "2") == 1
    for settings, engines in (
        ({"PREFIX_SLOTS": "1"}, 1),
        ({"SLOTS": "14"}, 1),  # 7 each are not enough for a beam of 8
        ({"SLOTS": "15"}, 2),
        ({"CACHE_MB": "1", "SLOTS": "28"}, 2),
        ({"CACHE_MB": "1", "SLOTS": "29"}, 1),  # the second's slot for padding has no room
    ):
        with monkeypatch.context() as setting:
            for name, value in settings.items():
                setting.setenv(f"GPT2MT_{name}", value)
            assert told() == engines, settings
    monkeypatch.setattr(placement, "SMALL", int8_bundle.manifest.model.parameters - 1)
    assert suited("cpu") == 1
    monkeypatch.setattr(placement, "SMALL", int8_bundle.manifest.model.parameters)
    assert suited("cpu") == suited("auto") == 2
    for cores in (1, 3):
        with monkeypatch.context() as odd:
            odd.setattr(placement, "available_threads", lambda n=cores: n)
            assert suited("cpu") == 1
    monkeypatch.setattr(placement, "_why_not", lambda bundle: None)
    assert suited("auto") == suited("cuda") == 1 and suited("cpu") == 2


def test_info_tells_the_device(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from app.engine import placement

    monkeypatch.setattr(placement.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with caplog.at_level(logging.INFO):
        out = run("info", "--threads", "1")[1]
    assert "device      cpu; bit-identical answers at any load\n" in out
    assert "has no CUDAExecutionProvider" in caplog.text
    facts = json.loads(run("info", "--json", "--device", "cpu")[1])
    assert (facts["device"], facts["same_answers_at_any_load"]) == ("cpu", True)
    with pytest.raises(InvalidField, match="device 'cuda'"):
        run("info", "--device", "cuda")
    monkeypatch.setitem(sys.modules, "app.engine.placement", None)  # without a runtime
    assert "device      none: onnxruntime is not installed" in run("info")[1]


def test_info_states_what_a_limit_of_memory_leaves(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2MT_ENGINES", "1")
    monkeypatch.setenv("GPT2MT_CACHE_MB", "1")  # a slot of the tiny model takes 32,768 bytes
    assert "29 + 1 slots x 128 tokens x 256 bytes = 1.0 MB" in run("info")[1]
    monkeypatch.setenv("GPT2MT_SLOTS", "31")
    with pytest.raises(SettingsError, match="slots 31 and cache_mb 1 contradict"):
        run("info")


def test_info_shows_scores() -> None:
    from app.commands.info import _score_table

    score = {"set": "tatoeba", "source": "en", "target": "de", "metric": "BLEU", "value": 21.456,
             "signature": "nrefs:1|v:2"}  # fmt: skip
    assert _score_table([score])[-2:] == [
        "tatoeba  en-de  BLEU    21.46", "BLEU: nrefs:1|v:2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "kind", "match"),
    [
        (["translate", "--target", "xx", "a"], UnknownLanguage, "'xx'"),
        (["translate", "--target", "de", "--file", "/nowhere"], InvalidField, "/nowhere"),
        (["translate", "--target", "de", "--file", "x", "text"], InvalidField, "not both"),
        (["translate", "--target", "de"], InvalidField, "empty"),
        (["translate", "--target", "de", ""], InvalidField, "text is empty"),
        (["translate", "--target", "de", "--beam", "9", "a"], InvalidField, "beam is 9"),
        (["translate", "--target", "de", "--alternatives", "2", "a"], InvalidField, "at most beam"),
        (["translate", "--target", "xx", "--file", BLANK], UnknownLanguage, "'xx'"),
        (["translate", "--target", "de", "--source", "x", "--file", BLANK], UnknownLanguage, "'x'"),
        (["generate", "--temperature", "-1", "a"], InvalidField, "temperature is -1.0: must be"),
        (["generate", "--temperature", "nan", "a"], InvalidField, "temperature is nan"),
        (["generate", "--min-tokens", "200", "a"], InvalidField, "min_tokens is 200: max"),
        (["generate", "--max-tokens", "0", "a"], InvalidField, "max_tokens is 0: must be"),
        (["generate", "--top-p", "0", "a"], InvalidField, "top_p is 0.0: must be"),
        (["generate", "--seed", "4294967296", "a"], InvalidField, "seed is 4294967296"),
        (["generate", "--stop", "", "a"], InvalidField, "stop"),
        (["generate", ""], InvalidField, "prompt is empty"),
        (["generate", "--threads", "0", "a"], SettingsError, "threads"),
        (["generate"], InvalidField, "empty"),
    ],
)
def test_errors(
    run: Run,
    words: list[str],
    kind: type,
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(BLANK).write_text("\n  \n\n")
    piped = b"" if match == "empty" else b"what an argument must not fall back on"
    with pytest.raises(kind, match=match) as caught:
        run(*words, stdin=piped)
    assert caught.value.user_error


def test_input_that_is_not_utf8(run: Run) -> None:
    with pytest.raises(InvalidField, match="byte 1"):
        run("translate", "--target", "de", stdin=b"a\xff")


def test_a_bundle_that_is_missing() -> None:
    for words in (["info"], ["serve"], ["generate", "a"]):
        args = parser().parse_args([*words, "--bundle", "/nowhere"])
        with pytest.raises(BundleError, match="/nowhere"):
            args.run(args)


def test_help_has_examples_and_imports_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from app import cli\n"
        "p = argparse.ArgumentParser(); s = p.add_subparsers(); cli.register(s)\n"
        "assert all('example:' in c.epilog and c.description for c in s.choices.values())\n"
        "assert list(s.choices) == ['serve', 'translate', 'generate', 'info', 'keys']\n"
        "bad = {'numpy', 'fastapi', 'onnxruntime', 'pydantic', 'tokenizers'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cli.__file__).parents[1])


def test_the_progress_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    bar = Progress(10, "lines", terminal)
    bar.add(5)
    assert bar.line(2.0) == "[" + "#" * 15 + " " * 15 + "] 5/10 lines 2.5/s, 2 s left "
    bar.close()
    assert terminal.getvalue().endswith("\n")
    quiet = io.StringIO()
    Progress(10, "lines", quiet).close()
    assert quiet.getvalue() == ""


def test_a_document_with_a_glossary(run: Run, tmp_path: Path) -> None:
    page, terms = tmp_path / "page.html", tmp_path / "terms.tsv"
    page.write_text("<p>Hello <b>there</b>.</p>\n<pre>keep\nme</pre>\n", encoding="utf-8")
    terms.write_text("hello\tHallo\n", encoding="utf-8")
    words = ["translate", "--source", "en", "--target", "de", "--format", "html"]
    code, out = run(*words, "--glossary", str(terms), "--file", str(page))
    assert code == 0 and out.startswith("<p>") and out.endswith("</p>\n<pre>keep\nme</pre>\n")
    assert out.count("<b>") == out.count("</b>") == 1
    terms.write_text("hello", encoding="utf-8")
    with pytest.raises(InvalidField, match="line 1: no tab"):
        run(*words, "--glossary", str(terms), "x")


def test_what_is_doubtful_is_told(int8_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["translate", "--source", "en", "--target", "de", "--bundle", str(int8_bundle.path)]
    for more in ([], ["--no-retry", "--beam", "2", "--alternatives", "2"]):
        args = parser().parse_args([*words, *more, "Hello there."])
        assert args.run(args) == 0
        assert capsys.readouterr().err.startswith("doubtful: ")
