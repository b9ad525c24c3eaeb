"""`gpt2-mt serve --engine ray` as it runs: two replicas, one of them killed, and the end of all."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpt2_mt.client import Client
from gpt2_mt.retry import Retry

pytest.importorskip("ray.serve", reason="ray is not installed: make test-ray")

ROOT = Path(__file__).parents[3]
CODE = "import sys; from gpt2_mt.cli import main; sys.exit(main(sys.argv[1:]))"
LONG = {"prompt": ["The"] * 8, "max_tokens": 200, "min_tokens": 200}


class Cluster:
    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._mark = f"CLUSTER_OF_TEST={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        environment |= {name: value, "RAY_TMPDIR": str(folder), "GPT2MT_SLOTS": "8"}
        arguments = ["serve", "--engine", "ray", "--replicas", "2", "--port", str(self.port)]
        self._log = (folder / "log").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, *arguments, "--threads", "1"],
            cwd=ROOT, env=environment, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=300)
        self.pool = ThreadPoolExecutor(32)

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")

    def replicas(self) -> set[int]:
        """Their processes."""
        found = set()
        for folder in Path("/proc").iterdir():
            try:
                of_replica = b"ServeReplica" in (folder / "cmdline").read_bytes()
                if of_replica and self._mark.encode() in (folder / "environ").read_bytes():
                    found.add(int(folder.name))
            except OSError:
                continue
        return found

    def active(self) -> dict[str, float]:
        """Slots in use, by replica."""
        try:
            text = self.http.get("/metrics").text
        except httpx.TransportError:
            return {}
        found = re.findall(r'^gpt2mt_active_slots\{replica="(\w+)"\} (\S+)$', text, re.M)
        return {name: float(value) for name, value in found}

    def wait(self, condition: Callable[[], Any], seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.log[-4000:]
            time.sleep(0.2)

    def generate(self, count: int) -> list[Future[httpx.Response]]:
        return [self.pool.submit(self.http.post, "/v1/generate", json=LONG) for _ in range(count)]

    def stream(self) -> list[str]:
        with self.http.stream("POST", "/v1/generate", json={**LONG, "stream": True}) as answer:
            if answer.status_code != 200:
                answer.read()
                assert refused(answer)
                return []
            return [line for line in answer.iter_lines() if line]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.pool.shutdown()
        self.http.close()
        self._log.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # paths of sockets must be short
        running = Cluster(Path(folder))
        try:
            running.wait(lambda: "ready: 2 replicas" in running.log)
            yield running
        finally:
            running.close()


def refused(response: httpx.Response) -> bool:
    return (
        response.status_code == 503
        and response.headers["Content-Type"] == "application/problem+json"
        and response.json()["code"] == "not_ready"
        and response.json()["request_id"] == response.headers["X-Request-ID"]
        and int(response.headers["Retry-After"]) > 0
    )


def test_both_replicas_answer_and_are_counted(cluster: Cluster) -> None:
    assert cluster.http.get("/health/ready").status_code == 200
    assert len(cluster.active()) == len(cluster.replicas()) == 2
    cluster.wait(lambda: [cluster.http.get("/v1/models") for _ in range(4)])
    text = cluster.http.get("/metrics").text
    served = set(re.findall(r'endpoint="/v1/models".*replica="(\w+)"', text))
    assert served <= cluster.active().keys() and served
    assert text.count("# TYPE gpt2mt_http_requests_total counter") == 1
    assert cluster.http.get("/nowhere").json()["code"] == "not_found"
    given = cluster.http.get("/v1/models", headers={"X-Request-ID": "mine"}).headers
    assert given.get_list("X-Request-ID") == ["mine"]


def test_a_stream_comes_in_pieces(cluster: Cluster) -> None:
    with cluster.http.stream("POST", "/v1/generate", json={**LONG, "stream": True}) as answer:
        arrived = [(time.monotonic(), line) for line in answer.iter_lines() if line]
    assert arrived[-1][1] == "data: [DONE]"
    first, middle, last = (arrived[k][0] for k in (0, len(arrived) // 2, -1))
    assert middle - first > 0.2 * (last - first) > 0.05  # not all at the end


def test_a_client_that_goes_frees_its_slots(cluster: Cluster) -> None:
    with cluster.http.stream("POST", "/v1/generate", json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert sum(cluster.active().values()) > 0
    cluster.wait(lambda: sum(cluster.active().values()) == 0, 5)


def test_a_killed_replica_loses_no_request_of_our_client(cluster: Cluster) -> None:
    before, names = cluster.replicas(), cluster.active().keys()
    client = Client(cluster.url, timeout=300, retry=Retry(attempts=10, total_s=300))
    words = ["red", "cat", "house", "table", "water", "bread", "letter", "garden"]
    streams = [cluster.pool.submit(cluster.stream) for _ in range(4)]
    raw = cluster.generate(4)
    cluster.wait(lambda: len([n for n in cluster.active().values() if n]) == 2)
    kept = [cluster.pool.submit(client.generate, LONG["prompt"], max_tokens=50) for _ in range(3)]
    kept += [cluster.pool.submit(client.translate, [f"The {w}."], "de", "en") for w in words]  # type: ignore[arg-type]
    time.sleep(0.2)
    os.kill(victim := min(before), signal.SIGKILL)
    answers = [one.result() for one in raw]
    assert all(answer.status_code == 200 or refused(answer) for answer in answers), answers
    assert any(map(refused, answers)), "none was under way there"
    assert all(one.result() for one in kept)
    ends = [lines[-1] for lines in (one.result() for one in streams) if lines]
    assert all(end == "data: [DONE]" or '"code": "not_ready"' in end for end in ends), ends
    assert any("not_ready" in end for end in ends)
    for word in words:
        assert client.translate(f"The {word}.", "de", "en").text
    cluster.wait(lambda: len(cluster.replicas() - {victim}) == 2)
    cluster.wait(lambda: len(cluster.active()) == 2)
    assert len(cluster.active().keys() & names) == 1
    client.close()


def test_what_is_under_way_is_finished_at_the_end(cluster: Cluster) -> None:
    sent = cluster.generate(4)
    cluster.wait(lambda: sum(cluster.active().values()) >= 8)
    cluster.process.send_signal(signal.SIGTERM)
    cluster.wait(lambda: refused(cluster.http.get("/health/ready")), 20)
    assert refused(cluster.http.post("/v1/generate", json=LONG))
    assert [one.result().status_code for one in sent] == [200] * 4
    assert cluster.process.wait(60) == 0
    assert not cluster.replicas()
