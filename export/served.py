"""Texts translated as the server does: in sentences, by the bundle's routes, doubtful ones again.

Texts flow in, each a request of its own to the translator behind `POST /v1/translate`, without
HTTP; texts with their finish reasons come out, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.tasks.job import Deadline
from app.tasks.translate import TranslateOptions
from export.translator import Result, Translate

_ANY = 10**9


@contextmanager
def served_translator(
    bundle: Path, *, beam: int = 1, length_penalty: float = 1.0, shortlist: bool = False
) -> Iterator[Translate]:
    """Greedy or by beam, while its engines run.

    It raises InvalidField of the first text that cannot be translated, such as a too long one.
    """
    search = TranslateOptions(beam, length_penalty)
    options = ServiceOptions(shortlist=shortlist, max_queue=_ANY, max_characters=_ANY)
    service = Service.open(bundle, options, Metrics())

    def translate(texts: Sequence[str], source: str, target: str) -> list[Result]:
        async def one(text: str) -> Result:
            result = await service.translator.run(
                text, source, target, Deadline.after(_ANY), options=search, unchanged=True
            )
            (found,) = result.translations
            return Result(found.text, "length" if found.truncated else found.finish_reason)

        async def every() -> list[Result]:
            return await asyncio.gather(*map(one, texts))

        return asyncio.run(every())

    service.engine.start()
    try:
        yield translate
    finally:
        service.engine.stop(drain=False)
