"""A server with keys: each API asks for one in its own way and refuses in its own shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import deepl
import httpx
import pytest

import app.main
from app.access import Key, digest_of
from app.bundle import Bundle
from app.settings import Settings
from tests.servers import Server, serve

TEXT = {"text": "hello", "source": "en", "target": "de"}
BEARER = {"Authorization": "Bearer unlimited"}


@pytest.fixture(scope="module")
def closed(fp32_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys = [
        Key("unlimited", digest_of("unlimited")),
        Key("slow", digest_of("slow"), requests_per_minute=2),
        Key("small", digest_of("small"), characters_per_day=20),
        Key("deepl", digest_of("deepl"), characters_per_day=20),
        Key("libre", digest_of("libre"), characters_per_day=20),
        Key("files", digest_of("files"), characters_per_day=2000),
    ]
    path.write_text("".join(f"{key}\n" for key in keys))
    settings = Settings(
        bundle=fp32_bundle.path, threads=1, api_keys=path, cors_origins="https://page.example"
    )
    with serve(app.main.create_app(settings)) as running:
        yield running


CALLS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/translate", TEXT),
    ("POST", "/v1/generate", {"prompt": "a", "max_tokens": 1}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/languages", None),
    ("GET", "/v1/usage", None),
    ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}),
    ("POST", "/generate", {"inputs": "a", "parameters": {"max_new_tokens": 1}}),
    ("GET", "/info", None),
    ("POST", "/v2/translate", {"text": ["hello"], "target_lang": "DE"}),
    ("GET", "/v2/usage", None),
    ("POST", "/translate", {"q": "hello", "source": "en", "target": "de"}),
    ("POST", "/detect", {"q": "hello"}),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS, ids=[path for _, path, _ in CALLS])
def test_no_work_without_a_key(
    closed: Server, method: str, path: str, body: dict[str, Any] | None
) -> None:
    refused = closed.client.request(method, path, json=body)
    assert refused.status_code in (400, 401, 403), refused.text
    wrong = closed.client.request(method, path, json=body, headers={"Authorization": "Bearer no"})
    assert wrong.status_code in (401, 403)
    served = closed.client.request(method, path, json=body, headers=BEARER)
    assert served.status_code == 200, served.text
    own = closed.client.request(method, path, json=body, headers={"X-API-Key": "unlimited"})
    assert own.status_code == 200


@pytest.mark.parametrize(
    "path", ["/health", "/health/ready", "/metrics", "/v2/health/ready", "/languages"]
)
def test_probes_need_none(closed: Server, path: str) -> None:
    assert closed.client.get(path).status_code == 200


def test_the_forms_of_a_refusal(closed: Server) -> None:
    own = closed.client.post("/v1/translate", json=TEXT)
    assert (own.status_code, own.json()["code"]) == (401, "key_missing")
    assert own.headers["www-authenticate"] == "Bearer"
    openai = closed.client.post(
        "/v1/completions", json={"prompt": "a"}, headers={"Authorization": "Bearer x"}
    )
    assert openai.status_code == 401 and openai.json()["error"]["code"] == "key_wrong"
    libre = closed.client.post("/translate", json={"q": "a", "target": "de", "api_key": "x"})
    assert (libre.status_code, libre.json()) == (403, {"error": "Invalid API key"})
    deepl_like = closed.client.post("/v2/translate", json={"text": ["a"], "target_lang": "DE"})
    assert deepl_like.status_code == 403 and set(deepl_like.json()) == {"message"}


@pytest.mark.parametrize("form", ["json", "data", "params"])
def test_libretranslates_key_is_a_field(closed: Server, form: str) -> None:
    fields = {"q": "hello", "source": "en", "target": "de", "api_key": "unlimited"}
    answer = closed.client.post("/translate", **{form: fields})  # type: ignore[arg-type]
    assert answer.status_code == 200 and "translatedText" in answer.json()
    parts = closed.client.post("/translate", files={k: (None, v) for k, v in fields.items()})
    assert parts.status_code == 200


def test_a_rate_and_what_is_told_of_it(closed: Server) -> None:
    headers = {"Authorization": "Bearer slow"}
    codes = [closed.client.get("/v1/usage", headers=headers).status_code for _ in range(4)]
    assert codes == [200, 200, 429, 429]
    refused = closed.client.get("/v1/usage", headers=headers)
    assert refused.json()["code"] == "rate_limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 30


def test_a_quota_counts_every_api_and_refuses_whole_requests(closed: Server) -> None:
    headers = {"Authorization": "Bearer small"}

    def used() -> int:
        told = closed.client.get("/v1/usage", headers=headers).json()
        assert told["characters_per_day"] == 20 and told["characters"] == told["characters_today"]
        return int(told["characters"])

    def post(path: str, body: dict[str, Any]) -> httpx.Response:
        return closed.client.post(path, json=body, headers=headers)

    assert post("/v1/translate", {**TEXT, "text": ["hello", "hi"]}).status_code == 200
    assert used() == 7
    assert post("/v1/generate", {"prompt": "abc", "max_tokens": 1}).status_code == 200
    assert used() == 10
    assert post("/generate", {"inputs": "abcd", "parameters": {"max_new_tokens": 1}}).is_success
    assert used() == 14
    refused = post("/v1/translate", {**TEXT, "text": "seven.."})
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    assert int(refused.headers["retry-after"]) <= 86_400
    assert used() == 14
    assert post("/v1/translate", {**TEXT, "text": "six..."}).status_code == 200


def test_a_document_over_the_quota_costs_nothing(closed: Server) -> None:
    headers = {"X-API-Key": "files"}
    form = {"source": "en", "target": "de"}
    for lines, status in ((300, 429), (2, 200)):  # of 8 characters; 300 are several portions
        sent = {"file": ("a.txt", b"A house.\n\n" * lines)}
        answer = closed.client.post("/v1/documents", files=sent, data=form, headers=headers)
        assert answer.status_code == status, answer.text
    told = closed.client.get("/v1/usage", headers=headers).json()
    assert told["characters"] == 16


def test_deepls_client(closed: Server) -> None:
    url = str(closed.client.base_url)
    with pytest.raises(deepl.AuthorizationException):
        deepl.DeepLClient("nobody", server_url=url).translate_text("hello", target_lang="DE")
    translator = deepl.DeepLClient("deepl", server_url=url)
    translator.translate_text("hello", target_lang="DE")
    told = translator.get_usage().character
    assert (told.count, told.limit) == (5, 20)
    with pytest.raises(deepl.QuotaExceededException):
        translator.translate_text("sixteen letters.", target_lang="DE")


def test_other_origins(closed: Server) -> None:
    def allowed(origin: str) -> str | None:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = closed.client.options("/v1/translate", headers=headers)
        return answer.headers.get("access-control-allow-origin")

    assert allowed("https://page.example") == "https://page.example"
    assert allowed("https://other.example") is None


def test_by_default_no_other_origin_may_call(client: httpx.Client) -> None:
    answer = client.get("/v1/models", headers={"Origin": "https://page.example"})
    assert answer.status_code == 200
    assert not any(name.startswith("access-control-") for name in answer.headers)
