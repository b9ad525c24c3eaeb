"""How much memory the KV cache takes, known before anything is allocated.

From a bundle's manifest, a number of slots and their capacity comes the size that the decoder
allocates; and from a limit in megabytes the number of slots that fit into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from app.bundle import Manifest
from app.errors import SettingsError
from app.graph import CacheType

DEFAULT_SLOTS: Final = 32
MAX_SLOTS: Final = 1024
# Columns of a prefill are padded to an even number. With one column the kernel would take a fresh
# prompt for a decode step; and it works in tiles of twice the head size, of which a last one that
# is one column wide is added up in another order: the same prompt would differ in the last bit.
COLUMNS: Final = 2
_MB: Final = 10**6
_BYTES: Final[dict[CacheType, int]] = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Keys and values of all slots; `tokens` is what one slot has room for."""

    slots: int
    tokens: int
    token_bytes: int
    spare: int = 0  # slots for beginnings of prompts
    padding: int = 0  # one, where runs are padded to an even number of rows
    engines: int = 1  # each with all of these

    @classmethod
    def of(
        cls, manifest: Manifest, slots: int, capacity: int | None = None, spare: int = 0,
        engines: int = 1,
    ) -> CacheSize:  # fmt: skip
        model, capacity = manifest.model, capacity or manifest.limits.context
        item = _BYTES[manifest.graph.cache_dtype]
        # a key and a value in each layer
        token_bytes = 2 * model.layers * model.heads * model.head_size * item
        padding = manifest.graph.row_multiple - 1
        return cls(slots, capacity + capacity % COLUMNS, token_bytes, spare, padding, engines)

    @property
    def bytes(self) -> int:
        rows = self.engines * (self.slots + self.spare + self.padding)
        return rows * self.tokens * self.token_bytes

    def __str__(self) -> str:
        more = self.spare + self.padding
        slots = f"{self.slots} + {more}" if more else f"{self.slots}"
        if self.engines > 1:
            slots = f"{self.engines} x ({slots})"
        return (
            f"{slots} slots x {self.tokens} tokens x {self.token_bytes:,} bytes = "
            f"{self.bytes / _MB:.1f} MB"
        )


def fit_cache(
    manifest: Manifest, slots: int | None, cache_mb: int | None, spare: int = 0, engines: int = 1
) -> CacheSize:
    """With the slots that are given, or as many as fit into `cache_mb`; an error if they do not.

    `slots` and `cache_mb` are shared by the engines, rounded up to whole slots of each; `spare`
    is each one's.
    """
    if cache_mb is None:
        each = -(-(slots or DEFAULT_SLOTS) // engines)
        return CacheSize.of(manifest, each, spare=spare, engines=engines)
    size = CacheSize.of(manifest, 1)
    one = size.tokens * size.token_bytes
    spare += size.padding
    most = min(cache_mb * _MB // one // engines - spare, MAX_SLOTS) * engines
    spare *= engines
    wanted = -(-slots // engines) * engines if slots else max(most, engines)
    if wanted > most:
        raise SettingsError(
            f"slots {wanted} and cache_mb {cache_mb} contradict: {wanted} slots take "
            f"{wanted * one / _MB:.1f} MB, {cache_mb} MB hold {max(most, 0)} (beside {spare} for "
            "prefixes and padding)",
            param="cache_mb",
        )
    each = spare // engines - size.padding
    return CacheSize.of(manifest, wanted // engines, spare=each, engines=engines)
