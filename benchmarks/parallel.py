"""64 requests one by one and then all at once: the same answers, and how large the batches were.

`python benchmarks/parallel.py [URL]` against a running server; the standard library is enough.
Greedy and seeded-sampled generations and translations flow in; it prints the mean decode batch of
the parallel part, from the server's own metrics, and ends with status 1 if any answer differs.
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

COUNT = 64
WORDS = ("weather", "station", "child", "book", "window", "winter", "city", "music")
TEXTS = (
    ("I would like to know when the next train leaves.", "en", "de"),
    ("The children are playing in the garden behind the house.", "en", "fr"),
    ("Ich habe gestern ein neues Buch gekauft.", "de", "en"),
    ("Nous avons mangé dans un petit restaurant près de la gare.", "fr", "en"),
    ("我今天想去看电影。", "zh", "en"),
)


def requests() -> list[tuple[str, dict[str, Any]]]:
    """A mix: a third translations, a third greedy, a third seeded sampling, of unlike lengths."""
    mixed: list[tuple[str, dict[str, Any]]] = []
    for i in range(COUNT):
        if i % 3 == 0:
            text, source, target = TEXTS[i % len(TEXTS)]
            body = {"text": f"{text} ({i})", "source": source, "target": target}
            mixed.append(("/v1/translate", body))
            continue
        prompt = f"The {WORDS[i % len(WORDS)]} was number {i}"
        body = {"prompt": prompt, "max_tokens": 24 + i % 40}
        if i % 3 == 2:
            body |= {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": i}
        mixed.append(("/v1/generate", body))
    return mixed


def ask(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer without its timing, which differs from run to run."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        url + path, data=data, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        values: dict[str, Any] = json.load(answer)
    values.pop("timing", None)
    return values


def batches(url: str) -> tuple[float, float]:
    """Rows and runs of decoding so far."""
    with urllib.request.urlopen(url + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return tuple(  # type: ignore[return-value]
        float(re.search(rf"^gpt2mt_decode_batch_size_{part} (\S+)", text, re.M)[1])  # type: ignore[index]
        for part in ("sum", "count")
    )


def main(url: str) -> int:
    mixed = requests()
    started = time.monotonic()
    alone = [ask(url, path, body) for path, body in mixed]
    middle = time.monotonic()
    rows, runs = batches(url)
    with ThreadPoolExecutor(COUNT) as pool:
        together = list(pool.map(lambda item: ask(url, *item), mixed))
    ended = time.monotonic()
    rows, runs = (after - before for after, before in zip(batches(url), (rows, runs), strict=True))
    different = [i for i in range(COUNT) if alone[i] != together[i]]
    sys.stdout.write(
        f"{COUNT} requests, one by one {middle - started:.2f} s, in parallel "
        f"{ended - middle:.2f} s\nmean batch in parallel: {rows / runs:.1f} rows\n"
        f"answers that differ: {len(different)}\n"
    )
    for i in different:
        sys.stdout.write(f"  {mixed[i]}\n    alone:    {alone[i]}\n    together: {together[i]}\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"))
