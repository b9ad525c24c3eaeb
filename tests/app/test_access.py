"""Keys in a file, what each may spend, and the command that writes them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from app.access import Access, Caller, Key, digest_of, read_keys
from app.errors import KeyMissing, KeysError, KeyWrong, QuotaExceeded, RateLimited
from gpt2_mt.cli import main

DIGEST = digest_of("secret")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    keys = [Key("alice", DIGEST, 60, None), Key("bob@x", digest_of("b"), None, 1000)]
    path = tmp_path / "keys.txt"
    path.write_text("# a comment\n\n" + "".join(f"{key}  # who\n" for key in keys))
    assert read_keys(path) == keys


@pytest.mark.parametrize(
    "line",
    [
        "alice",
        f"alice {DIGEST}",
        f"alice {DIGEST[:-1]} - -",
        f"alice {DIGEST.upper()} - -",
        f"alice {DIGEST} 0 -",
        f"alice {DIGEST} - -5",
        f"a/b {DIGEST} - -",
        f"alice {DIGEST} - - -",
        f"first {DIGEST} - -",
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(f"first {DIGEST} - -\n{line}\n")
    with pytest.raises(KeysError, match="line 2"):
        read_keys(path)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="cannot be read"):
        Access(tmp_path / "none")
    path = tmp_path / "keys.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(KeysError, match="cannot be read"):
        read_keys(path)


def test_whose_key_it_is(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("".join(f"{Key(n, digest_of('key of ' + n))}\n" for n in ("alice", "bob")))
    access = Access(path)
    assert access.closed
    assert access.caller("key of bob").key.name == "bob"
    for missing in (None, ""):
        with pytest.raises(KeyMissing):
            access.caller(missing)
    for wrong in ("key of", "key of bob ", DIGEST, "\ud800"):
        with pytest.raises(KeyWrong) as told:
            access.caller(wrong)
        assert wrong not in told.value.detail


def test_without_a_file_nobody_needs_a_key() -> None:
    access = Access(None)
    assert not access.closed
    caller = access.caller("anything")
    assert caller is access.caller(None)
    for _ in range(1000):
        caller.admit()
    caller.charge(10**9)
    assert (caller.requests, caller.characters) == (1000, 10**9)


def test_a_rate_lets_a_minutes_worth_through_and_then_one_by_one() -> None:
    clock = Clock()
    caller = Caller(Key("alice", DIGEST, 30), clock, clock)
    for _ in range(30):
        caller.admit()
    with pytest.raises(RateLimited) as told:
        caller.admit()
    assert told.value.retry_after_s == pytest.approx(2)
    clock.now += 2
    caller.admit()
    with pytest.raises(RateLimited):
        caller.admit()
    clock.now += 10**6
    for _ in range(30):
        caller.admit()
    assert caller.requests == 61


def test_a_clock_that_is_set_grants_nothing_and_blocks_nothing() -> None:
    clock, steady = Clock(), Clock()
    caller = Caller(Key("alice", DIGEST, 2, 100), clock, steady)
    caller.admit()
    caller.admit()
    caller.charge(60)
    for hours in (5, -9, 4):
        clock.now += hours * 3600
        with pytest.raises(RateLimited) as told:
            caller.admit()
        assert told.value.retry_after_s == pytest.approx(30)
    assert caller.today == 60
    steady.now += 30
    caller.admit()


def test_a_quota_is_of_a_day_and_refuses_whole_requests() -> None:
    clock = Clock()
    caller = Caller(Key("alice", DIGEST, None, 100), clock)
    caller.charge(60)
    with pytest.raises(QuotaExceeded) as told:
        caller.charge(41)
    assert told.value.retry_after_s == pytest.approx(86_400 - 1_000_000_000 % 86_400)
    caller.charge(40)
    assert (caller.today, caller.characters) == (100, 100)
    clock.now += told.value.retry_after_s or 0
    assert caller.today == 0
    caller.charge(100)
    assert (caller.today, caller.characters) == (100, 200)


def test_a_file_that_changes_is_read_again_and_a_broken_one_is_not_taken(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "keys.txt"
    path.write_text(f"alice {DIGEST} 5 -\n")
    access = Access(path, clock, clock)
    access.caller("secret").charge(7)

    def rewrite(text: str) -> None:
        path.write_text(text)
        os.utime(path, ns=(int(clock.now), int(clock.now)))
        clock.now += 2

    rewrite(f"alice {DIGEST} 5 -\nbob {digest_of('b')} - -\n")
    assert access.caller("b").key.name == "bob"
    assert access.caller("secret").characters == 7  # what was spent stays spent
    rewrite("nonsense\n")
    assert access.caller("b").key.name == "bob"
    rewrite(f"bob {digest_of('b')} - -\n")
    with pytest.raises(KeyWrong):
        access.caller("secret")
    path.unlink()
    clock.now += 2
    assert access.caller("b").key.name == "bob"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.txt"
    file = ["--file", str(path)]
    assert main(["keys", "add", "alice", *file, "--requests-per-minute", "60"]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("gmt_") and secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert main(["keys", "add", "bob", *file, "--characters-per-day", "1000"]) == 0
    capsys.readouterr()
    assert Access(path).caller(secret).key.requests_per_minute == 60
    assert main(["keys", "list", *file]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "alice\t60 requests a minute\tany characters a day",
        "bob\tany requests a minute\t1000 characters a day",
    ]
    assert main(["keys", "remove", "alice", *file]) == 0
    assert [key.name for key in read_keys(path)] == ["bob"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "bob"], "a key of 'bob' already"),
        (["remove", "carol"], "no key of 'carol'"),
        (["add", "a b"], "cannot be kept"),
        (["add"], "cannot be kept"),
        (["add", "x", "--requests-per-minute", "0"], "cannot be kept"),
    ],
)
def test_errors_of_the_command_leave_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(before := f"bob {DIGEST} - -\n")
    assert main(["keys", *arguments, "--file", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert path.read_text() == before
    assert main(["keys", "list", "--file", str(tmp_path / "none")]) == 2
