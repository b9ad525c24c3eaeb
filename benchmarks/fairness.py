"""Time to the first token of one user, the server idle and while it translates 1,000 strings.

`python benchmarks/fairness.py [URL]` against a running server; the standard library is enough.
Short generations are streamed one after the other, first alone, then beside a job of 1,000 strings
that is begun again whenever it ends. It prints median and 95th percentile of both and ends with
status 1 if the loaded 95th percentile is over three times the idle median.
"""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import threading
import time
import urllib.parse
from typing import Any

COUNT, STRINGS, WANTED = 60, 1000, 3.0
PAUSE_S = 0.05  # between two of the user's requests
SENTENCE = "The children of the house number {} are playing in the garden, and the weather is fine."


def first_token(host: str, number: int) -> float:
    """Seconds from the request to its first event; the rest is read too."""
    body = {"prompt": f"The weather of day {number} was", "max_tokens": 8, "stream": True}
    connection = http.client.HTTPConnection(host, timeout=120)
    connection.connect()
    began = time.perf_counter()
    response = post(connection, "/v1/generate", body)
    response.readline()
    took = time.perf_counter() - began
    response.read()
    connection.close()
    return took


def post(
    connection: http.client.HTTPConnection, path: str, body: dict[str, Any]
) -> http.client.HTTPResponse:
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {response.read().decode()}")
    return response


def bulk(host: str, stop: threading.Event, done: list[int]) -> None:
    """Jobs of 1,000 strings, one after the other; leaving closes the connection, which cancels."""
    texts = [SENTENCE.format(i) for i in range(STRINGS)]
    while not stop.is_set():
        connection = http.client.HTTPConnection(host, timeout=600)
        post(connection, "/v1/translate", {"text": texts, "source": "en", "target": "de"}).read()
        connection.close()
        done.append(len(texts))


def measure(host: str, first: int) -> list[float]:
    times = []
    for i in range(COUNT):
        times.append(first_token(host, first + i))
        time.sleep(PAUSE_S)
    return sorted(times)


def main() -> int:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    host = urllib.parse.urlsplit(url).netloc
    for i in range(5):
        first_token(host, i)
    idle = measure(host, 1000)
    stop, done = threading.Event(), list[int]()
    worker = threading.Thread(target=bulk, args=(host, stop, done), daemon=True)
    worker.start()
    time.sleep(1.0)
    loaded = measure(host, 2000)
    busy = worker.is_alive()
    stop.set()
    base = statistics.median(idle)
    for name, times in (("idle", idle), (f"beside {STRINGS} strings", loaded)):
        median, p95 = statistics.median(times), times[int(0.95 * len(times))]
        sys.stdout.write(
            f"{name:<20} median {median * 1e3:7.1f} ms, p95 {p95 * 1e3:7.1f} ms "
            f"({p95 / base:.1f} x the idle median)\n"
        )
    sys.stdout.write(f"{len(done)} jobs of {STRINGS} strings ended meanwhile\n")
    return 0 if busy and loaded[int(0.95 * len(loaded))] <= WANTED * base else 1


if __name__ == "__main__":
    raise SystemExit(main())
