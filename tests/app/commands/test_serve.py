"""`gpt2-mt serve` as a process of its own: what becomes of requests when it is told to stop."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import app
from app.bundle import Bundle
from gpt2_mt.cli import main

CODE = """\
import argparse; from app import cli
p = argparse.ArgumentParser(); cli.register(p.add_subparsers())
a = p.parse_args(['serve', '--port', '0', '--slots', '1'])
raise SystemExit(a.run(a))
"""
PROMPTS = 5  # of a request; they run one after the other, in the only slot
LONG = {"prompt": ["The"] * PROMPTS, "max_tokens": 120}


class Process:
    """A running server, and requests that are under way on it."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Path) -> None:
        self._process = process
        self._errors = errors
        self._pool = ThreadPoolExecutor(64)
        port = self.wait(lambda: re.search(r"running on http://[\d.]+:(\d+)", self.errors))[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def signal(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def reload(self) -> None:
        self._process.send_signal(signal.SIGHUP)

    def generate(self, count: int) -> list[Future[httpx.Response]]:
        """That many requests, which the engine has accepted."""

        def accepted() -> bool:
            text = self.client.get("/metrics").text
            names = r"queue_depth|active_slots|sequences_total\{.*\}"  # waiting, running, ended
            found = re.findall(rf"^gpt2mt_(?:{names}) (\S+)$", text, re.M)
            return sum(map(float, found)) >= count * PROMPTS

        post = self.client.post
        sent = [self._pool.submit(post, "/v1/generate", json=LONG) for _ in range(count)]
        self.wait(accepted)
        return sent

    def ended(self, within_s: float) -> None:
        """It ended by itself, in time, and without a word of what went wrong."""
        assert self._process.wait(within_s) in (0, -signal.SIGTERM)
        assert "Traceback" not in self.errors and " ERROR " not in self.errors, self.errors

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pool.shutdown()
        self.client.close()

    def wait(self, condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + 20
        while not (found := condition()):
            assert self._process.poll() is None and time.monotonic() < end, self.errors
            time.sleep(0.01)
        return found


Start = Callable[[float], contextlib.AbstractContextManager[Process]]


@pytest.fixture
def start(int8_bundle: Bundle, tmp_path: Path) -> Start:
    @contextlib.contextmanager
    def started(drain_s: float) -> Iterator[Process]:
        environment = {**os.environ, "GPT2MT_THREADS": "1", "GPT2MT_DRAIN_S": str(drain_s)}
        environment["GPT2MT_BUNDLE"] = str(int8_bundle.path)
        errors = tmp_path / "stderr"
        with errors.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", CODE],
                cwd=Path(app.__file__).parents[1],
                env=environment,
                stderr=stream,
            )
        running = Process(process, errors)
        try:
            yield running
        finally:
            running.close()

    return started


def refused(response: httpx.Response) -> bool:
    return (
        response.status_code == 503
        and response.headers["Content-Type"] == "application/problem+json"
        and response.json()["code"] == "not_ready"
        and int(response.headers["Retry-After"]) > 0
    )


def test_accepted_requests_are_finished_and_later_ones_refused(start: Start) -> None:
    with start(30) as server:
        body = {**LONG, "stream": True}
        sent = server.generate(5)
        with server.client.stream("POST", "/v1/generate", json=body) as stream:
            lines = stream.iter_lines()
            server.signal()
            while not refused(ready := server.client.get("/health/ready")):
                assert ready.status_code == 200  # the signal is on its way
            assert server.client.get("/health/live").status_code == 200
            assert refused(server.client.post("/v1/generate", json=LONG))
            assert refused(httpx.post(server.client.base_url.join("/v1/translate"), json={}))
            assert not all(one.done() for one in sent), "too short to tell"
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert [one.result().status_code for one in sent] == [200] * 5
        server.ended(within_s=3)


def test_what_does_not_end_in_time_is_refused(start: Start) -> None:
    with start(0.05) as server:
        sent = server.generate(6)
        server.signal()
        answers = [one.result() for one in sent]
        assert all(answer.status_code == 200 or refused(answer) for answer in answers)
        assert any(map(refused, answers))
        server.ended(within_s=3)


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    with start(60) as server:
        sent = server.generate(12)
        server.signal()
        while server.client.get("/health/ready").status_code == 200:
            pass
        server.signal()
        server.ended(within_s=1.5)
        assert any(refused(one.result()) for one in sent)


def test_a_reload_under_load_drops_no_request(int8_bundle: Bundle, tmp_path: Path) -> None:
    path, errors = tmp_path / "bundle", tmp_path / "stderr"

    def put(name: str, damage: bool = False) -> None:
        """The link leads to another folder from one instant to the next."""
        folder = tmp_path / name
        shutil.copytree(int8_bundle.path, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "name": name}))
        if damage:
            (folder / "tokenizer.json").write_text("{}")
        (tmp_path / "link").symlink_to(folder)
        (tmp_path / "link").replace(path)

    put("old")
    environment = {**os.environ, "GPT2MT_THREADS": "1", "GPT2MT_BUNDLE": str(path)}
    with errors.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE],
            cwd=Path(app.__file__).parents[1],
            env=environment,
            stderr=stream,
        )
    server = Process(process, errors)
    body = {"prompt": ["The", "A"], "max_tokens": 30}
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=20) as client:
            while not stop.is_set():
                answers.append(client.post("/v1/generate", json=body))

    try:
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            try:
                server.wait(lambda: len(answers) > 8)
                put("new")
                server.reload()
                server.wait(lambda: answers[-1].json()["model"] == "new")
                put("bad", damage=True)
                server.reload()
                server.wait(lambda: "tokenizer.json" in server.errors)
                seen = len(answers)
                server.wait(lambda: len(answers) > seen + 8)
            finally:
                stop.set()
            for one in asking:
                one.result()
        assert [a.text for a in answers if a.status_code != 200] == []
        assert {a.json()["model"] for a in answers} == {"old", "new"}
        assert answers[-1].json()["model"] == "new"
        assert len({str(a.json()["generations"]) for a in answers}) == 1  # the same weights
        metrics = server.client.get("/metrics").text
        for result in ("replaced", "failed"):
            assert f'gpt2mt_reloads_total{{result="{result}"}} 1.0' in metrics
        server.wait(lambda: "old, replaced, has ended" in server.errors)
    finally:
        server.close()


def test_the_settings_are_told_with_where_they_are_from(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('slots = 3\nthreads = 2\nlog_level = "error"\napis = ["openai"]\n')
    command = [sys.executable, "-c", "from gpt2_mt.cli import main; raise SystemExit(main())"]
    command += [
        "serve",
        "--config",
        str(file),
        "--set",
        "max_queue=7",
        "--port",
        "9",
        "--show-config",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GPT2MT_")}
    environment |= {"GPT2MT_THREADS": "1", "GPT2MT_MAX_ITEMS": "5"}
    told = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
    lines = told.splitlines()
    assert "port = 9  # command line" in lines and "max_queue = 7  # command line" in lines
    assert "threads = 1  # environment" in lines and "max_items = 5  # environment" in lines
    assert f"slots = 3  # {file}" in lines and f'apis = ["openai"]  # {file}' in lines
    assert 'host = "127.0.0.1"  # default' in lines
    assert "# cache_mb is not set  # default" in lines
    again = tmp_path / "again.toml"
    again.write_text(told)  # what is told can be given
    environment = {k: v for k, v in environment.items() if not k.startswith("GPT2MT_")}
    command = command[:3] + ["serve", "--config", str(again), "--show-config"]
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    values = [line.split("  #")[0] for line in second.stdout.splitlines()]
    assert values == [line.split("  #")[0] for line in lines]


def test_a_model_that_cannot_be_loaded_is_told_in_one_line(
    int8_bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(int8_bundle.path, folder)
    content = b"this is no graph"
    (folder / "model.onnx").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest["files"]["model.onnx"] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    command = [sys.executable, "-c", "from gpt2_mt.cli import main; raise SystemExit(main())"]
    command += ["serve", "--bundle", str(folder), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {str(folder)!r}: the model cannot be loaded"), last


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["--set", "slots"], "", "write NAME=VALUE"),
        (["--set", "sluts=3"], "", "write NAME=VALUE"),
        (["--set", "slots=many"], "", "slots"),
        ([], "slots = ", "cannot be read"),
        ([], "sluts = 3", "unknown setting sluts"),
        ([], 'slots = "many"', "slots"),
    ],
)
def test_wrong_settings_are_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
    message: str,
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    assert main(["serve", "--config", str(file), *arguments, "--show-config"]) == 2
    assert message in capsys.readouterr().err
