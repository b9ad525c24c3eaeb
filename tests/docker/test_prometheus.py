"""A real Prometheus with our configuration, over the server with the bundled model under load.

Each query of the dashboard and of the alerts must find data there.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.main import create_app
from app.settings import Settings
from tests.servers import Server, serve

if not (shutil.which("prometheus") and shutil.which("promtool")):
    pytest.skip("prometheus and promtool are not installed", allow_module_level=True)

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/gpt2-mt.json").read_text(encoding="utf-8"))
PATIENCE_S = 180  # of a busy machine
PROBABLE = {"text": ["Where is the station?", "I would like a cup of tea."], "target": "de"}
HARD = "Zq xv {a} {b} {c} {d} 17 23 42 qqq www jjj {e}!"
DOUBTFUL = {"text": HARD, "source": "en", "target": "fr"}


def test_promtool_accepts_configuration_and_rules() -> None:
    for kind, name in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        command = ["promtool", "check", kind, str(DOCKER / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should() -> None:
    command = ["promtool", "test", "rules", str(Path(__file__).with_name("alerts_test.yml"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A running one, and its answers."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(path, params=parameters)
        assert answer.status_code == 200, (parameters, answer.text)
        return answer.json()["data"]

    def finds(self, query: str) -> bool:
        """Whether a number comes of it."""
        found = self.get("/api/v1/query", query=query)["result"]
        return any(not math.isnan(float(series["value"][1])) for series in found)

    def wait_for(self, queries: Sequence[str]) -> None:
        """Until each has found data once."""
        missing, end = list(queries), time.monotonic() + PATIENCE_S
        while missing := [query for query in missing if not self.finds(query)]:
            assert time.monotonic() < end, f"no data for {missing}"
            time.sleep(1)


def use(client: httpx.Client) -> None:
    """Everything that the panels show: answers, cache hits, second tries, refusals, failures."""
    post = client.post
    for _ in range(2):
        assert post("/v1/translate", json=PROBABLE).status_code == 200
    assert post("/v1/translate", json=DOUBTFUL).status_code == 200
    body = {"prompt": "The weather", "max_tokens": 8, "stream": True}
    assert post("/v1/generate", json=body).text.endswith("[DONE]\n\n")
    assert post("/v1/translate", json={"text": "a", "target": "xx"}).status_code == 422
    late = {"prompt": ["The"] * 8, "max_tokens": 400, "min_tokens": 400, "timeout_s": 0.05}
    assert post("/v1/generate", json=late).status_code == 504
    crowd = {"prompt": ["The"] * 16, "max_tokens": 24, "min_tokens": 24}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(post, "/v1/generate", json=crowd) for _ in range(4)]
        assert {one.result().status_code for one in sent} <= {200, 503}


@pytest.fixture(scope="module")
def loaded() -> Iterator[Server]:
    """A server that is used until the end of the tests."""
    settings = Settings(threads=1, slots=2, max_queue=4, translation_cache=100)
    with serve(create_app(settings)) as server:
        stop, failures = threading.Event(), []

        def load() -> None:
            try:
                while not stop.wait(0.2):
                    use(server.client)
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        yield server
        stop.set()
        thread.join(60)
        assert not failures


@pytest.fixture(scope="module")
def prometheus(loaded: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """With our files, but for the target, and a second instead of fifteen."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = (DOCKER / "prometheus.yml").read_text(encoding="utf-8")
    config = config.replace("server:8000", f"127.0.0.1:{loaded.port}").replace(": 15s", ": 1s")
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    shutil.copy(DOCKER / "alerts.yml", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as out:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml",
             f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"],
            stdout=out, stderr=out,
        )  # fmt: skip
    end = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200:
                break
        assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.2)
    yield Prometheus(port)
    process.terminate()
    process.wait(30)


def test_the_server_is_scraped(prometheus: Prometheus) -> None:
    prometheus.wait_for(['up{job="gpt2-mt"} == 1'])
    target = prometheus.get("/api/v1/targets")["activeTargets"][0]
    assert target["health"] == "up" and target["lastError"] == ""


def test_each_panel_has_data(prometheus: Prometheus) -> None:
    queries = [
        target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]
    assert len(queries) > 30
    prometheus.wait_for(queries)


def test_each_alert_has_data_to_judge(prometheus: Prometheus) -> None:
    """What it compares is there: its terms without the comparison, and every selector in them."""
    rules = yaml.safe_load((DOCKER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    queries: set[str] = set()
    for expression in (rule["expr"] for group in rules for rule in group["rules"]):
        plain = re.sub(r"absent\((.*?)\)", r"\1", expression)
        queries |= {re.sub(r" (==|>) .*", "", term, flags=re.S)
                    for term in re.split(r"^(?:and|or) ", plain, flags=re.M)}  # fmt: skip
        queries |= set(re.findall(r"\b(?:gpt2mt|process)_\w+(?:\{.*?\})?", expression))
    assert len(queries) > 20
    prometheus.wait_for(sorted(queries))


def test_rules_are_evaluated_without_an_error(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 14
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}


def test_variables_of_the_dashboard_have_values(prometheus: Prometheus, loaded: Server) -> None:
    served = [model["id"] for model in loaded.client.get("/v1/models").json()["data"]]
    assert prometheus.get("/api/v1/label/model/values") == served
    instances = prometheus.get("/api/v1/label/instance/values")
    assert instances == [f"127.0.0.1:{loaded.port}"]
