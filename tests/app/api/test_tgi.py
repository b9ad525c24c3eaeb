"""Text Generation Inference's API: `huggingface_hub`, its shapes and its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import GenerationError, ValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.app.api.test_errors import JSON, STRANGE, VALUES
from tests.fakes import FakeDecoder, RunFailed

BASE: dict[str, Any] = {"max_new_tokens": 4}
FIELDS = [
    "best_of", "temperature", "top_k", "top_p", "do_sample", "max_new_tokens", "stop", "details",
    "truncate", "seed", "top_n_tokens", "grammar", "watermark", "return_full_text", "other",
]  # fmt: skip
HEADERS = {
    "x-compute-type", "x-compute-time", "x-compute-characters", "x-total-time", "x-queue-time",
    "x-validation-time", "x-inference-time", "x-time-per-token", "x-prompt-tokens",
    "x-generated-tokens",
}  # fmt: skip


@pytest.fixture
def hub(server: Any) -> InferenceClient:
    return InferenceClient(model=f"http://127.0.0.1:{server.port}", token="any")


def own(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/generate", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()["generations"][0]
    return told


def post(client: httpx.Client, inputs: Any = "The", **parameters: Any) -> httpx.Response:
    return client.post("/generate", json={"inputs": inputs, "parameters": {**BASE, **parameters}})


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def refused(response: httpx.Response, status: int = 422) -> str:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert list(body) == ["error", "error_type"] and body["error_type"] == "validation"
    message: str = body["error"]
    return message


SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 7}


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_the_client_generates(
    hub: InferenceClient, client: httpx.Client, options: dict[str, Any]
) -> None:
    expected = own(client, prompt="今天", max_tokens=12, logprobs=2, **options)
    text = hub.text_generation("今天", max_new_tokens=12, **options)
    assert text == expected["text"]
    whole = hub.text_generation(
        "今天", max_new_tokens=12, details=True, top_n_tokens=2, return_full_text=True, **options
    )
    assert whole.generated_text == "今天" + text
    details = whole.details
    assert details is not None and details.finish_reason == "length" and details.prefill == []
    assert details.generated_tokens == len(details.tokens) == 12
    assert details.seed == options.get("seed")
    for token, theirs in zip(details.tokens, expected["logprobs"], strict=True):
        assert (token.id, token.text, token.logprob, token.special) == (
            theirs["id"], theirs["text"], theirs["logprob"], False
        )  # fmt: skip
    tops = [[one["id"] for one in token["top"]] for token in expected["logprobs"]]
    told: Any = details.top_tokens  # the client leaves them as they come
    assert [[one["id"] for one in top] for top in told] == tops


@pytest.mark.parametrize("stop", [[], ["zq"]])
def test_the_client_streams(
    hub: InferenceClient, client: httpx.Client, sentences: list[str], stop: list[str]
) -> None:
    for prompt in sentences[::4]:
        expected = own(client, prompt=prompt, max_tokens=16, seed=4, temperature=0.9, logprobs=0)
        options: Any = {"max_new_tokens": 16, "seed": 4, "temperature": 0.9, "stop": stop}
        parts = list(hub.text_generation(prompt, stream=True, **options))
        assert "".join(parts) == expected["text"]
        outputs = list(hub.text_generation(prompt, stream=True, details=True, **options))
        last = outputs[-1]
        assert last.generated_text == expected["text"]
        assert all(one.generated_text is None for one in outputs[:-1])
        assert [one.index for one in outputs] == list(range(1, len(outputs) + 1))
        assert last.details is not None
        made = [one for one in outputs if not one.token.special]
        assert last.details.generated_tokens == len(made) == len(expected["logprobs"])
        assert last.details.seed == 4 and last.details.input_length > 1


def test_a_stop_string_ends_the_text_and_stays(client: httpx.Client) -> None:
    options = {"max_new_tokens": 16, "temperature": 0.9, "seed": 11}
    whole = post(client, **options).json()["generated_text"]
    stop = whole[5:8]
    answer = post(client, **options, stop=["not there", stop], details=True).json()
    assert answer["generated_text"] == whole[: whole.index(stop) + len(stop)]
    assert answer["details"]["finish_reason"] == "stop_sequence"
    body = {"inputs": "The", "parameters": {**options, "stop": [stop], "details": True}}
    sent = events(client.post("/generate_stream", json=body))
    assert "".join(one["token"]["text"] for one in sent) == answer["generated_text"]
    assert sent[-1]["generated_text"] == answer["generated_text"]
    assert sent[-1]["details"]["finish_reason"] == "stop_sequence"


def test_an_end_token_ends_the_text(fake_server: Callable[..., Any]) -> None:
    with fake_server(FakeDecoder(vocabulary=600, capacity=512)) as server:
        body = {"inputs": "The", "parameters": {"max_new_tokens": 400, "details": True}}
        answer = server.client.post("/generate", json=body).json()
        assert answer["details"]["finish_reason"] == "eos_token"
        sent = events(server.client.post("/generate_stream", json=body))
        assert sent[-1]["generated_text"] == answer["generated_text"]
        assert sent[-1]["details"]["finish_reason"] == "eos_token"
        assert len(sent) == max(answer["details"]["generated_tokens"], 1)


def test_without_parameters_it_samples_until_the_context_is_full(client: httpx.Client) -> None:
    for body in ({"inputs": "The"}, {"inputs": "The", "parameters": None, "stream": False}):
        response = client.post("/generate", json=body)
        used = sum(int(response.headers[f"x-{name}-tokens"]) for name in ("prompt", "generated"))
        assert used == 128 or response.json()["generated_text"]
    greedy = post(client, temperature=1.0).json()  # as there, this alone does not ask for sampling
    assert greedy == post(client).json()


def test_best_of_tells_the_likeliest_first(client: httpx.Client) -> None:
    details = post(client, do_sample=True, best_of=4, details=True).json()["details"]
    rest = details["best_of_sequences"]
    assert len(rest) == 3
    scores = [
        sum(t["logprob"] for t in one["tokens"]) / len(one["tokens"]) for one in (details, *rest)
    ]
    assert scores == sorted(scores, reverse=True)
    for one in rest:
        again = post(client, do_sample=True, seed=one["seed"]).json()
        assert again["generated_text"] == one["generated_text"]


def test_truncate_keeps_the_last_tokens(client: httpx.Client) -> None:
    text = "The weather is beautiful today, and the children are playing."
    tokens = client.post("/tokenize", json={"inputs": text}).json()
    rest = text[tokens[-5]["start"] :]
    assert post(client, text, truncate=5).json() == post(client, rest).json()
    assert post(client, "b " * 900, truncate=5).status_code == 200
    assert "inputs" in refused(post(client, "b " * 900, truncate=500))


def test_tokenize(client: httpx.Client) -> None:
    text = "Le weather 今天 😀!"
    tokens = client.post("/tokenize", json={"inputs": text, "parameters": {}}).json()
    assert all(list(one) == ["id", "text", "start", "stop"] for one in tokens)
    assert all(text[one["start"] : one["stop"]] == one["text"] for one in tokens)
    assert {i for one in tokens for i in range(one["start"], one["stop"])} == set(range(len(text)))
    refused(client.post("/tokenize", json={"inputs": 5}))
    refused(client.post("/tokenize", json={"inputs": "a" * 20_001}))
    refused(client.post("/tokenize", content=r'{"inputs": "\ud800"}', headers=JSON))


def test_headers_and_info(client: httpx.Client) -> None:
    response = post(client)
    assert set(response.headers) >= HEADERS
    assert all(float(response.headers[name]) >= 0 for name in HEADERS - {"x-compute-type"})
    assert response.headers["x-generated-tokens"] == "4"
    told = client.get("/info").json()
    assert told["model_id"] == "tiny-fp32" and told["max_total_tokens"] == 128
    assert told["max_best_of"] == 8 and len(told["model_sha"]) == 64
    compat = client.post("/", json={"inputs": "The", "parameters": BASE})
    assert compat.json() == [response.json()]
    assert client.get("/").headers["Content-Type"].startswith("text/html")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"best_of": 0}, "best_of"),
    ({"best_of": 9, "do_sample": True}, "best_of"),
    ({"best_of": 2}, "best_of"),
    ({"best_of": 2, "do_sample": True, "seed": 1}, "seed"),
    ({"temperature": 0}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"top_p": 0}, "top_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": 4.5}, "max_new_tokens"),
    ({"stop": "a"}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["\ud800"]}, "stop[0]"),
    ({"truncate": 0}, "truncate"),
    ({"seed": -1}, "seed"),
    ({"top_n_tokens": 21}, "top_n_tokens"),
    ({"details": "yes"}, "details"),
    ({"typical_p": 0.5}, "typical_p"),
    ({"watermark": True}, "watermark"),
    ({"decoder_input_details": True}, "decoder_input_details"),
    ({"grammar": {"type": "regex", "value": "a"}}, "grammar"),
    ({"adapter_id": "mine"}, "adapter_id"),
]


@pytest.mark.parametrize(("change", "param"), WRONG)
def test_errors_have_its_shape_and_name_the_field(
    client: httpx.Client, change: dict[str, Any], param: str
) -> None:
    content = json.dumps({"inputs": "The", "parameters": {**BASE, **change}})
    for path in ("/generate", "/generate_stream", "/"):
        assert param in refused(client.post(path, content=content, headers=JSON)) or (
            path == "/generate_stream" and "best_of" in change
        )


@pytest.mark.parametrize("inputs", [None, "", 5, ["a"], "b " * 900, "a\ud800"], ids=range(6))
def test_wrong_inputs(client: httpx.Client, inputs: Any) -> None:
    content = json.dumps({"inputs": inputs, "parameters": BASE})
    for path in ("/generate", "/generate_stream", "/"):
        assert "inputs" in refused(client.post(path, content=content, headers=JSON))


def test_the_client_raises_its_own_errors(
    hub: InferenceClient, fake_server: Callable[..., Any]
) -> None:
    for stream in (False, True):
        with pytest.raises(ValidationError, match="top_p"):
            list(hub.text_generation("The", stream=stream, top_p=2))

    def fail(phase: str, call: int) -> None:
        if phase == "decode" and call > 4:
            raise RunFailed("a secret")

    with fake_server(FakeDecoder(vocabulary=600, capacity=128, hook=fail)) as server:
        broken = InferenceClient(model=str(server.client.base_url), token="any")
        with pytest.raises(GenerationError, match="failed during generation"):
            list(broken.text_generation("The", stream=True, max_new_tokens=90, do_sample=True,
                                        seed=1))  # fmt: skip
        server.wait_until_idle()


def test_bodies_that_cannot_be_read(client: httpx.Client) -> None:
    for path in ("/generate", "/generate_stream", "/", "/tokenize"):
        for content in (b"", b"{", b"\xff\xfe", b"[" * 50_000):
            refused(client.post(path, content=content, headers=JSON), 400)
        refused(client.post(path, content=b"[]", headers=JSON))
        refused(client.post(path, data={"inputs": "a"}), 415)
        refused(client.post(path, content=b"x" * 200_001, headers=JSON), 413)
        refused(client.put(path), 405)


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_strange_text_gets_an_answer(client: httpx.Client, text: str) -> None:
    response = post(client, text, details=True)
    assert response.status_code == 200 or "fit" in refused(response)
    assert client.post("/tokenize", json={"inputs": text}).status_code == 200


@given(change=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3), inputs=VALUES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_json_is_answered_below_500(
    client: httpx.Client, change: dict[str, Any], inputs: Any
) -> None:
    for given_inputs in ("The", inputs):
        content = json.dumps({"inputs": given_inputs, "parameters": {**BASE, **change}})
        response = client.post("/generate", content=content, headers=JSON)
        assert response.status_code == 200 or refused(response)
