"""A shortlist goes into a bundle, is verified there, and is used by `gpt2-mt evaluate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from app.bundle import SHORTLIST, Bundle
from app.engine.listing import Columns, least_columns
from app.engine.request import Candidates
from app.engine.session import OnnxDecoder, create_session
from app.errors import BundleError
from app.tasks.shortlist import Shortlist
from export.bundle import build_model, convert_bundle, export_bundle, restore_checkpoint
from export.checkpoint import load_checkpoint
from export.errors import ExportError
from export.evaluate import open_translator
from export.graphs import FloatWeights, Graph, listing_names
from export.translator import BundleTranslator
from gpt2_mt.cli import main
from tests.conftest import shortlist_arrays


def test_there_and_back(
    listed_bundle: Bundle, shortlist_file: Path, random_checkpoint: Path, tmp_path: Path
) -> None:
    manifest = listed_bundle.manifest
    assert listed_bundle.shortlist_path is not None and manifest.format_version == 2
    assert listed_bundle.shortlist_path.read_bytes() == shortlist_file.read_bytes()
    assert manifest.files[SHORTLIST].bytes == shortlist_file.stat().st_size
    assert Shortlist.of(listed_bundle).candidates("en", "de", [70]) is not None
    restored = restore_checkpoint(listed_bundle, tmp_path / "c")
    assert not (tmp_path / "c" / SHORTLIST).exists()
    precision = manifest.model.precision
    bare = export_bundle(restored.path, tmp_path / "b", precision=precision, verify=False)  # type: ignore[arg-type]
    assert bare.shortlist_path is None and bare.manifest.graph.listing is None


def test_a_bundle_of_another_precision_keeps_it_where_it_can(
    listed_bundle: Bundle, tmp_path: Path
) -> None:
    kept = convert_bundle(listed_bundle, tmp_path / "int4", precision="int4", verify=False)
    assert kept.shortlist_path is not None and listed_bundle.shortlist_path is not None
    assert kept.shortlist_path.read_bytes() == listed_bundle.shortlist_path.read_bytes()
    assert OnnxDecoder(kept, slots=2, threads=1, lists=True).alike is True
    half = convert_bundle(listed_bundle, tmp_path / "fp16", precision="fp16", verify=False)
    assert half.shortlist_path is None and half.manifest.graph.listing is None


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_what_the_graph_has_more(random_checkpoint: Path, precision: str) -> None:
    """The columns' product, the table, and which rows get all columns; nothing else changes, but
    that an int8 head has one scale a column."""
    source = load_checkpoint(random_checkpoint)
    bare, listed = (
        build_model(source, precision, listing=listing)  # type: ignore[arg-type]
        for listing in (False, True)
    )
    names = [{node.name for node in model.graph.node} for model in (bare, listed)]
    table = ("head", "token_embedding")
    names = [{n for n in of if precision == "fp32" or not n.startswith(table)} for of in names]
    assert names[0] < names[1]
    assert all("list" in n or "table_" in n or n == "ln_f.whole_node" for n in names[1] - names[0])
    outputs = {output.name for output in listed.graph.output}
    assert {"logits", "best_sums", "listed_logits"} <= outputs
    assert not any("list" in output.name for output in bare.graph.output)


def test_the_graph_without_candidates_is_as_ever(
    fp32_bundle: Bundle, random_checkpoint: Path, shortlist_file: Path, tmp_path: Path
) -> None:
    listed = export_bundle(
        random_checkpoint, tmp_path / "b", precision="fp32", verify=False, shortlist=shortlist_file
    )
    prompts = [[5, 6, 7], [8, 9]]
    decoders = [OnnxDecoder(one, slots=2, threads=1) for one in (fp32_bundle, listed)]
    assert np.array_equal(*(decoder.prefill(0, prompts) for decoder in decoders))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("width", [256, 768])
def test_float_columns_of_a_wide_model_have_the_same_bits_beside_any_others(
    width: int, threads: int
) -> None:
    """The tiny model is one panel deep; these are added up in several."""
    rng = np.random.default_rng(width)
    table, x = (rng.normal(size=(n, width)).astype(np.float32) for n in (4000, 40))
    graph, names = Graph(), listing_names("fp32")
    weights = FloatWeights({"wte.weight": table})
    graph.weight("wte.weight", table)
    graph.default(names.table_ids, np.zeros(0, np.int64), "table")
    weights.listed(graph, "x", names)
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])
    inner = helper.make_graph(
        graph.nodes, "head", [shape, *graph.inputs], graph.outputs,
        list(graph.initializers.values()),
    )  # fmt: skip
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = create_session(model.SerializeToString(), "cpu", threads)

    def product(rows: int, columns: Columns) -> NDArray[np.float32]:
        given = {"x": x[:rows], names.columns: columns.values}
        found: NDArray[np.float32] = session.run([names.listed_logits], given)[0]
        return found

    least = least_columns(threads, 2)
    every = Columns(table, None, 4096)
    [places] = every.places([Candidates(np.arange(4000), 4000)], running=True)
    whole = product(40, every)[:, places]
    columns = Columns(table, None, least)
    for size in (9, 30, 300, 1100):
        ids = np.sort(rng.choice(4000, size, replace=False))
        [places] = columns.places([Candidates(ids, 4000)], running=True)
        for rows in (2, 3, 11, 40):
            found = product(rows, columns)[:, places]
            assert np.array_equal(found, whole[:rows, ids]), (size, columns.size, rows)


@pytest.mark.parametrize("change", ["file", "graph", "byte", "node"])
def test_a_bundle_that_lost_its_half_of_it(
    listed_bundle: Bundle, tmp_path: Path, change: str
) -> None:
    copy = Path(shutil.copytree(listed_bundle.path, tmp_path / "b"))
    manifest = json.loads((copy / "manifest.json").read_text())
    if change == "file":
        del manifest["files"][SHORTLIST]
    elif change == "graph":
        manifest["graph"]["listing"] = None
    elif change == "node":
        manifest["graph"]["listing"]["columns"] = "others"
    else:
        data = bytearray((copy / SHORTLIST).read_bytes())
        data[-9] ^= 1
        (copy / SHORTLIST).write_bytes(data)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as caught:
        OnnxDecoder(Bundle.open(copy), slots=1, threads=1)
    expected = {"byte": f"files.{SHORTLIST}.sha256", "node": "graph"}
    assert caught.value.param == expected.get(change, "graph.listing")


def test_what_cannot_be_exported(
    random_checkpoint: Path, shortlist_file: Path, tiny_tokenizer: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    target = tmp_path / "b"
    with pytest.raises(ExportError, match="not for fp16"):
        export_bundle(random_checkpoint, target, precision="fp16", shortlist=shortlist_file)
    with pytest.raises(ExportError, match="nowhere"):
        export_bundle(
            random_checkpoint, target, precision="fp32", verify=False, shortlist=Path("nowhere")
        )
    other = tmp_path / "other.npz"
    arrays = shortlist_arrays(tiny_tokenizer) | {"tokenizer_sha256": np.array("0" * 64)}
    np.savez(other, **arrays)
    words = ["export", str(random_checkpoint), str(target), "--precision", "fp32"]
    assert main([*words, "--shortlist", str(other)]) != 0
    assert "tokenizer_sha256" in capsys.readouterr().err and not target.exists()


def test_evaluation_with_a_shortlist(
    listed_bundle: Bundle, random_checkpoint: Path, tmp_path: Path,
    sentences: list[str], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with BundleTranslator(listed_bundle, batch=4, threads=1, shortlist=True) as translate:
        found = translate(sentences[:3], "en", "de")
        assert found == [translate([line], "en", "de")[0] for line in sentences[:3]]
    with pytest.raises(ExportError, match="is no bundle"):
        open_translator(random_checkpoint, 4, shortlist=True)
    for code, lines in (("en", sentences[:3]), ("de", sentences[6:9])):
        (tmp_path / f"toy.{code}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["evaluate", str(listed_bundle.path), str(tmp_path), "--pairs", "en-de", "--limit", "2"]
    texts = []
    for more in ([], ["--shortlist"]):
        assert main([*words, "--out", str(tmp_path / "out"), *more]) == 0
        texts.append((tmp_path / "out" / "toy.en-de.hyp").read_text(encoding="utf-8"))
    assert texts[0] != texts[1] and "toy" in capsys.readouterr().out
