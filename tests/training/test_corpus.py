"""Reading a corpus folder: sources, cleaning, duplicates, leaks, and faults that are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from training.corpus import (
    Cleaner,
    LeakCheck,
    Report,
    Source,
    find_sources,
    first_match,
    read_lines,
    read_pairs,
    read_scored,
    skeleton,
    weight_of,
)
from training.errors import CorpusError

LONG_EN = "this old wooden bridge over the quiet river was built by my grandfather and his brothers"
LONG_ZH = "这座横跨平静河流的古老木桥是我的祖父和他的兄弟们在很多年以前一起建造起来的"


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def tsv(folder: Path, text: str | bytes, name: str = "web.en-de.tsv") -> Source:
    path = write(folder / name, text)
    first, second = name.split(".")[1].split("-")
    return Source(name.split(".")[0], (first, second), (path,))


# -- finding sources


def test_all_kinds_of_sources_are_found(tmp_path: Path) -> None:
    for name in (
        "web.en-de.tsv.gz", "sub/news.v2.en-zh.tsv", "aligned/train.en", "aligned/train.de.gz",
        "aligned/train.fr", "aligned/valid.en", "mono/en/book.txt.gz", "mono/de/book.txt",
        "mono/en/notes.md", "mono/en/deep/er.txt", "readme.txt", "web.en-ja.tsv",
        "web.en-to-de.tsv.gz", "web.de-to-ja.tsv", "web.task-case.tsv",
    ):  # fmt: skip
        write(tmp_path / name, "")
    found = {s.key: tuple(p.name for p in s.paths) for s in
             find_sources(tmp_path, ["en", "de", "zh"])}  # fmt: skip
    assert found == {
        "web.en-de": ("web.en-de.tsv.gz",),
        "web.en-to-de": ("web.en-to-de.tsv.gz",),
        "news.v2.en-zh": ("news.v2.en-zh.tsv",),
        "aligned.de-en": ("train.de.gz", "train.en"),
        "mono/book.en": ("book.txt.gz",),
        "mono/book.de": ("book.txt",),
    }


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    away, folder = tmp_path / "away", tmp_path / "corpus"
    for name in ("v1/train.en", "v1/train.de", "texts/book.txt", "web.en-de.tsv"):
        write(away / name, "")
    (folder / "mono").mkdir(parents=True)
    (folder / "captions").symlink_to(away / "v1")
    (folder / "mono" / "en").symlink_to(away / "texts")
    (folder / "web.en-de.tsv").symlink_to(away / "web.en-de.tsv")
    (folder / "again").symlink_to(folder)  # no endless walk
    found = {source.key for source in find_sources(folder, ["en", "de"])}
    assert found == {"captions.de-en", "mono/book.en", "web.en-de"}


def test_a_list_file_chooses_and_mono_is_always_read(tmp_path: Path) -> None:
    for name in ("train/a.en-de.tsv", "train/b.en-de.tsv", "c.en-de.tsv", "mono/en/m.txt",
                 "train/set/train.en", "train/set/train.de"):  # fmt: skip
        write(tmp_path / name, "")
    write(tmp_path / "train/OPEN.txt", "a.en-de.tsv\n\nset/train.en\nset/train.de\n")
    keys = [s.key for s in find_sources(tmp_path, ["en", "de"], "train/OPEN.txt")]
    assert keys == ["mono/m.en", "a.en-de", "set.de-en"]
    with pytest.raises(CorpusError, match="absent.txt"):
        find_sources(tmp_path, ["en"], "absent.txt")
    write(tmp_path / "train/OPEN.txt", "a.en-de.tsv\nb.en-de.tsv.gz\n")
    with pytest.raises(CorpusError, match="OPEN.txt names .*b.en-de.tsv.gz, which is not there"):
        find_sources(tmp_path, ["en", "de"], "train/OPEN.txt")


def test_a_folder_without_sources_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.en-de.tsv", "")
    with pytest.raises(CorpusError, match="corpus .*: nothing in fr, zh"):
        find_sources(tmp_path, ["zh", "de", "en", "fr"])
    with pytest.raises(CorpusError, match="nowhere: no such folder"):
        find_sources(tmp_path / "nowhere", ["en"])


def test_further_folders_join_a_corpus(tmp_path: Path) -> None:
    write(tmp_path / "one/a.en-de.tsv", "")
    write(tmp_path / "two/mono/fr/a.txt", "")
    write(tmp_path / "two/a.en-to-de.tsv", "")
    adds = [tmp_path / "two"]
    keys = [s.key for s in find_sources(tmp_path / "one", ["en", "de", "fr"], "", adds)]
    assert keys == ["a.en-de", "a.en-to-de", "mono/a.fr"]
    write(tmp_path / "two/b/a.en-de.tsv", "")
    with pytest.raises(CorpusError, match="one/a.en-de.tsv and .*two/b/a.en-de.tsv: two sources"):
        find_sources(tmp_path / "one", ["en", "de", "fr"], "", adds)
    with pytest.raises(CorpusError, match="nowhere: no such folder"):
        find_sources(tmp_path / "one", ["en", "de"], "", [tmp_path / "nowhere"])


@pytest.mark.parametrize(
    "names", [("a/w.en-de.tsv", "b/w.en-de.tsv"), ("w.en-de.tsv", "w.en-de.tsv.gz"),
              ("mono/en/x.txt", "mono/en/x.txt.gz")],
)  # fmt: skip
def test_two_sources_of_one_name_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write(tmp_path / name, "")
    write(tmp_path / "other.en-de.tsv", "")
    with pytest.raises(CorpusError, match="two sources of the name") as caught:
        find_sources(tmp_path, ["en", "de"])
    assert all(name in str(caught.value) for name in names)


def test_the_first_glob_that_matches_counts() -> None:
    web, text = Source("web_old", ("en", "zh"), ()), Source("mono/book", ("en",), ())
    weights = {"web_*.en-zh": 2.0, "web_*": 0.5, "mono/*": 0.25}
    assert weight_of(web, weights) == 2.0
    assert weight_of(Source("web_old", ("en", "de"), ()), weights) == 0.5
    assert weight_of(text, weights) == 0.25
    assert weight_of(Source("other", ("en", "de"), ()), weights) == 0.0
    assert first_match(web, {"*": "CC0"}, "") == "CC0" and first_match(web, {}, "none") == "none"


# -- reading


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    text = "one\r\ntwo\x0bstill\u2028two\x85\n\nlast\rone"
    expected = ["one", "two\x0bstill\u2028two\x85", "", "last\rone"]
    assert list(read_lines(write(tmp_path / "a", text))) == expected
    assert list(read_lines(write(tmp_path / "a.gz", text))) == expected


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    for name in ("a.txt", "a.txt.gz"):
        path = write(tmp_path / name, "eins\nzwei\nd\xfcrr\n".encode("latin-1"))
        with pytest.raises(CorpusError, match=f"{name}, line 3: .*utf-8"):
            list(read_lines(path))


def test_broken_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f"line {i * 7919}\n" for i in range(5000)).encode())
    flipped = bytearray(whole)
    flipped[len(whole) // 2 : len(whole) // 2 + 40] = b"\xff" * 40
    for name, data in (("cut", whole[:-100]), ("flipped", bytes(flipped)), ("plain", b"words\n")):
        (tmp_path / f"{name}.gz").write_bytes(data)
        with pytest.raises(CorpusError, match=f"{name}.gz"):
            list(read_lines(tmp_path / f"{name}.gz"))
    with pytest.raises(CorpusError, match=r"absent.gz: .*No such file"):
        list(read_lines(tmp_path / "absent.gz"))


def test_columns_beyond_the_second_are_ignored(tmp_path: Path) -> None:
    assert list(read_pairs(tsv(tmp_path, "a\tb\textra\nc\td\n"))) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("name", ["web.en-de.tsv", "web.en-de.tsv.gz"])
def test_a_line_without_a_tab_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorpusError, match=f"{name}, line 2: no tab"):
        list(read_pairs(tsv(tmp_path, "a\tb\nno tab here\nc\td\n", name)))


def test_aligned_files_of_unlike_length_are_named(tmp_path: Path) -> None:
    paths = (write(tmp_path / "train.de", "a\nb\n"), write(tmp_path / "train.en.gz", "a\nb\nc\n"))
    with pytest.raises(
        CorpusError, match=r"train.de and train.en.gz: different numbers .* after line 2"
    ):
        list(read_pairs(Source("x", ("de", "en"), paths)))


def test_an_empty_file_beside_a_full_one_is_named(tmp_path: Path) -> None:
    paths = (write(tmp_path / "train.de", ""), write(tmp_path / "train.en", "a\nb\n"))
    with pytest.raises(CorpusError, match=r"train.de and train.en: .* after line 0"):
        list(read_pairs(Source("x", ("de", "en"), paths)))
    assert list(read_pairs(Source("x", ("de", "en"), (paths[0], paths[0])))) == []


@pytest.mark.parametrize(("score", "named"), [("good", "'good'"), ("nan", "'nan'"), ("", "''")])
def test_a_score_that_is_no_number_is_named(tmp_path: Path, score: str, named: str) -> None:
    path = write(tmp_path / "t.en-to-de.tsv", f"a\tb\nc\td\t-0.5\ne\tf\t{score}\n")
    source = Source("t", ("en", "de"), (path,), one_way=True)
    with pytest.raises(CorpusError, match=f"t.en-to-de.tsv, line 3: score {named} is not a number"):
        list(read_scored(source))
    pairs = Source("t", ("en", "de"), (path,))  # a third column of pairs is none of our business
    assert list(read_scored(pairs))[2] == ("e", "f", 0.0)


# -- cleaning


def test_skeleton_keeps_letters_and_digits() -> None:
    assert skeleton("Don't  STOP, 2½ Straße!") == skeleton("dont stop 21⁄2 strasse")
    assert skeleton("。，！") == ""


def test_duplicates_are_dropped_over_all_sources_of_a_run(tmp_path: Path) -> None:
    cleaner = Cleaner()
    one = tsv(tmp_path, "a cat\teine Katze\na  cat\teine Katze\nA cat\teine Katze\n")
    two = tsv(tmp_path, "eine Katze\ta cat\nein Hund\ta dog\n", "other.de-en.tsv")
    assert list(cleaner.pairs(one)) == [("a cat", "eine Katze"), ("A cat", "eine Katze")]
    assert list(cleaner.pairs(two)) == [("ein Hund", "a dog")]  # the other order is no other pair
    assert cleaner.report.counts["web.en-de"] == {"kept": 2, "duplicate": 1}
    assert cleaner.report.counts["other.de-en"] == {"kept": 1, "duplicate": 1}


ONE_WAY = "a cat on the mat\teine Katze auf der Matte\n"


def one_way(folder: Path, text: str, name: str = "forward.en-to-de.tsv") -> Source:
    found = find_sources(write(folder / name.split(".")[0] / name, text).parent, ["en", "de"])
    return found[0]


def test_machine_translations_repeat_each_other_and_people_but_not_the_reverse(
    tmp_path: Path,
) -> None:
    cleaner, back = Cleaner(), "eine Katze auf der Matte\ta cat on the mat\n"
    human = tsv(tmp_path, "the dog barks\tder Hund bellt\n")
    assert len(list(cleaner.pairs(human))) == 1
    forward = one_way(tmp_path, ONE_WAY + ONE_WAY + "the dog barks\tder Hund bellt\n")
    assert [list(cleaner.pairs(forward))] == [[("a cat on the mat", "eine Katze auf der Matte")]]
    backward = one_way(tmp_path, back, "backward.de-to-en.tsv")
    assert len(list(cleaner.pairs(backward))) == 1
    again = tsv(tmp_path, ONE_WAY, "later.en-de.tsv")
    assert len(list(cleaner.pairs(again))) == 1  # a person's pair is learnt in both directions
    assert cleaner.report.counts["forward.en-to-de"] == {"kept": 1, "duplicate": 2}


def test_machine_translations_are_judged_by_language_and_score(tmp_path: Path) -> None:
    lines = [
        ("I am reading a good book this evening.", "Ich lese heute Abend ein gutes Buch.", "-0.3"),
        ("We went to the market yesterday.", "We walked to the market on Tuesday.", "-0.1"),
        ("The weather is very beautiful.", "Das Wetter ist wirklich sehr schön.", "-2.5"),
        ("He sees the house near the river.", "Er sieht das Haus in der Nähe des Flusses.", ""),
        ("Good night to all!", "Bonne nuit à tous", "-0.2"),  # too short to be judged
        ("a " * 50, "b", "-0.2"),
    ]
    text = "".join("\t".join(line).rstrip("\t") + "\n" for line in lines)
    cleaner = Cleaner(None, ["en", "de", "fr"], min_score=-1.0)
    kept = [pair[1] for pair in cleaner.pairs(one_way(tmp_path, text))]
    assert kept == [lines[0][1], lines[3][1], lines[4][1]]
    assert cleaner.report.counts["forward.en-to-de"] == {
        "kept": 3, "wrong language": 1, "low score": 1, "length ratio": 1,
    }  # fmt: skip
    human = tsv(tmp_path, f"{lines[1][0]}\t{lines[1][1]}\n")
    assert len(list(cleaner.pairs(human))) == 1  # people may quote English


def test_examples_of_a_task_need_no_language(tmp_path: Path) -> None:
    write(tmp_path / "toy.task-case.tsv", "same\tsame\nx y\tX y.\n\tempty\nx y\tX y.\nx y\tX?\n")
    write(tmp_path / "mono/en/a.txt", "text\n")
    keys = [s.key for s in find_sources(tmp_path, ["en"], tasks=["case"])]
    assert keys == ["mono/a.en", "toy.task-case"]
    assert [s.key for s in find_sources(tmp_path, ["en"])] == ["mono/a.en"]
    cleaner = Cleaner()
    source = find_sources(tmp_path, ["en"], tasks=["case"])[1]
    assert list(cleaner.pairs(source)) == [("same", "same"), ("x y", "X y."), ("x y", "X?")]
    assert cleaner.report.counts["toy.task-case"] == {"kept": 3, "empty": 1, "duplicate": 1}
    with pytest.raises(CorpusError, match=r"no file \*.task-sum.tsv"):
        find_sources(tmp_path, ["en"], tasks=["case", "sum"])


def test_the_same_text_in_another_language_pair_is_no_duplicate(tmp_path: Path) -> None:
    cleaner = Cleaner()
    list(cleaner.pairs(tsv(tmp_path, "no one\tpersonne\n", "a.en-fr.tsv")))
    assert list(cleaner.pairs(tsv(tmp_path, "no one\tpersonne\n", "b.en-es.tsv")))


# -- leaks


@pytest.mark.parametrize(
    ("first", "second", "fault"),
    [
        ("The OLD bridge, again!", "etwas anderes", "leak: sentence"),
        ("something else", "die alte Brücke – wieder", "leak: sentence"),
        ("yes", "ja", None),  # too short to say anything
        (f"He said that {LONG_EN} .", "etwas anderes", "leak: n-gram"),
        ("something else", f"Er sagte: {LONG_EN}", "leak: n-gram"),
        (" ".join(LONG_EN.split()[:12]), "etwas anderes", None),
        (" ".join(LONG_EN.split()[2:15]), "etwas anderes", "leak: n-gram"),
        ("something else", f"他说，{LONG_ZH}！", "leak: n-gram"),
        (f"听说{LONG_ZH[3:31]}吗", "etwas anderes", "leak: n-gram"),
        (f"听说{LONG_ZH[3:28]}吗", "etwas anderes", None),
    ],
)
def test_leaks_are_found_on_either_side(first: str, second: str, fault: str | None) -> None:
    tests = ["The old bridge again.", "Die alte Brücke wieder", "Yes!", LONG_EN, LONG_ZH]
    assert LeakCheck(tests).fault_of(first, second) == fault


def test_no_test_sets_no_leaks() -> None:
    assert LeakCheck().fault_of("", "anything") is None


def test_leaks_are_checked_against_all_files_of_the_test_folders(tmp_path: Path) -> None:
    write(tmp_path / "a" / "set.en", "The first test sentence.\n")
    write(tmp_path / "b" / "deep" / "set.de.gz", "Der zweite Testsatz.\n")
    leaks = LeakCheck.of_folders([tmp_path / "a", tmp_path / "b"])
    cleaner = Cleaner(leaks)
    source = tsv(
        tmp_path,
        "the first test sentence\tein Satz\none more sentence\tnoch ein Satz\n"
        "the second one\tDer zweite Testsatz!\n",
    )
    assert list(cleaner.pairs(source)) == [("one more sentence", "noch ein Satz")]
    assert cleaner.report.counts["web.en-de"] == {"kept": 1, "leak: sentence": 2}
    path = write(tmp_path / "x.txt", "First.\nTHE first test sentence\n")
    assert list(cleaner.documents(Source("mono/x", ("en",), (path,)))) == ["First."]
    with pytest.raises(CorpusError, match="nowhere: no such folder"):
        LeakCheck.of_folders([tmp_path / "nowhere"])


# -- running text


def test_documents_are_blocks_between_blank_lines(tmp_path: Path) -> None:
    text = "\n\none\ntwo\n  \nthree\n\none\nfour\n\nthree\n" + "\n".join(f"p{i}" for i in range(5))
    cleaner = Cleaner()
    source = Source("mono/x", ("en",), (write(tmp_path / "x.txt", text),))
    assert list(cleaner.documents(source, paragraphs=3)) == [
        "one\ntwo", "three", "four", "p0\np1\np2", "p3\np4",
    ]  # fmt: skip
    assert cleaner.report.counts["mono/x.en"] == {"kept": 9, "duplicate": 2}


def test_the_report_adds_up() -> None:
    report = Report()
    for source, reason, count in (("b", "kept", 3), ("a", "kept", 10), ("a", "leak: n-gram", 2),
                                  ("a", "empty", 1)):  # fmt: skip
        for _ in range(count):
            report.add(source, reason)
    rows = [line.split("  ") for line in report.table().splitlines()]
    cells = [[c.strip() for c in row if c.strip()] for row in rows]
    assert cells == [
        ["source", "read", "kept", "empty", "leak: n-gram"],
        ["a", "13", "10", "1", "2"],
        ["b", "3", "3", "0", "0"],
    ]
    assert len({len(line) for line in report.table().splitlines()}) == 1
