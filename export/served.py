"""Texts translated as the server does: in sentences, by the bundle's routes, doubtful ones again.

Texts flow in, each a request of its own to the translator behind `POST /v1/translate`, without
HTTP; texts with their finish reasons come out, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.tasks.job import Deadline
from app.tasks.translate import TranslateOptions
from export.translator import Result

_ANY = 10**9


class ServedTranslator:
    """Greedy or by beam; a context manager, whose engines run inside it.

    Raises InvalidField of the first text that cannot be translated, such as one that is too long.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        beam: int = 1,
        length_penalty: float = 1.0,
        shortlist: bool = False,
    ) -> None:
        self._options = TranslateOptions(beam, length_penalty)
        options = ServiceOptions(shortlist=shortlist, max_queue=_ANY, max_characters=_ANY)
        self._service = Service.open(bundle, options, Metrics())

    def __enter__(self) -> ServedTranslator:
        self._service.engine.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._service.engine.stop(drain=False)

    def __call__(self, texts: Sequence[str], source: str, target: str) -> list[Result]:
        async def one(text: str) -> Result:
            result = await self._service.translator.run(
                text, source, target, Deadline.after(_ANY), options=self._options, unchanged=True
            )
            (found,) = result.translations
            return Result(found.text, "length" if found.truncated else found.finish_reason)

        async def every() -> list[Result]:
            return await asyncio.gather(*map(one, texts))

        return asyncio.run(every())
