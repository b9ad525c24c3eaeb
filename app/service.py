"""One bundle ready to work: decoder, engine, tokenizer and tasks, put together from plain values.

The server and the commands that run in process both open one; `start` and `stop` are the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from app.bundle import Bundle
from app.engine.engine import Engine
from app.engine.group import EngineGroup
from app.engine.memory import CacheSize, fit_cache
from app.errors import BundleError, SettingsError
from app.metrics import Metrics
from app.tasks.generate import Generator
from app.tasks.inputs import TaskLimits
from app.tasks.job import EngineLike
from app.tasks.options import BOUNDS
from app.tasks.results import ResultCache
from app.tasks.shortlist import Shortlist
from app.tasks.translate import Translator
from app.text.detect import Detector
from app.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from app.engine.session import GraphDecoder


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What may be chosen for any bundle."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    engines: int | None = None
    slots: int | None = None
    cache_mb: int | None = None
    prefix_slots: int = 0
    translation_cache: int = 0
    translation_cache_mb: int = 16
    shortlist: bool = False
    retry: bool = True
    max_queue: int = 2048
    max_items: int = 1024
    max_characters: int = 100_000

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Those of the values that are options, such as all settings."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Service:
    """What the HTTP routes and the commands work with."""

    bundle: Bundle
    cache: CacheSize
    placement: str  # the device, and whether answers depend on the load
    engine: Engine | EngineGroup
    detector: Detector
    translator: Translator
    generator: Generator
    limits: TaskLimits

    def metered(self, charge: Callable[[int], None]) -> Service:
        """The same for one caller, whose characters are counted."""
        return replace(
            self,
            translator=self.translator.metered(charge),
            generator=self.generator.metered(charge),
        )

    @classmethod
    def open(cls, path: Path, options: ServiceOptions, metrics: Metrics) -> Service:
        """Check the bundle, load the model; the engine is not started yet."""
        from app.engine.placement import describe, same_answers  # onnxruntime: 0.2 s

        bundle = Bundle.open(path)
        manifest = bundle.manifest
        if options.shortlist and bundle.shortlist_path is None:
            raise SettingsError(
                f"shortlist is on, and the bundle {manifest.name!r} has none: export it with "
                "--shortlist FILE",
                param="shortlist",
            )
        shortlist = Shortlist.of(bundle) if options.shortlist else None
        decoders, cache = _open_decoders(bundle, path, options)
        decoder = decoders[0]
        queue = -(-options.max_queue // len(decoders))
        engines = [Engine(one, metrics, max_queue=queue) for one in decoders]
        engine = EngineGroup(engines, options.max_queue) if engines[1:] else engines[0]
        tokenizer = TextTokenizer.of(bundle)
        detector = Detector(list(manifest.languages))
        limits = TaskLimits(
            context=min(decoder.capacity, manifest.limits.context),
            max_prompt_tokens=manifest.limits.max_prompt_tokens,
            max_items=options.max_items,
            max_characters=options.max_characters,
            max_pieces=options.max_queue,  # more could never wait
            slots=cache.slots,
        )
        translating: EngineLike = engine
        if options.translation_cache:
            digest = "".join(entry.sha256 for entry in manifest.files.values())
            size = options.translation_cache_mb * 10**6
            translating = ResultCache(engine, digest, options.translation_cache, size, metrics)
        return cls(
            bundle,
            cache,
            describe(decoder.device, same_answers(decoder)),
            engine,
            detector,
            Translator(
                translating,
                tokenizer,
                detector,
                manifest,
                limits,
                metrics,
                options.retry,
                shortlist,
            ),
            Generator(engine, tokenizer, limits),
            limits,
        )


def planned_cache(bundle: Bundle, options: ServiceOptions) -> CacheSize:
    """Of all engines; how many these are is chosen here if it is left out."""
    limits = (bundle.manifest, options.slots, options.cache_mb, options.prefix_slots)
    cache = fit_cache(*limits, options.engines or 1)
    if options.engines:
        return cache
    try:
        from app.engine.placement import suited_engines
    except ImportError:  # without a runtime, which only `gpt2-mt info` can do
        return cache
    count = suited_engines(bundle, options.device, options.threads, options.prefix_slots)
    try:
        shared = fit_cache(*limits, count)
    except SettingsError:  # each has padding of its own, for which there is no room
        return cache
    return shared if shared.slots >= BOUNDS["beam"].high else cache


def _open_decoders(
    bundle: Bundle, path: Path, options: ServiceOptions
) -> tuple[list[GraphDecoder[Any]], CacheSize]:
    """One for each engine; more than one are for CPUs."""
    from app.engine.placement import log_cpu, open_decoder
    from app.engine.runtime import available_threads

    device, cache = options.device, planned_cache(bundle, options)
    count = cache.engines
    if count > 1 and device == "auto":
        device = "cpu"
        log_cpu(bundle)
    threads = options.threads
    if threads is None and count > 1:
        threads = max(1, available_threads() // count)
    try:
        return [
            open_decoder(
                bundle, device, slots=cache.slots, spare=cache.spare, threads=threads,
                lists=options.shortlist,
            )
            for _ in range(count)
        ], cache  # fmt: skip
    except BundleError as error:
        raise type(error)(f"{str(path)!r}: {error.detail}", param=error.param) from error
