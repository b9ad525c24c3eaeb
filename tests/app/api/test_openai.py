"""OpenAI's completions: its own client, its shapes and its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.app.api.test_errors import JSON, STRANGE, VALUES
from tests.fakes import FakeDecoder, RunFailed

PATH = "/v1/completions"
BASE: dict[str, Any] = {"model": "tiny-fp32", "prompt": "The", "max_tokens": 4, "temperature": 0}
FIELDS = [
    "model", "prompt", "max_tokens", "temperature", "top_p", "n", "best_of", "stream", "echo",
    "stream_options", "logprobs", "stop", "logit_bias", "seed", "suffix", "other",
]  # fmt: skip


@pytest.fixture
def ai(server: Any) -> openai.OpenAI:
    url = f"http://127.0.0.1:{server.port}/v1"
    return openai.OpenAI(base_url=url, api_key="any", max_retries=0)


def own(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/generate", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def refused(response: httpx.Response, status: int, param: str | None) -> str:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"] and list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["param"] == param
    assert body["error"]["type"] == ("invalid_request_error" if status < 500 else "server_error")
    message: str = body["error"]["message"]
    return message


def test_a_completion_is_that_of_our_own_route(ai: openai.OpenAI, client: httpx.Client) -> None:
    options: dict[str, Any] = {
        "max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "n": 2, "seed": 7, "stop": ["zq"],
        "presence_penalty": 0.5, "frequency_penalty": 0.2, "logit_bias": {"70": -5},
    }  # fmt: skip
    extra = {"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 3}
    expected = own(client, prompt=["The", "Das"], **options, **extra)
    answer = ai.completions.create(
        model="tiny-fp32", prompt=["The", "Das"], user="me", extra_body=extra, **options
    )
    assert answer.object == "text_completion" and answer.model == "tiny-fp32"
    assert answer.id.startswith("cmpl-") and answer.created > 1_700_000_000
    for i, choice in enumerate(answer.choices):
        theirs = expected["generations"][i]
        assert (choice.index, choice.logprobs) == (i, None)
        assert (choice.text, choice.finish_reason) == (theirs["text"], theirs["finish_reason"])
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    assert usage.completion_tokens == expected["usage"]["completion_tokens"]
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_defaults_are_those_of_openai(client: httpx.Client) -> None:
    body = {"prompt": "The", "seed": 5}
    (choice,) = client.post(PATH, json=body).json()["choices"]
    expected = own(client, **body, max_tokens=16, temperature=1.0)
    assert choice["text"] == expected["generations"][0]["text"]
    nulls = dict.fromkeys([*FIELDS, "top_k", "min_p", "user", "presence_penalty"])
    again = client.post(PATH, json={**nulls, **body}).json()["choices"]
    assert again == [choice]
    big = client.post(PATH, json={**body, "seed": 5 - 2**32}).json()["choices"]
    assert big == [choice]


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_is_the_whole_in_parts(ai: openai.OpenAI, usage: bool) -> None:
    body: dict[str, Any] = {
        "model": "tiny-fp32", "prompt": ["The", "今天"], "max_tokens": 10, "seed": 3, "n": 2,
        "logprobs": 2,
    }  # fmt: skip
    whole = ai.completions.create(**body)
    options: Any = {"include_usage": True} if usage else openai.NOT_GIVEN
    chunks = list(ai.completions.create(**body, stream=True, stream_options=options))
    assert len({chunk.id for chunk in chunks}) == 1
    if usage:
        last = chunks.pop()
        assert last.choices == [] and last.usage == whole.usage
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    for i, choice in enumerate(whole.choices):
        mine = [c.choices[0] for c in chunks if c.choices[0].index == i]
        assert "".join(one.text for one in mine) == choice.text
        assert [one.finish_reason for one in mine if one.finish_reason] == [choice.finish_reason]
        assert choice.logprobs is not None
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            parts = [getattr(one.logprobs, name) for one in mine]
            assert sum(parts, []) == getattr(choice.logprobs, name)


def test_logprobs(client: httpx.Client, ai: openai.OpenAI) -> None:
    answer = ai.completions.create(**{**BASE, "temperature": 0.9}, logprobs=2, seed=1)
    theirs = own(client, prompt="The", max_tokens=4, temperature=0.9, logprobs=2, seed=1)
    logprobs, expected = answer.choices[0].logprobs, theirs["generations"][0]["logprobs"]
    assert logprobs and logprobs.tokens and logprobs.top_logprobs and logprobs.text_offset
    assert logprobs.tokens == [token["text"] for token in expected]
    assert logprobs.token_logprobs == [token["logprob"] for token in expected]
    for token, top in zip(expected, logprobs.top_logprobs, strict=True):
        assert top[token["text"]] >= token["logprob"] and 2 <= len(top) <= 3
    text = answer.choices[0].text
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert "\ufffd" in token or text[offset:].startswith(token)


def test_echo(ai: openai.OpenAI) -> None:
    body: dict[str, Any] = {**BASE, "prompt": ["The", "Das"], "n": 2, "temperature": 1, "seed": 2}
    plain = ai.completions.create(**body)
    echoed = ai.completions.create(**body, echo=True)
    streamed = ["", "", "", ""]
    for chunk in ai.completions.create(**body, echo=True, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    for i, prompt in enumerate(["The", "The", "Das", "Das"]):
        assert echoed.choices[i].text == streamed[i] == prompt + plain.choices[i].text


def test_best_of_tells_the_likeliest(client: httpx.Client) -> None:
    body: dict[str, Any] = {"prompt": ["The", "Das"], "max_tokens": 5, "temperature": 1, "seed": 9}
    answer = client.post(PATH, json={**body, "n": 2, "best_of": 4}).json()
    made = own(client, **body, n=4, logprobs=0)["generations"]
    for i in range(2):
        mine = made[4 * i : 4 * i + 4]
        mine.sort(key=lambda g: -sum(t["logprob"] for t in g["logprobs"]) / len(g["logprobs"]))
        texts = [choice["text"] for choice in answer["choices"][2 * i : 2 * i + 2]]
        assert texts == [one["text"] for one in mine[:2]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 40


def test_models(ai: openai.OpenAI, client: httpx.Client) -> None:
    (model,) = ai.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny-fp32", "model", "gpt2-mt")
    assert isinstance(model.created, int) and model.created > 1_700_000_000
    assert ai.models.retrieve("tiny-fp32") == model
    with pytest.raises(openai.NotFoundError, match="tiny-fp32"):
        ai.models.retrieve("gpt-9")
    refused(client.get("/v1/models/gpt-9"), 404, "model")


WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "gpt-9"}, 404, "model"),
    ({"model": 5}, 400, "model"),
    ({"prompt": None}, 400, "prompt"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [1, 2]}, 400, "prompt[0]"),
    ({"prompt": [[1, 2]]}, 400, "prompt[0]"),
    ({"prompt": ["a", "b " * 900]}, 400, "prompt[1]"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": "5"}, 400, "max_tokens"),
    ({"temperature": -1}, 400, "temperature"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"n": 0}, 400, "n"),
    ({"n": 100, "prompt": ["a"] * 11}, 400, "n"),
    ({"n": 3, "best_of": 2}, 400, "best_of"),
    ({"best_of": 128, "prompt": ["a"] * 9}, 400, "best_of"),
    ({"best_of": 2, "stream": True}, 400, "best_of"),
    ({"stream": "yes"}, 400, "stream"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"stream": True, "stream_options": 5}, 400, "stream_options"),
    ({"logprobs": 21}, 400, "logprobs"),
    ({"logprobs": True}, 400, "logprobs"),
    ({"logprobs": 1, "echo": True}, 400, "echo"),
    ({"stop": [""]}, 400, "stop[0]"),
    ({"stop": ["a"] * 17}, 400, "stop"),
    ({"suffix": "end"}, 400, "suffix"),
    ({"presence_penalty": 3}, 400, "presence_penalty"),
    ({"frequency_penalty": -3}, 400, "frequency_penalty"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias.x.[key]"),
    ({"logit_bias": {"1000000": 1}}, 400, "logit_bias"),
    ({"seed": 2**64}, 400, "seed"),
    ({"min_tokens": 5}, 400, "min_tokens"),
]


@pytest.mark.parametrize(("change", "status", "param"), WRONG)
def test_errors_have_its_shape_and_name_the_field(
    client: httpx.Client, change: dict[str, Any], status: int, param: str
) -> None:
    message = refused(client.post(PATH, json={**BASE, **change}), status, param)
    assert param.partition(".")[0] in message and len(message) < 300


def test_the_client_raises_its_own_errors(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ai.completions.create(**{**BASE, "temperature": 9})
    assert caught.value.param == "temperature" and caught.value.code == "invalid_field"


def test_bodies_that_cannot_be_read(client: httpx.Client) -> None:
    for content in (b"", b"{", b"\xff\xfe", b"[" * 50_000, b'{"n": ' + b"1" * 5000 + b"}"):
        refused(client.post(PATH, content=content, headers=JSON), 400, None)
    refused(client.post(PATH, content=b"[]", headers=JSON), 400, None)
    refused(client.post(PATH, data={"prompt": "a"}), 415, "Content-Type")
    refused(client.post(PATH, content=b"x" * 200_001, headers=JSON), 413, None)
    refused(client.get(PATH), 405, None)
    for content, param in ((r'"\ud83d"', "prompt"), (r'["a", "\udc00"]', "prompt[1]")):
        body = '{"stream": true, "prompt": ' + content + "}"
        refused(client.post(PATH, content=body, headers=JSON), 400, param)


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_strange_text_gets_an_answer(client: httpx.Client, text: str) -> None:
    response = client.post(PATH, json={**BASE, "prompt": text, "echo": True})
    assert response.status_code == 200 or "fit" in refused(response, 400, "prompt")


@given(change=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_json_is_answered_below_500(client: httpx.Client, change: dict[str, Any]) -> None:
    response = client.post(PATH, content=json.dumps({**BASE, **change}), headers=JSON)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        refused(response, response.status_code, response.json()["error"]["param"])


def test_an_error_within_a_stream_reaches_the_client(fake_server: Callable[..., Any]) -> None:
    def fail(phase: str, call: int) -> None:
        if phase == "decode" and call > 4:
            raise RunFailed("a secret")

    with fake_server(FakeDecoder(vocabulary=600, capacity=128, hook=fail)) as server:
        ai = openai.OpenAI(base_url=f"{server.client.base_url}/v1", api_key="x", max_retries=0)
        stream = ai.completions.create(**{**BASE, "max_tokens": 60, "logit_bias": {"0": -100}},
                                       stream=True)  # fmt: skip
        with pytest.raises(openai.APIError, match="model failed") as caught:
            list(stream)
        assert "secret" not in str(caught.value)
        server.wait_until_idle()
