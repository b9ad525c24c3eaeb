"""Language codes as people write them, brought to the ones that a bundle serves."""

from __future__ import annotations

from collections.abc import Iterable

_REGIONS = {"zh-hant-tw": "zh-tw", "zh-hant-hk": "zh-hk", "zh-hant-mo": "zh-hk", "zh-mo": "zh-hk"}


def served(code: str, codes: Iterable[str]) -> str | None:
    """The one of `codes` that `code` means: in any case, subtags left out from the right.

    "EN" and "en-US" mean "en" where that is served, "de_DE" means "de", "zh-Hans" means "zh"; but
    "zh-Hant" does not, which is written otherwise.
    """
    known = {one.casefold(): one for one in codes}
    tag = code.casefold().replace("_", "-")
    if _REGIONS.get(tag) in known:
        tag = _REGIONS[tag]
    while tag and tag not in known:
        if tag.endswith("-hant"):
            return None
        tag = tag.rpartition("-")[0]
    return known.get(tag)
