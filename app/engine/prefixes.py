"""Beginnings of long prompts, kept in spare slots for others that begin alike.

After a prompt has been read in chunks its whole chunks are copied into a spare slot; a later prompt
that begins with some of them starts from a copy and reads the rest. Only whole chunks are shared,
at the borders at which every prompt is read, so the bits are those it would have computed itself.
The slot that was not of use for longest is taken for the next prompt.
"""

from __future__ import annotations

from collections import OrderedDict

from app.engine.request import Decoder

Ids = tuple[int, ...]


class PrefixStore:
    def __init__(self, decoder: Decoder, chunk: int) -> None:
        self._decoder = decoder
        self._chunk = chunk
        self._free = list(range(decoder.slots, decoder.slots + decoder.spare))
        self._slots: OrderedDict[Ids, int] = OrderedDict()  # what each holds, by its age
        self._borders: dict[Ids, Ids] = {}  # a beginning of whole chunks, and who holds it

    def knows(self, prompt: Ids) -> bool:
        return self._longest(prompt) is not None

    def copy(self, prompt: Ids, row: int) -> int:
        """Bring the longest known beginning into a row; its length, 0 if none is known.

        One that cannot be copied is forgotten, and the decoder's error raised.
        """
        found = self._longest(prompt)
        if found is None:
            return 0
        holder = self._borders[found]
        try:
            self._decoder.move(self._slots[holder], row, len(found))
        except Exception:
            self._forget(holder)
            raise
        self._slots.move_to_end(holder)
        return len(found)

    def keep(self, prompt: Ids, row: int) -> int:
        """Copy a row's whole chunks, unless they are held already; how many tokens were kept."""
        ids = prompt[: len(prompt) // self._chunk * self._chunk]
        if ids in self._borders or not ids:
            return 0
        beginnings = self._beginnings(ids)
        for shorter in beginnings:
            if shorter in self._slots:  # of no more use
                self._forget(shorter)
        if not self._free:
            self._forget(next(iter(self._slots)))
        self._decoder.move(row, self._free[-1], len(ids))
        self._slots[ids] = self._free.pop()
        self._borders.update(dict.fromkeys(beginnings, ids))
        return len(ids)

    def _longest(self, prompt: Ids) -> Ids | None:
        """At least one token is left to be read: its logits are needed."""
        for end in range((len(prompt) - 1) // self._chunk * self._chunk, 0, -self._chunk):
            if prompt[:end] in self._borders:
                return prompt[:end]
        return None

    def _forget(self, holder: Ids) -> None:
        self._free.append(self._slots.pop(holder))
        for ids in self._beginnings(holder):
            if self._borders.get(ids) == holder:
                del self._borders[ids]

    def _beginnings(self, ids: Ids) -> list[Ids]:
        return [ids[:end] for end in range(self._chunk, len(ids) + 1, self._chunk)]

    def check(self, slots: int) -> None:
        """Raise AssertionError when slots are lost or beginnings point nowhere."""
        spare = range(slots, slots + self._decoder.spare)
        assert sorted([*self._free, *self._slots.values()]) == list(spare)
        assert set(self._borders.values()) <= set(self._slots)
        assert all(holder[: len(ids)] == ids for ids, holder in self._borders.items())
