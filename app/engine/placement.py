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
from app.engine.runtime import PROVIDERS
from app.engine.session import GraphDecoder, OnnxDecoder
from app.errors import AppError, InvalidField

log = logging.getLogger("app.engine")

Choice = Literal["auto", "cpu", "cuda"]
CHOICES: Final = ("auto", *PROVIDERS)


def open_decoder(
    bundle: Bundle,
    choice: Choice = "auto",
    *,
    slots: int,
    spare: int = 0,
    threads: int | None = None,
) -> GraphDecoder[Any]:
    if choice not in CHOICES:
        raise InvalidField(f"device {choice!r} is not one of {list(CHOICES)}", param="device")
    options: dict[str, Any] = {"slots": slots, "spare": spare, "threads": threads}
    if choice == "cuda":
        return _on_cuda(bundle, options)
    if choice == "auto":
        if (reason := _why_not(bundle)) is None:
            try:
                return _on_cuda(bundle, options)
            except AppError as error:
                reason = error.detail
        log.info("device auto: running on the CPU, because %s", reason)
    return OnnxDecoder(bundle, **options)


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
