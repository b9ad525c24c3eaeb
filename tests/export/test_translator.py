"""Lines through the engine: in order, and as if each were alone."""

from __future__ import annotations

import pytest

from app.bundle import Bundle
from export.translator import BundleTranslator, Result

LINES = ["Good morning.", "", "The train is late again, as ever, my friend.", "x", "7 cats"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_lines_come_back_in_order_as_if_alone(
    request: pytest.FixtureRequest, precision: str
) -> None:
    bundle: Bundle = request.getfixturevalue(f"{precision}_bundle")
    with BundleTranslator(bundle, batch=3) as translate:
        together = translate(LINES, "en", "de")
        alone = [translate([line], "en", "de")[0] for line in LINES]
    assert together == alone
    assert {result.finish_reason for result in together} <= {"stop", "length"}


def test_a_line_that_does_not_fit_is_counted_not_fatal(fp32_bundle: Bundle) -> None:
    with BundleTranslator(fp32_bundle, batch=2) as translate:
        results = translate(["long " * 400, "short"], "en", "fr")
        assert translate([], "en", "fr") == []
    assert results[0] == Result("", "length")
    assert len(results) == 2
