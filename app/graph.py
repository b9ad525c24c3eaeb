"""The borders of a bundle's graph, as its manifest tells them: names, shapes and types.

`export.graphs` makes graphs with these names, `app.engine.graph` holds a bundle's to them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

CacheType = Literal["float32", "float16", "int8"]
LayerName = Annotated[str, StringConstraints(pattern=r"^[^{}]*\{layer\}[^{}]*$")]


class Part(BaseModel):
    """Of a manifest; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ListingSpec(Part):
    """Names in a graph that can compute chosen columns of its LM head for chosen rows.

    In, with defaults by which none is: whole_rows (1,) int64, how many leading rows get logits of
    the whole vocabulary; listed_rows (n,) int64; columns, the head's, (width, columns) int8 with
    column_scales (columns,) float32, or (columns, width) float32; table_ids (m,) int64. Out:
    listed_logits (n, columns); of table_ids the columns, table_rows (m, width), table_scales (m, 1)
    """

    whole_rows: str = "whole_rows"
    listed_rows: str = "listed_rows"
    columns: str = "columns"
    column_scales: str | None = None
    listed_logits: str = "listed_logits"
    table_ids: str = "table_ids"
    table_rows: str = "table_rows"
    table_scales: str | None = None


class GraphSpec(Part):
    """Names of the graph's inputs and outputs; cache names hold `{layer}`.

    ids (batch, time) int64; positions (batch * time,) int64; last_index (batch,) int64, which of
    the batch * time positions is each row's last valid one; seqlens_k (batch,) int32, cached
    tokens + new ones - 1; total_sequence_length () int32, the longest row; caches (batch, heads,
    capacity, head_size), past and present in one buffer; logits (batch, vocabulary) float32;
    best_sums (batch,) float32, of each row the sum of exp(logit - largest). Graphs for GPUs choose
    as well: best_ids (batch,) int64, the id with the largest logit, the lowest of equals. An int8
    cache has its scales in the graph. Products are made of `row_multiple` rows at a time: a run has
    a multiple of them (batch * time, and of last_index), since one left over is added up otherwise.
    """

    ids: str = "input_ids"
    positions: str = "positions"
    last_index: str = "last_index"
    seqlens_k: str = "seqlens_k"
    total_sequence_length: str = "total_sequence_length"
    past_key: LayerName = "past_key.{layer}"
    past_value: LayerName = "past_value.{layer}"
    present_key: LayerName = "present_key.{layer}"
    present_value: LayerName = "present_value.{layer}"
    logits: str = "logits"
    best_ids: str | None = None
    best_sums: str | None = None
    cache_dtype: CacheType = "float32"
    row_multiple: Literal[1, 2] = 1
    listing: ListingSpec | None = None
