"""The OpenAPI document and its page."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.api.schemas import GenerateRequest, Problem, TranslateRequest


@pytest.fixture(scope="module")
def document(server: Any) -> dict[str, Any]:
    return server.client.get("/openapi.json").json()


def test_the_page_needs_no_other_host(client: httpx.Client) -> None:
    page = client.get("/docs").text
    assert "https://" not in page.replace("https://fastapi.tiangolo.com/img/favicon.png", "")
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/static-offline-docs/{asset}" in page
        assert client.get(f"/static-offline-docs/{asset}").status_code == 200


def test_the_document_has_the_form_of_openapi(document: Any) -> None:
    operations = [o for path in document["paths"].values() for o in path.values()]
    assert len({o["operationId"] for o in operations}) == len(operations)
    assert "/" not in document["paths"] and set(document["paths"]["/health"]) == {"get"}


def test_every_example_of_a_request_is_answered(client: httpx.Client, document: Any) -> None:
    for path in ("/v1/translate", "/v1/generate"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        examples = content["application/json"]["examples"]
        assert len(examples) >= 3
        for example in examples.values():
            assert client.post(path, json=example["value"]).status_code == 200


def test_answers_and_errors_are_described_with_examples(document: Any) -> None:
    assert set(Problem.model_fields) == set(
        document["components"]["schemas"]["Problem"]["properties"]
    )
    for path in ("/v1/translate", "/v1/generate"):
        responses = document["paths"][path]["post"]["responses"]
        found = set(responses) - {"404"}
        assert found == {"200", "400", "401", "408", "413", "415", "422", "429", "503", "504"}
        for status, response in responses.items():
            for kind, content in response["content"].items():
                assert content.get("example"), (path, status, kind)
                if status != "200":
                    assert kind == "application/problem+json"
                    assert content["example"]["status"] == int(status)
        assert "data: [DONE]" in responses["200"]["content"]["text/event-stream"]["example"]


def test_every_field_of_a_request_is_in_the_document(document: Any) -> None:
    for model in (TranslateRequest, GenerateRequest):
        schema = document["components"]["schemas"][model.__name__]
        assert set(schema["properties"]) == set(model.model_fields)
        assert schema["additionalProperties"] is False
