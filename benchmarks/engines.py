"""Every engine behind one function: prompts and a number of tokens in, that many new ids a row out.

Greedy, fixed length, ends ignored. `load` imports what the engine needs and nothing else; options
are the engine's own (threads, precisions, caches). Ours goes through the real engine, as a user's
batch does. worker.py gives each engine its own process.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

Ids = list[list[int]]
Generate = Callable[[Ids, int], Ids]


def ours(
    folder: Path, threads: int = 0, slots: int = 32, device: str = "", engines: int = 1
) -> Generate:
    """With a device it is the decoder for GPUs, which runs on `cpu` too; engines share the slots,
    each has so many threads."""
    from app.bundle import Bundle
    from app.engine.device import DeviceDecoder
    from app.engine.engine import Engine
    from app.engine.group import EngineGroup
    from app.engine.request import Decoder, Event, Failed, Request, Token
    from app.engine.session import OnnxDecoder
    from app.metrics import Metrics

    options: dict[str, Any] = {"slots": -(-slots // engines), "threads": threads or None}

    def decoder() -> Decoder:
        if device:
            return DeviceDecoder(Bundle.open(folder), device=device, **options)  # type: ignore[arg-type]
        return OnnxDecoder(Bundle.open(folder), **options)

    made = [Engine(decoder(), Metrics()) for _ in range(engines)]
    engine = EngineGroup(made, 10**6) if engines > 1 else made[0]
    engine.start()

    def generate(prompts: Ids, tokens: int) -> Ids:
        rows: Ids = [[] for _ in prompts]
        left, done, lock = len(prompts), threading.Event(), threading.Lock()
        failures: list[Exception] = []

        def listener(row: list[int]) -> Callable[[Event], None]:
            def hear(event: Event) -> None:
                nonlocal left
                if isinstance(event, Token):
                    row.append(event.id)
                    return
                if isinstance(event, Failed):
                    failures.append(event.error)
                with lock:  # several engines have several threads
                    left -= 1
                    if not left:
                        done.set()

            return hear

        never: frozenset[int] = frozenset()
        engine.submit([
            Request(tuple(prompt), tokens, listener(row), never)
            for prompt, row in zip(prompts, rows, strict=True)
        ])  # fmt: skip
        done.wait()
        if failures:
            raise failures[0]
        return rows

    return generate


def ctranslate2(folder: Path, inter: int = 1, intra: int = 2, compute: str = "default") -> Generate:
    """With several workers a batch is shared out among them, as `max_batch_size` does."""
    import ctranslate2 as library

    generator = library.Generator(
        str(folder), inter_threads=inter, intra_threads=intra, compute_type=compute
    )
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))

    def generate(prompts: Ids, tokens: int) -> Ids:
        results = generator.generate_batch(
            [[words[i] for i in prompt] for prompt in prompts],
            max_batch_size=-(-len(prompts) // inter),
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            end_token=words[-1],  # never chosen, so nothing else is forbidden
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]

    return generate


def _padded(prompts: Ids, longest: int) -> tuple[Any, Any]:
    import torch

    longest = max(longest, *map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    seen = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # on the left, as `generate` wants it
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        seen[row, longest - len(prompt) :] = 1
    return ids, seen


def _hugging_face(model: Any, longest: int = 0, **options: Any) -> Generate:
    import torch
    from transformers import GenerationConfig

    def generate(prompts: Ids, tokens: int) -> Ids:
        ids, seen = (tensor.to(model.device) for tensor in _padded(prompts, longest))
        config: Any = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None,
            pad_token_id=0, bos_token_id=None, use_cache=True, **options,
        )  # fmt: skip
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=seen, generation_config=config)
        rows: Ids = out[:, ids.shape[1] :].tolist()
        return rows

    return generate


def transformers(folder: Path, threads: int = 2, dtype: str = "float32", cache: str = "",
                 attention: str = "sdpa", compiled: bool = False, device: str = "cpu",
                 longest: int = 0) -> Generate:  # fmt: skip
    """On `cuda` a static cache has `generate` compile the step itself, with CUDA graphs; prompts
    are padded to `longest`, so that it does so once for each batch."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(threads)
    model: Any = GPT2LMHeadModel.from_pretrained(
        str(folder), dtype=getattr(torch, dtype), attn_implementation=attention
    )
    model.eval()
    model.to(device)
    model.generation_config.eos_token_id = None
    if compiled:
        model.forward = torch.compile(model.forward, dynamic=True)
    return _hugging_face(model, longest, **({"cache_implementation": cache} if cache else {}))


def optimum(folder: Path, threads: int = 2, binding: bool = False) -> Generate:
    import onnxruntime
    from optimum.onnxruntime import ORTModelForCausalLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model: Any = ORTModelForCausalLM.from_pretrained(
        str(folder), session_options=options, use_io_binding=binding
    )
    model.generation_config.eos_token_id = None
    return _hugging_face(model)


def llama_cpp(folder: Path, threads: int = 2, flash: bool = False, half: bool = False) -> Generate:
    from benchmarks.llama import Batched

    return Batched(folder / "model.gguf", threads=threads, flash=flash, half=half)


def genai(folder: Path) -> Generate:
    import numpy as np
    import onnxruntime_genai as library

    model = library.Model(str(folder))
    pad = json.loads((folder / "genai_config.json").read_text())["model"]["pad_token_id"]

    def generate(prompts: Ids, tokens: int) -> Ids:
        longest = max(map(len, prompts))
        padded = np.full((len(prompts), longest), pad, np.int32)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = prompt  # it moves them to the right itself
        params = library.GeneratorParams(model)
        params.set_search_options(
            max_length=longest + tokens, batch_size=len(prompts), do_sample=False
        )
        generator = library.Generator(model, params)
        generator.append_tokens(padded)
        for _ in range(tokens):
            generator.generate_next_token()
        return [generator.get_sequence(i)[-tokens:].tolist() for i in range(len(prompts))]

    return generate


ENGINES: Final[dict[str, Callable[..., Generate]]] = {
    "ours": ours,
    "ctranslate2": ctranslate2,
    "transformers": transformers,
    "optimum": optimum,
    "llama_cpp": llama_cpp,
    "genai": genai,
}
