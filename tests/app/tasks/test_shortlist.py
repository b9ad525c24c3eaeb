"""The shortlist of a bundle: read and checked, and given to translations alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.bundle import Bundle
from app.engine.engine import Ticket
from app.engine.request import Candidates, Request
from app.errors import BundleError, SettingsError
from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.settings import Settings
from app.tasks.generate import GenerateOptions, Generator
from app.tasks.job import Deadline
from app.tasks.results import ResultCache
from app.tasks.shortlist import Shortlist
from app.tasks.translate import TranslateOptions, Translator
from app.text.tokenizer import TextTokenizer
from tests.app.engine.listeners import Listener, a_request, running
from tests.conftest import shortlist_arrays

Arrays = dict[str, NDArray[Any]]


def read(folder: Path, arrays: Arrays, bundle: Bundle) -> Shortlist:
    np.savez_compressed(folder / "s.npz", **arrays)
    return Shortlist.read(folder / "s.npz", bundle.manifest)


def test_candidates_are_common_likely_or_the_source_itself(
    tmp_path: Path, tiny_tokenizer: Path, int8_bundle: Bundle
) -> None:
    arrays = shortlist_arrays(tiny_tokenizer)
    shortlist = read(tmp_path, arrays, int8_bundle)
    source = [70, 99, 70, 300]
    found = shortlist.candidates("en", "de", source)
    assert found is not None and found.ids.dtype == np.int64
    offsets, ids = arrays["de.offsets"], arrays["de.ids"]
    likely = [ids[offsets[i] : offsets[i + 1]].tolist() for i in source]
    expected = {*arrays["de.common"].tolist(), *source, *sum(likely, [])}
    assert found.ids.tolist() == sorted(expected)
    assert shortlist.candidates("en", "zh", source) is None, "not learnt"
    assert shortlist.candidates("fr", "de", source) is None, "nor this, though German is"


def number(name: str, value: Any) -> Callable[[Arrays], object]:
    return lambda a: a.update({name: np.array(value)})


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (number("format", 2), "format"),
        (lambda a: a.pop("format"), "format"),
        (number("tokenizer_sha256", "0" * 64), "tokenizer_sha256"),
        (number("vocabulary", 16384), "vocabulary"),
        (lambda a: a.pop("pairs"), "pairs"),
        (number("pairs", [1, 2]), "pairs"),
        (number("pairs", ["en-de", "en-zh"]), "zh.common"),
        (number("pairs", ["ende"]), ".common"),
        (lambda a: a.pop("de.ids"), "de.ids"),
        (number("de.ids", [1, 2]), "de.ids"),  # of int64
        (lambda a: a.update({"de.ids": a["de.ids"][:-1]}), "de.offsets"),
        (lambda a: a.update({"de.offsets": a["de.offsets"][1:]}), "de.offsets"),
        (lambda a: a["de.offsets"].__setitem__(5, 9999), "de.offsets"),
        (lambda a: a["de.ids"].__setitem__(5, 9999), "de.ids"),
        (lambda a: a["fr.common"].__setitem__(-1, 9999), "fr.common"),
        (lambda a: a.update({"fr.common": a["fr.common"][1:]}), "fr.common"),  # no end
    ],
)
def test_what_is_wrong_in_the_file_is_named(
    tmp_path: Path, tiny_tokenizer: Path, int8_bundle: Bundle,
    change: Callable[[Arrays], object], param: str,
) -> None:  # fmt: skip
    arrays = shortlist_arrays(tiny_tokenizer)
    change(arrays)
    with pytest.raises(BundleError) as caught:
        read(tmp_path, arrays, int8_bundle)
    assert caught.value.param == param and "s.npz" in str(caught.value)


def test_a_file_that_is_no_shortlist(
    tmp_path: Path, shortlist_file: Path, int8_bundle: Bundle
) -> None:
    data = shortlist_file.read_bytes()
    for content in (b"", b"junk", data[: len(data) // 2], data[:-100]):
        (tmp_path / "s.npz").write_bytes(content)
        with pytest.raises(BundleError, match="cannot be read"):
            Shortlist.read(tmp_path / "s.npz", int8_bundle.manifest)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(BundleError, match="not an .npz"):
        Shortlist.read(tmp_path / "one.npy", int8_bundle.manifest)
    np.savez(tmp_path / "pickled.npz", format=np.array([{}], dtype=object))
    with pytest.raises(BundleError, match="pickle"):
        Shortlist.read(tmp_path / "pickled.npz", int8_bundle.manifest)


def test_a_bundle_without_one_is_refused_by_the_setting(int8_bundle: Bundle) -> None:
    with pytest.raises(SettingsError, match="--shortlist") as caught:
        Service.open(int8_bundle.path, ServiceOptions(shortlist=True, threads=1), Metrics())
    assert caught.value.param == "shortlist"
    with pytest.raises(BundleError, match="shortlist"):
        Shortlist.of(int8_bundle)
    assert Settings.load({}, {}).shortlist is False


@pytest.fixture(scope="module")
def service(listed_bundle: Bundle) -> Iterator[Service]:
    options = ServiceOptions(slots=8, threads=1, shortlist=True)
    opened = Service.open(listed_bundle.path, options, Metrics())
    opened.engine.start()
    yield opened
    opened.engine.stop(drain=False)


def test_translations_keep_to_their_candidates_and_generations_are_free(service: Service) -> None:
    seen: list[Request] = []

    class Recorder:
        def submit(self, requests: Sequence[Request], begun: bool = False) -> list[Ticket]:
            seen.extend(requests)
            return service.engine.submit(requests, begun)

    bundle, limits = service.bundle, service.limits
    tokenizer, shortlist = TextTokenizer.of(bundle), Shortlist.of(bundle)
    rest = (tokenizer, service.detector, bundle.manifest, limits, Metrics(), False, shortlist)
    translator, generator = Translator(Recorder(), *rest), Generator(Recorder(), tokenizer, limits)
    text, other = "The weather is beautiful today.", "Where is the nearest train station?"

    async def work() -> None:
        for target in ("de", "zh"):
            await translator.run([text, other], "en", target, Deadline.after(60))
        await generator.start(text, GenerateOptions(max_tokens=3), Deadline.after(60))

    asyncio.run(work())
    given = [one.candidates for one in seen]
    sources = [tokenizer.encode(one, param="text") for one in (text, other)]
    expected = [shortlist.candidates("en", "de", source) for source in sources]
    assert [one and one.ids.tolist() for one in given] == [
        *(one.ids.tolist() for one in expected if one), None, None, None
    ]  # fmt: skip


def test_the_same_translation_in_any_company(service: Service) -> None:
    texts = ["The weather is beautiful today.", "Where is the station?", "Two tickets, please."]

    def translate(given: list[str], target: str, **options: Any) -> list[Any]:
        run = service.translator.run(
            given, "en", target, Deadline.after(60), options=TranslateOptions(**options)
        )
        return asyncio.run(run).translations

    for options in ({}, {"beam": 3, "alternatives": 3}):
        together = translate(texts, "de", **options)
        assert together == [translate([text], "de", **options)[0] for text in texts]
    assert translate(texts, "de") != translate(texts, "zh")


def test_an_answer_is_kept_for_the_same_candidates_only() -> None:
    def only(*ids: int) -> Candidates:
        return Candidates(np.array(ids), 96)

    def ask(cache: ResultCache, candidates: Candidates | None) -> list[int]:
        one = replace(a_request(Listener()), candidates=candidates)
        cache.submit([one])
        return [token.id for token in one.listener.answer[0]]  # type: ignore[attr-defined]

    metrics = Metrics()
    with running() as engine:
        cache = ResultCache(engine, "", 9, 10**6, metrics)
        asked = [None, only(0, 5, 6), only(0, 7, 8), only(0, 5, 6)]
        found = [ask(cache, candidates) for candidates in asked]
    assert found[1] == found[3] and len({tuple(ids) for ids in found}) == 3
    hits = metrics.registry.get_sample_value(
        "gpt2mt_cache_lookups_total", {"cache": "translation", "result": "hit"}
    )
    assert hits == 1
