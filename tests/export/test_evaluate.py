"""Lines of a test set through the engine: in order, and as if each were alone."""

from __future__ import annotations

import pytest

from app.bundle import Bundle
from export.errors import ExportError
from export.evaluate import BundleTranslator, Result, open_translator, translate_lines

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
    results = translate_lines(fp32_bundle.path, ["long " * 400, "short"], "en", "fr", batch=2)
    assert results[0] == Result("", "length")
    assert len(results) == 2
    assert translate_lines(fp32_bundle, [], "en", "fr") == []


def test_a_folder_that_is_no_model_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ExportError, match="neither"):
        open_translator(tmp_path_factory.mktemp("empty"), 4)
