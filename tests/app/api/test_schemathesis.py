"""Every operation of the OpenAPI document, asked with data that is valid and that is not.

No 5xx but a 503 with Retry-After (and a 504 that was asked for); status codes, media types, headers
and bodies of answers are those of the document, errors have the shape of their API.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis import Case, Response
from schemathesis.config import SchemathesisConfig

from app.api.schemas import Problem
from app.main import create_app
from app.settings import Settings
from tests.servers import serve

EXAMPLES = 12  # of each operation, beside those of its schema's boundaries
MEMBERS = {  # of an error
    "LibreTranslate": {"error"},
    "DeepL": {"message"},
    "OpenAI": {"error"},
    "Text Generation Inference": {"error", "error_type"},
    "Open Inference Protocol": {"error"},
}
SETTINGS = Settings(
    slots=8, threads=1, max_characters=400, max_items=8, default_timeout_s=20, retry=False
)
CONFIG = SchemathesisConfig.from_dict(
    {
        "seed": 1,
        "request-timeout": 30,
        "generation": {"max-examples": EXAMPLES, "deterministic": True, "no-shrink": True},
        "checks": {
            # languages, models and sums of lengths are not in the schema
            "positive_data_acceptance": {"enabled": False},
            "not_a_server_error": {"enabled": False},  # `no_failure` says more
        },
    }
)
schema = schemathesis.openapi.from_dict(create_app(SETTINGS).openapi(), config=CONFIG)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The bundled model, behind limits that keep each answer short."""
    with serve(create_app(SETTINGS)) as server:
        yield f"http://127.0.0.1:{server.port}"


@schema.parametrize()
def test_answers_are_those_of_the_document(case: Case, url: str) -> None:
    case.call_and_validate(base_url=url, additional_checks=[no_failure, told_as_its_api_does])


def no_failure(_context: Any, response: Response, case: Case) -> None:
    if response.status_code >= 500:
        body = case.body if isinstance(case.body, dict) else {}
        asked = response.status_code == 504 and "timeout_s" in body
        assert asked or response.status_code == 503, response.text
    if response.status_code in (429, 503):
        assert int(response.headers["retry-after"][0]) > 0


def told_as_its_api_does(_context: Any, response: Response, case: Case) -> None:
    if response.status_code < 400:
        return
    kind, body = response.headers["content-type"][0], response.json()
    (tag,) = case.operation.tags
    if tag in ("v1", "health") or body.get("code") == "not_found":
        assert kind == "application/problem+json"
        assert Problem.model_validate(body).status == response.status_code
    else:
        assert kind == "application/json" and set(body) == MEMBERS[tag]
