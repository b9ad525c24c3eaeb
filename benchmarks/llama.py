"""llama.cpp's batched greedy decoding by its Python binding: a GGUF file and prompts in, ids out.

The binding's own `Llama` runs one sequence at a time; here all prompts are read in one call and
then one token a sequence is decoded in each, as llama.cpp's server does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

Ids = list[list[int]]
ROWS, TOKENS = 32, 2048  # sequences and tokens of one call, at most


class Batched:
    def __init__(self, path: Path, *, threads: int, flash: bool, half: bool) -> None:
        self._lib: Any = llama_cpp
        lib = self._lib
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(
            str(path).encode(), lib.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {path.name}")
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = TOKENS
        params.n_seq_max = ROWS
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.flash_attn_type = int(flash)
        params.type_k = params.type_v = lib.GGML_TYPE_F16 if half else lib.GGML_TYPE_F32
        params.no_perf = True
        self._context = lib.llama_init_from_model(self._model, params)
        self._entries = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(TOKENS, 0, 1)

    def __call__(self, prompts: Ids, tokens: int) -> Ids:
        lib = self._lib
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        rows: Ids = [[] for _ in prompts]
        fed = prompts
        for _ in range(tokens):
            chosen = self._run(fed, [len(p) + len(r) for p, r in zip(prompts, rows, strict=True)])
            for row, token in zip(rows, chosen, strict=True):
                row.append(token)
            fed = [[token] for token in chosen]
        return rows

    def _run(self, fed: Ids, ends: list[int]) -> list[int]:
        """Feed tokens that end before the positions `ends`; the likeliest next one of each row."""
        batch, at, last = self._batch, 0, []
        for row, (ids, end) in enumerate(zip(fed, ends, strict=True)):
            for offset, token in enumerate(ids):
                batch.token[at] = token
                batch.pos[at] = end - len(ids) + offset
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = row
                batch.logits[at] = offset == len(ids) - 1
                at += 1
            last.append(at - 1)
        batch.n_tokens = at
        if status := self._lib.llama_decode(self._context, batch):
            raise ValueError(f"llama_decode answered {status}")
        return [int(self._logits(i).argmax()) for i in last]

    def _logits(self, at: int) -> Any:
        pointer = self._lib.llama_get_logits_ith(self._context, at)
        return np.ctypeslib.as_array(pointer, shape=(self._entries,))
