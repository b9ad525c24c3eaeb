"""An encoder-decoder of equal size on the same data: transformers' MarianMTModel from scratch.

A fine-tuning recipe and folders flow in, as into `gpt2-mt train finetune`; a checkpoint, the curve
of losses and `results.json` (BLEU and chrF of greedy and beam search) flow out. Batches, their
order, budget, loss, optimiser and schedule are those of our own runs: only the network differs.
Run as `python -m benchmarks.encoder_decoder --help`; transformers comes with the extra `export`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GenerationConfig, MarianConfig, MarianMTModel

from training.batches import IGNORED, Batch, Cursor, PairRows, Stream
from training.config import RunConfig, load_recipe
from training.corpus import Source, find_sources, weight_of
from training.dataset import shards_of
from training.errors import ConfigError
from training.evaluate import token_bytes, valid_batches
from training.loop import autocast
from training.losses import cross_entropy_sum
from training.model import GPT, ModelConfig, preset
from training.optim import build_optimisers, rate_factor
from training.scores import TestSet, find_sets, score
from training.shards import Shard
from training.stages import tags_of
from training.tokenizer import SPECIAL, TRANSLATE, load_tokenizer, sha256

PAD = SPECIAL - 1  # the last reserved id: pads, and starts every target, as Marian has it


@dataclass(frozen=True)
class Sides:
    """A batch for two networks: source (batch, longest source), inputs and targets (batch, ...)."""

    source: Tensor
    seen: Tensor  # which source positions are real
    inputs: Tensor  # the target shifted right behind PAD
    targets: Tensor  # IGNORED behind the end


def split(batch: Batch) -> Sides:
    """Prompts go to the encoder, answers with their end to the decoder; no token is lost."""
    prefix, answer = batch.prefix[:, None], (batch.lengths - batch.prefix + 1)[:, None]
    places = torch.arange(int(prefix.max()), device=batch.ids.device)
    seen = places < prefix
    source = batch.ids[:, : len(places)].where(seen, PAD)
    places = torch.arange(int(answer.max()), device=batch.ids.device)
    last = batch.targets.shape[1] - 1
    targets = batch.targets.gather(1, (prefix - 1 + places).clamp(max=last))
    targets = targets.where(places < answer, IGNORED)
    inputs = torch.full_like(targets, PAD)
    inputs[:, 1:] = targets[:, :-1].where(targets[:, :-1] != IGNORED, PAD)
    return Sides(source, seen.long(), inputs, targets)


def marian(ours: ModelConfig, encoder: int, decoder: int, device: torch.device) -> MarianMTModel:
    """A MarianMTModel of our width, heads and vocabulary whose inner width makes the sizes equal.

    Raises ConfigError if no inner width brings it within 3 % of our parameters.
    """
    width = ours.width
    with torch.device("meta"):
        wanted = GPT(ours).parameters_count()
    attention, norm = 4 * (width * width + width), 2 * width
    fixed = ours.vocabulary * width + encoder * (attention + 2 * norm + width)
    fixed += decoder * (2 * attention + 3 * norm + width)
    inner = max(8, round((wanted - fixed) / ((encoder + decoder) * (2 * width + 1)) / 8) * 8)
    model = MarianMTModel(
        MarianConfig(  # type: ignore[no-untyped-call]
            vocab_size=ours.vocabulary, d_model=width, max_position_embeddings=ours.context,
            encoder_layers=encoder, decoder_layers=decoder,
            encoder_attention_heads=ours.heads, decoder_attention_heads=ours.heads,
            encoder_ffn_dim=inner, decoder_ffn_dim=inner, dropout=ours.dropout,
            activation_function="gelu_new", scale_embedding=True, pad_token_id=PAD,
            decoder_start_token_id=PAD, eos_token_id=0, bos_token_id=0, forced_eos_token_id=None,
            # the fused kernel's backward is slow for short rows on a CPU, see training/model.py
            attn_implementation="eager" if device.type == "cpu" else "sdpa",
        )
    )  # fmt: skip
    found = parameters(model)
    if abs(found - wanted) > 0.03 * wanted:
        raise ConfigError(f"{encoder} + {decoder} layers: {found:,} parameters, ours {wanted:,}")
    model.to(device)  # type: ignore[arg-type]
    return model


def parameters(model: nn.Module) -> int:
    """Learnt ones: Marian's positions are fixed sines."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class _Named(nn.Module):
    """A model whose inner matrices go by GPT-2's names, so that `build_optimisers` knows them."""

    def __init__(self, model: MarianMTModel) -> None:
        super().__init__()
        self.model = model

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name.replace(".layers.", ".h."), parameter


def batch_loss(
    model: MarianMTModel, batch: Batch, smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The summed loss in nats and the targets that it is over."""
    sides = split(batch)
    hidden = model.model(
        input_ids=sides.source, attention_mask=sides.seen, decoder_input_ids=sides.inputs,
        use_cache=False,
    ).last_hidden_state  # fmt: skip
    chosen = sides.targets != IGNORED
    targets = sides.targets[chosen]
    weight = model.model.shared.weight
    return cross_entropy_sum(hidden[chosen].float(), weight, targets, smoothing, dtype), targets


def train(
    model: MarianMTModel, config: RunConfig, batches: Iterator[Batch], log: Path
) -> dict[str, Any]:
    """To the recipe's bound of steps or tokens; returns what it took and the last losses' mean."""
    amp, dtype = autocast(config, model.device)
    optimisers = build_optimisers(_Named(model), config.optimiser)
    losses: list[float] = []
    tokens, begin = 0, time.monotonic()
    model.train()
    with log.open("w", encoding="utf-8", buffering=1) as file:
        while (progress := _progress(config, len(losses), tokens)) < 1:
            micro = [next(batches).to(model.device) for _ in range(config.accumulate)]
            count = sum(int((b.targets != IGNORED).sum()) for b in micro)
            losses.append(0.0)
            for batch in micro:
                with amp:
                    loss, _ = batch_loss(model, batch, config.label_smoothing, dtype)
                (loss / count).backward()  # type: ignore[no-untyped-call]
                losses[-1] += loss.item() / count
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimiser.clip)
            for optimiser in optimisers.values():
                for group in optimiser.param_groups:
                    group["lr"] = group["peak"] * rate_factor(progress, config.optimiser)
                optimiser.step()
                optimiser.zero_grad()
            tokens += sum(int(b.lengths.sum()) for b in micro)
            seconds = round(time.monotonic() - begin, 2)
            entry = {"step": len(losses), "loss": losses[-1], "tokens": tokens}
            file.write(json.dumps({**entry, "elapsed_s": seconds}) + "\n")
            if len(losses) % 50 == 0:
                _say(f"step {len(losses)}: loss {losses[-1]:.3f}, {tokens / seconds:,.0f} tok/s")
    tail = losses[-50:]
    return {"steps": len(losses), "tokens": tokens, "seconds": seconds,
            "training_loss": round(sum(tail) / len(tail), 4)}  # fmt: skip


def _progress(config: RunConfig, steps: int, tokens: int) -> float:
    return steps / config.steps if config.steps else tokens / config.tokens


@torch.inference_mode()
def held_out(model: MarianMTModel, batches: Sequence[Batch], sizes: Tensor) -> dict[str, Any]:
    """By direction: mean loss in nats per token and bits per byte of the held-out answers."""
    model.train(False)
    sums: dict[str, list[float]] = {}
    for batch in batches:
        loss, targets = batch_loss(model, batch.to(model.device), 0.0, torch.float32)
        entry = sums.get(batch.tag, [0.0, 0.0, 0.0])
        found = (float(loss), len(targets), int(sizes[targets.cpu()].sum()))
        sums[batch.tag] = [a + b for a, b in zip(entry, found, strict=True)]
    return {tag: {"loss": nats / count, "bits_per_byte": nats / math.log(2) / size}
            for tag, (nats, count, size) in sums.items()}  # fmt: skip


@torch.inference_mode()
def translate(
    model: MarianMTModel, tokenizer: Tokenizer, test: TestSet, beam: int, rows: int = 64
) -> list[tuple[str, str]]:
    """(text, finish reason) of each line of a test set, in order, by transformers' `generate`."""
    model.train(False)
    tags = [t.format(source=test.source, target=test.target) for t in TRANSLATE if t != "{text}"]
    first, second, separator = (tokenizer.token_to_id(tag) for tag in tags)
    texts = tokenizer.encode_batch(list(test.sources), add_special_tokens=False)
    prompts = [[first, second, *text.ids, separator] for text in texts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    results = [("", "")] * len(prompts)
    for start in range(0, len(order), rows):
        block = order[start : start + rows]
        longest = len(prompts[block[-1]])
        ids = torch.full((len(block), longest), PAD)
        for row, i in enumerate(block):
            ids[row, : len(prompts[i])] = torch.tensor(prompts[i])
        ids = ids.to(model.device)
        room = min(3 * longest + 32, model.config.max_position_embeddings - 1)
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            num_beams=beam, do_sample=False, max_new_tokens=room, pad_token_id=PAD,
            decoder_start_token_id=PAD, bos_token_id=0, eos_token_id=0, bad_words_ids=[[PAD]],
        )  # fmt: skip
        seen = (ids != PAD).long()
        outputs = model.generate(ids, attention_mask=seen, generation_config=settings)
        for i, output in zip(block, outputs[:, 1:].tolist(), strict=True):
            end = output.index(0) if 0 in output else -1
            text = tokenizer.decode([t for t in output[:end] if t != PAD] if end >= 0 else output)
            results[i] = (text, "stop" if end >= 0 else "length")
    return results


def run(
    config: RunConfig, corpus: Path, tokenizer_file: Path, tests: Sequence[Path], out: Path,
    sets: Sequence[str], limit: int = 0, layers: tuple[int, int] = (3, 2), beam: int = 4,
    device: str = "cpu", shared: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train and score; returns what is in `results.json`: `scores` are greedy, `beam` by beam.

    The sets lie in the first folder of `tests`; the lines of all of them are kept out of training.
    Raises ConfigError for a recipe whose keys this baseline cannot follow.
    """
    _refuse(config)
    out.mkdir(parents=True, exist_ok=True)
    data, tokenizer, place = config.data, load_tokenizer(tokenizer_file), torch.device(device)
    tests_of = find_sets(tests[0], data.languages, sets, limit)
    sources = [s for s in find_sources(corpus, data.languages, data.list)
               if weight_of(s, data.weights) > 0]  # fmt: skip
    digest = sha256(tokenizer_file)
    made = shards_of(config, sources, tokenizer, digest, out, list(tests), shared)
    stream, held = streams(config, tokenizer, sources, *made)
    torch.manual_seed(config.seed)
    ours = preset(config.model, tokenizer.get_vocab_size(), dropout=config.dropout)
    model = marian(ours, *layers, place)
    _say(f"{parameters(model):,} parameters, inner width {model.config.encoder_ffn_dim}")
    batches = (batch for batch in stream(Cursor()) if batch is not None)  # one rank: never None
    results = train(model, config, batches, out / "metrics.jsonl")
    model.save_pretrained(out / "checkpoint")
    results |= {
        "model": "MarianMTModel", "layers": layers, "inner": model.config.encoder_ffn_dim,
        "parameters": parameters(model), "config": asdict(config),
        "held_out": held_out(model, held, token_bytes(tokenizer)), "beam_size": beam,
    }  # fmt: skip
    pairs, globs = [set(s.languages) for s in sources], data.directions or ("*",)
    chosen = [t for t in tests_of if {t.source, t.target} in pairs
              and any(fnmatchcase(f"{t.source}-{t.target}", glob) for glob in globs)]  # fmt: skip
    for name, size in (("scores", 1), ("beam", beam)):
        results[name] = [score_of(model, tokenizer, test, size) for test in chosen]
        text = json.dumps(results, indent=2, ensure_ascii=False)
        (out / "results.json").write_text(text + "\n", encoding="utf-8")
    return results


def streams(
    config: RunConfig, tokenizer: Tokenizer, sources: list[Source], train: list[Shard],
    valid: list[Shard],
) -> tuple[Stream, list[Batch]]:  # fmt: skip
    """What our own runs read of the pairs, and the held-out batches."""
    data, tags, micro = config.data, tags_of(config, tokenizer), config.batch_tokens
    micro = max(1, micro // config.accumulate)
    paired = [i for i, source in enumerate(sources) if len(source.languages) == 2]
    pairs, held = (
        PairRows([shards[i] for i in paired],
                 [weight_of(sources[i], data.weights) if shards is train else 1.0 for i in paired],
                 tags, data.max_tokens, data.directions, data.source_noise)
        for shards in (train, valid)
    )  # fmt: skip
    stream = Stream(pairs, None, micro, config.seed)
    return stream, valid_batches(held, {}, micro, data.valid_examples)


def score_of(
    model: MarianMTModel, tokenizer: Tokenizer, test: TestSet, beam: int
) -> dict[str, Any]:
    begin = time.monotonic()
    found = score(test, translate(model, tokenizer, test, beam))
    _say(f"beam {beam} {test.name} {test.source}-{test.target}: {found.bleu:.2f} BLEU, "
         f"{found.chrf:.2f} chrF")  # fmt: skip
    return {**found.as_dict(), "seconds": round(time.monotonic() - begin, 1)}


def _refuse(config: RunConfig) -> None:
    values = {
        "stage": config.stage if config.stage != "finetune" else "", "minutes": config.minutes,
        "ema": config.ema, "average": config.average, "data.text_share": config.data.text_share,
        "data.tasks": config.data.tasks, "distil": config.distil.on,
    }  # fmt: skip
    for name, value in values.items():
        if value:
            raise ConfigError(f"{name} = {value!r}: not for the encoder-decoder baseline")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder_decoder",
                                     description=(__doc__ or "").split("\n\n")[0])  # fmt: skip
    add = parser.add_argument
    add("--recipe", required=True, help="a fine-tuning recipe, bounded by steps or tokens")
    add("--corpus", type=Path, required=True, help="folder of corpora")
    add("--tests", type=Path, action="append", required=True,
        help="folder of test sets, kept out of training; the sets lie in the first one given")
    add("--tokenizer", type=Path, required=True, help="tokenizer.json")
    add("--out", type=Path, required=True, help="folder for results.json and the checkpoint")
    add("--sets", required=True, help="names of test sets, comma-separated")
    add("--limit", type=int, default=0, help="sentences of each set (default: all)")
    add("--layers", default="3,2", help="of encoder and decoder (default %(default)s)")
    add("--beam", type=int, default=4, help="beam size beside greedy (default %(default)s)")
    add("--seed", type=int, help="in place of the recipe's")
    add("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (default: all cores)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads or len(os.sched_getaffinity(0)))
    changes = {} if arguments.seed is None else {"seed": arguments.seed}
    encoder, decoder = (int(n) for n in arguments.layers.split(","))
    run(
        load_recipe(arguments.recipe, changes), arguments.corpus, arguments.tokenizer,
        arguments.tests, arguments.out, arguments.sets.split(","), arguments.limit,
        (encoder, decoder), arguments.beam, arguments.device,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
