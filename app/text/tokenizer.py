"""Text to token ids and back, by the bundle's own tokenizer and prompt templates.

User text goes in as plain text: the names of special tokens in it are spelt out, never obeyed.
`Detokenizer` gives text back token by token and holds back the bytes of an unfinished character,
so that its pieces put together equal the decoding of all ids at once.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from app.bundle import Bundle, Manifest
from app.errors import InvalidField, NotFound


class TextTokenizer:
    """Encodes user text, builds prompts and decodes what the model generated."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True  # as text, see the module's docstring
        self._templates = manifest.templates
        self.end_ids = frozenset({manifest.tokens.end})
        self._bytes = _token_bytes(self._tokenizer)

    @classmethod
    def of(cls, bundle: Bundle) -> TextTokenizer:
        return cls(bundle.tokenizer_path, bundle.manifest)

    def encode(self, text: str, *, param: str) -> list[int]:
        """Ids of plain text; `param` is the request's field that it came from."""
        check_text(text, param=param)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def spans(self, text: str, *, param: str) -> list[tuple[int, int, int]]:
        """Of each token its id and which characters it is of: from, to. Some share a character."""
        check_text(text, param=param)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [(i, *span) for i, span in zip(encoding.ids, encoding.offsets, strict=True)]

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids; special tokens have none."""
        detokenizer = self.detokenizer()
        return "".join(detokenizer.push(token) for token in ids) + detokenizer.finish()

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self._bytes)

    def has_task(self, task: str) -> bool:
        return task in self._templates

    def translation_prompt(self, source: str, target: str, text: Sequence[int]) -> tuple[int, ...]:
        return self._prompt("translate", {"{source}": source, "{target}": target}, text)

    def generation_prompt(self, text: Sequence[int], task: str = "") -> tuple[int, ...]:
        """To continue a text or, with one of `tasks()`, to answer it."""
        return self._prompt(f"task:{task}" if task else "generate", {}, text)

    def tasks(self) -> list[str]:
        """The text-to-text tasks that the bundle learnt besides translation."""
        return sorted(n.removeprefix("task:") for n in self._templates if n.startswith("task:"))

    def overhead(self, task: str) -> int:
        """Tokens that a task's template adds to the text."""
        return sum(piece != "{text}" for piece in self._pieces(task))

    def _pieces(self, task: str) -> tuple[str, ...]:
        for name, pieces in self._templates.items():
            if name == task:
                return pieces
        raise NotFound(f"this bundle has no prompt template for {task!r}")

    def _prompt(self, task: str, values: dict[str, str], text: Sequence[int]) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in self._pieces(task):
            if piece == "{text}":
                ids.extend(text)
                continue
            for name, value in values.items():
                piece = piece.replace(name, value)
            ids.append(self._tokenizer.token_to_id(piece))  # opening the bundle checked them
        return tuple(ids)


class Detokenizer:
    """Text of one sequence, token by token."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._bytes[token])

    def finish(self) -> str:
        """What is left of a character that never came to its end: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)


def check_text(text: str, *, param: str) -> None:
    """Refuse what is not Unicode text: lone surrogates, as JSON's "\\ud800" makes them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = ord(text[error.start])
        raise InvalidField(
            f"{param}: lone surrogate U+{found:04X} at character {error.start} is not valid text",
            param=param,
        ) from None


def _token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Bytes of every id under byte-level BPE; none for special tokens."""
    table = {char: byte for byte, char in enumerate(_byte_characters())}
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    result = []
    for token in range(tokenizer.get_vocab_size(with_added_tokens=True)):
        name = tokenizer.id_to_token(token)
        if name is None or token in special:
            result.append(b"")
        elif all(char in table for char in name):
            result.append(bytes(table[char] for char in name))
        else:  # an added token that is plain text
            result.append(name.encode("utf-8"))
    return result


def _byte_characters() -> Iterable[str]:
    """GPT-2's printable stand-in for each of the 256 bytes, in order of the bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
