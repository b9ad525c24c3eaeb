"""Where a bundle runs: the device that was asked for, or the one that can be had.

A bundle and `auto`, `cpu` or `cuda` flow in, a decoder flows out. What was asked for by name and
cannot be had is an error; `auto` falls back to the CPU with one line in the log that says why.
"""

from __future__ import annotations

import logging
from typing import Any, Final, Literal

import onnxruntime as ort

from app.bundle import Bundle
from app.engine.device import DeviceDecoder, needs
from app.engine.runtime import PROVIDERS, available_threads
from app.engine.session import GraphDecoder, OnnxDecoder
from app.errors import AppError, InvalidField

log = logging.getLogger("app.engine")

Choice = Literal["auto", "cpu", "cuda"]
CHOICES: Final = ("auto", *PROVIDERS)
_ON_CPU: Final = "device auto: running on the CPU, because %s"
# Parameters up to which two engines of half the cores do more than one of all. On two cores the
# bundled model's 9 million gained 1.3 (requests over HTTP) to 1.6 times, 23 million nothing.
SMALL: Final = 16_000_000


def suited_engines(bundle: Bundle, choice: Choice, threads: int | None, spare: int) -> int:
    """How many engines where nobody says: 2 or 1. One where it is said how many threads it has, and
    where there are `spare` slots for beginnings of prompts: each engine would keep its own."""
    on_gpu = choice == "cuda" or (choice == "auto" and _why_not(bundle) is None)
    small = bundle.manifest.model.parameters <= SMALL and available_threads() % 2 == 0
    return 2 if small and threads is None and not spare and not on_gpu else 1


def open_decoder(
    bundle: Bundle,
    choice: Choice = "auto",
    *,
    slots: int,
    spare: int = 0,
    threads: int | None = None,
    lists: bool = False,
) -> GraphDecoder[Any]:
    """`lists`: requests may have candidates, for which it must be a CPU."""
    if choice not in CHOICES:
        raise InvalidField(f"device {choice!r} is not one of {list(CHOICES)}", param="device")
    options: dict[str, Any] = {"slots": slots, "spare": spare, "threads": threads, "lists": lists}
    if choice == "cuda":
        return _on_cuda(bundle, options)
    if choice == "auto":
        if (reason := _why_not(bundle)) is None:
            try:
                return _on_cuda(bundle, options)
            except AppError as error:
                reason = error.detail
        log.info(_ON_CPU, reason)
    return OnnxDecoder(bundle, **options)


def log_cpu(bundle: Bundle) -> None:
    """What `open_decoder` says, where engines side by side are opened on the CPU at once."""
    log.info(_ON_CPU, _why_not(bundle) or "several engines are for CPUs")


def _why_not(bundle: Bundle) -> str | None:
    """What rules a GPU out before anything is tried."""
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        return f"this onnxruntime has no {PROVIDERS['cuda']}"
    return needs(bundle)


def _on_cuda(bundle: Bundle, options: dict[str, Any]) -> DeviceDecoder:
    try:
        return DeviceDecoder(bundle, device="cuda", **options)
    except AppError:
        raise
    except Exception as error:  # the binding's exceptions share no base
        raise InvalidField(f"device 'cuda' cannot be used: {error}", param="device") from error


def same_answers(decoder: GraphDecoder[Any]) -> bool | None:
    """Whether the same request gets the bit-identical answer at any load; None: not checked."""
    if decoder.device != "cpu" or decoder.precision == "fp16":
        return False
    return decoder.alike


def describe(device: str, same: bool | None) -> str:
    """A device and what `same_answers` says, for people."""
    promise = {
        True: "bit-identical answers at any load",
        False: "answers may differ in their last bits, and so in words, with the load",
        None: "whether answers are bit-identical at any load was not checked",
    }
    return f"{device}; {promise[same]}"
