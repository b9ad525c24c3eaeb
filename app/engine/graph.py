"""Whether a bundle's graph is what its manifest says: names, types and sizes of every node at its
borders. A session and a bundle flow in; a BundleError names the first node that differs."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnxruntime as ort

from app.bundle import MANIFEST, Bundle, ModelSpec
from app.errors import BundleError
from app.graph import CacheType, ListingSpec

CACHE_TYPES: Final[dict[CacheType, tuple[str, type[Any]]]] = {
    "float32": ("tensor(float)", np.float32),
    "float16": ("tensor(float16)", np.float16),
    "int8": ("tensor(int8)", np.int8),
}

_Kind = tuple[str, tuple[int, ...]]  # a node's type, and those of its dimensions that are fixed


def check_graph(session: ort.InferenceSession, bundle: Bundle) -> None:
    """Names, types and sizes of the graph against the manifest; raises BundleError naming one."""
    model, names = bundle.manifest.model, bundle.manifest.graph
    cache: _Kind = (CACHE_TYPES[names.cache_dtype][0], (model.heads, model.head_size))
    wanted_in: dict[str, _Kind] = {
        names.ids: ("tensor(int64)", ()),
        names.positions: ("tensor(int64)", ()),
        names.last_index: ("tensor(int64)", ()),
        names.seqlens_k: ("tensor(int32)", ()),
        names.total_sequence_length: ("tensor(int32)", ()),
    }
    wanted_out: dict[str, _Kind] = {names.logits: ("tensor(float)", (model.vocabulary,))}
    if names.best_ids is not None:
        wanted_out[names.best_ids] = ("tensor(int64)", ())
    if names.best_sums is not None:
        wanted_out[names.best_sums] = ("tensor(float)", ())
    for layer in range(model.layers):
        for name in (names.past_key, names.past_value):
            wanted_in[name.format(layer=layer)] = cache
        for name in (names.present_key, names.present_value):
            wanted_out[name.format(layer=layer)] = cache
    if names.listing is not None:
        optional, more = _listing(names.listing, model)
        wanted_in |= optional
        wanted_out |= more
    for side, wanted, nodes in (
        ("input", wanted_in, session.get_inputs() + session.get_overridable_initializers()),
        ("output", wanted_out, session.get_outputs()),
    ):
        found = {
            node.name: (node.type, tuple(d for d in node.shape if isinstance(d, int)))
            for node in nodes
        }
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise BundleError(
                    f"{side} {name!r} is {found.get(name, 'missing')} in model.onnx and "
                    f"{wanted.get(name, 'missing')} in {MANIFEST} (model, graph)",
                    param="graph",
                )


def _listing(names: ListingSpec, model: ModelSpec) -> tuple[dict[str, _Kind], dict[str, _Kind]]:
    """Inputs and outputs for chosen columns of the head."""
    eight = names.column_scales is not None
    values = "tensor(int8)" if eight else "tensor(float)"
    wanted_in: dict[str, _Kind] = {
        names.whole_rows: ("tensor(int64)", (1,)),
        names.listed_rows: ("tensor(int64)", ()),
        names.table_ids: ("tensor(int64)", ()),
        names.columns: (values, (model.width,)),
    }
    wanted_out: dict[str, _Kind] = {
        names.listed_logits: ("tensor(float)", ()),
        names.table_rows: (values, (model.width,)),
    }
    if names.column_scales:
        wanted_in[names.column_scales] = ("tensor(float)", ())
    if names.table_scales:
        wanted_out[names.table_scales] = ("tensor(float)", (1,))
    return wanted_in, wanted_out
