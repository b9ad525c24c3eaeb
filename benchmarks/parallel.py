"""64 requests one by one and then all at once: the same answers, and how large the batches were.

`python benchmarks/parallel.py [URL]` against a running server; the standard library is enough.
Greedy and seeded-sampled generations and translations flow in; it prints the mean decode batch of
the parallel part, from the server's own metrics, and ends with status 1 if any answer differs or
the mean is below 8.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

COUNT, WANTED = 64, 8.0
WORDS = ("weather", "station", "child", "book", "window", "winter", "city", "music")
TEXTS = (
    ("I would like to know when the next train leaves. My sister is waiting for me.", "en", "de"),
    ("The children are playing in the garden behind the house. They are happy.", "en", "fr"),
    ("Ich habe gestern ein neues Buch gekauft. Es liegt auf dem Tisch.", "de", "en"),
    ("Nous avons mangé dans un petit restaurant près de la gare. C'était bon.", "fr", "en"),
    ("我今天想去看电影。你想和我一起去吗？", "zh", "en"),
)
Body = dict[str, Any]


def requests() -> list[tuple[str, Body]]:
    """A mix: a third translations, a third greedy, a third seeded sampling, of unlike lengths."""
    mixed: list[tuple[str, Body]] = []
    for i in range(COUNT):
        if i % 3 == 0:
            text, source, target = TEXTS[i % len(TEXTS)]
            mixed.append(("/v1/translate", {"text": text, "source": source, "target": target}))
            continue
        body: Body = {"prompt": f"The {WORDS[i % len(WORDS)]} was number {i}, and"}
        body["max_tokens"] = 40 + i % 40
        if i % 3 == 2:
            body |= {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": i}
        mixed.append(("/v1/generate", body))
    return mixed


def connect(url: str) -> HTTPConnection:
    connection = HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=120)
    connection.connect()
    return connection


def ask(
    url: str, path: str, body: Body, ready: Callable[[], object] = lambda: None
) -> Body:
    """The answer without its timing, which differs from run to run."""
    connection = connect(url)
    ready()
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    connection.request("POST", path, data, kind)
    answer = connection.getresponse()
    values: Body = json.loads(answer.read())
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path} {body}: {answer.status} {values}")
    values.pop("timing", None)
    return values


def decoded(url: str) -> tuple[float, float]:
    """Rows and runs of decoding so far."""
    connection = connect(url)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = dict(re.findall(r"^gpt2mt_decode_batch_size_(sum|count) (\S+)", text, re.M))
    return float(found["sum"]), float(found["count"])


def main(url: str) -> int:
    mixed = requests()
    started = time.monotonic()
    alone = [ask(url, path, body) for path, body in mixed]
    middle = time.monotonic()
    rows, runs = decoded(url)
    together_now = threading.Barrier(COUNT).wait
    with ThreadPoolExecutor(COUNT) as pool:
        together = list(pool.map(lambda item: ask(url, *item, together_now), mixed))
    ended = time.monotonic()
    rows, runs = (after - before for after, before in zip(decoded(url), (rows, runs), strict=True))
    different = [i for i in range(COUNT) if alone[i] != together[i]]
    sys.stdout.write(
        f"{COUNT} requests, one by one {middle - started:.2f} s, in parallel "
        f"{ended - middle:.2f} s\nmean batch in parallel: {rows / runs:.1f} rows\n"
        f"answers that differ: {len(different)}\n"
    )
    for i in different:
        sys.stdout.write(f"  {mixed[i]}\n    alone:    {alone[i]}\n    together: {together[i]}\n")
    return 1 if different or rows / runs < WANTED else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"))
