"""`gpt2-mt keys`: the file of a server's API keys. A new key goes to stdout, once."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path

from app.access import Key, checked, digest_of, read_keys
from app.errors import KeysError

_HEAD = "# NAME SHA256 REQUESTS_A_MINUTE CHARACTERS_A_DAY\n"


def run(args: argparse.Namespace) -> int:
    path = Path(args.file)
    keys = read_keys(path) if path.exists() or args.action != "add" else []
    if args.action == "list":
        for key in keys:
            rate, quota = key.requests_per_minute, key.characters_per_day
            limits = f"{_told(rate)} requests a minute\t{_told(quota)} characters a day"
            sys.stdout.write(f"{key.name}\t{limits}\n")
        return 0
    others = [key for key in keys if key.name != args.name]
    if args.action == "remove":
        if len(others) == len(keys):
            raise KeysError(f"{path} has no key of {args.name!r}", param="name")
        _write(path, others)
        return 0
    if len(others) < len(keys):
        raise KeysError(f"{path} has a key of {args.name!r} already", param="name")
    secret = "gmt_" + secrets.token_urlsafe(32)
    key = Key(args.name, digest_of(secret), args.requests_per_minute, args.characters_per_day)
    _write(path, [*others, checked(key)])
    sys.stdout.write(f"{secret}\n")
    return 0


def _told(limit: int | None) -> str:
    return "any" if limit is None else str(limit)


def _write(path: Path, keys: Iterable[Key]) -> None:
    """All or nothing, for the owner's eyes only."""
    new = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(_HEAD + "".join(f"{key}\n" for key in keys))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        raise KeysError(f"{path} cannot be written: {error.strerror}", param="file") from None
