"""The two stages, pretrain and fine-tune: from a recipe and folders to a run that is going.

Thin: it finds the sources, makes or reuses the shards, builds the stream of batches that the stage
learns from, and hands all to the loop.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import sha256 as hash256
from pathlib import Path
from typing import Any

import torch

from training.batches import PairRows, Stream, Tags, TextRows
from training.checkpoint import commit, load_checkpoint
from training.config import RunConfig
from training.corpus import NAMES, Cleaner, LeakCheck, Source, find_sources, weight_of
from training.errors import ConfigError
from training.evaluate import flat, losses, token_bytes, valid_batches
from training.loop import Run, autocast
from training.model import GPT, preset
from training.shards import Shard, prepare
from training.tokenizer import GENERATE, TRANSLATE, Tokenizer, load_tokenizer, sha256


def start(
    config: RunConfig, corpus: Path, folder: Path, tokenizer_file: Path,
    init: Path | None = None, test_folders: list[Path] | None = None, device: str = "auto",
    progress: bool = True,
) -> Path:  # fmt: skip
    """Run a stage to its end in `folder` (or go on with it); returns the checkpoint's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _remember(folder, config)
    tokenizer = load_tokenizer(tokenizer_file)
    model = _model(config, tokenizer, init, _device(device))
    sources = [s for s in find_sources(corpus, config.data.languages, config.data.list)
               if weight_of(s, config.data.weights) > 0]  # fmt: skip
    digest = sha256(tokenizer_file)
    train, valid = shards_of(config, sources, tokenizer, digest, folder, test_folders or [])
    weights = [weight_of(s, config.data.weights) for s in sources]
    stream, held = _streams(config, tokenizer, train, valid, weights)
    sizes = token_bytes(tokenizer)
    _, dtype = autocast(config, model.device)
    run = Run(
        config, model, stream, folder, _meta(config, sources, digest), tokenizer_file,
        validate=lambda m: flat(losses(m, held, sizes, config.mask, dtype)), progress=progress,
    )  # fmt: skip
    return run.train()


def shards_of(
    config: RunConfig, sources: list[Source], tokenizer: Tokenizer, digest: str, folder: Path,
    test_folders: list[Path],
) -> tuple[list[Shard], list[Shard]]:  # fmt: skip
    """The run's shards, made once; made anew when data, tokenizer or test sets differ."""
    described = [
        digest, config.data.valid_examples, [str(t) for t in test_folders],
        [[s.key, *((str(p), p.stat().st_size) for p in s.paths)] for s in sources],
    ]  # fmt: skip
    mark = hash256(json.dumps(described).encode()).hexdigest()
    data = folder / "shards"
    done = data / "done"
    if done.exists() and done.read_text() == mark:
        stems = [data / s.key.replace("/", "_") for s in sources]
        return tuple(  # type: ignore[return-value]
            [Shard(s.with_name(f"{s.name}.{part}.bin")) for s in stems]
            for part in ("train", "valid")
        )
    cleaner = Cleaner(LeakCheck.of_folders(test_folders))
    made = prepare(sources, tokenizer, digest, cleaner, data, config.data.valid_examples)
    (folder / "corpus.txt").write_text(cleaner.report.table() + "\n", encoding="utf-8")
    done.write_text(mark)
    return made


def _streams(
    config: RunConfig, tokenizer: Tokenizer, train: list[Shard], valid: list[Shard],
    weights: list[float],
) -> tuple[Stream, list[Any]]:  # fmt: skip
    data = config.data
    tags = Tags(
        _id(tokenizer, "<|endoftext|>"), _id(tokenizer, "<|sep|>"),
        {code: _id(tokenizer, f"<|src:{code}|>") for code in data.languages},
        {code: _id(tokenizer, f"<|tgt:{code}|>") for code in data.languages},
    )  # fmt: skip
    paired = [i for i, s in enumerate(train) if len(s.header.languages) == 2]
    pairs = held_pairs = text = None
    if config.stage == "finetune":
        pairs = PairRows([train[i] for i in paired], [weights[i] for i in paired], tags,
                         data.max_tokens)  # fmt: skip
        held_pairs = PairRows([valid[i] for i in paired], [1.0] * len(paired), tags, data.max_tokens)
    if config.stage == "pretrain" or data.text_share:
        text = TextRows(train, weights, tags.end, data.max_tokens)
    held_text = {}
    for code in data.languages if text else ():
        mine = [s for s in valid if s.header.languages == (code,) and len(s)]
        if mine:
            held_text[code] = TextRows(mine, [1.0] * len(mine), tags.end, data.max_tokens)
    micro = max(1, config.batch_tokens // config.accumulate)
    held = valid_batches(held_pairs, held_text, micro, data.valid_examples)
    return Stream(pairs, text, micro, config.seed, data.text_share), held


def _model(config: RunConfig, tokenizer: Tokenizer, init: Path | None, device: torch.device) -> GPT:
    torch.manual_seed(config.seed)
    entries = tokenizer.get_vocab_size()
    if init is None:
        return GPT(preset(config.model, entries, dropout=config.dropout)).to(device)
    model, _ = load_checkpoint(init)
    if model.config.vocabulary != entries:
        raise ConfigError(
            f"init {init}: {model.config.vocabulary} entries, the tokenizer has {entries}"
        )
    wanted = preset(config.model, entries, dropout=config.dropout)
    fresh = GPT(wanted)
    if {**asdict(model.config), "dropout": 0} != {**asdict(wanted), "dropout": 0}:
        raise ConfigError(f"init {init}: is {model.config}, the recipe's model is {wanted}")
    fresh.load_state_dict(model.state_dict())
    return fresh.to(device)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device = {name!r}: no CUDA device is at hand")
    return torch.device(name)


def _remember(folder: Path, config: RunConfig) -> None:
    """Keep the recipe beside the run; a resumed run must have the same one."""
    file = folder / "config.json"
    values = json.loads(json.dumps(asdict(config)))
    if file.exists() and (folder / "last").exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        for key in sorted(before.keys() | values.keys()):
            if before.get(key) != values.get(key):
                raise ConfigError(
                    f"{folder}: was started with {key} = {before.get(key)!r}, "
                    f"now {values.get(key)!r}; use another folder for another run"
                )
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _meta(config: RunConfig, sources: list[Source], digest: str) -> dict[str, Any]:
    pairs = sorted({s.languages for s in sources if len(s.languages) == 2})
    translates = config.stage == "finetune"
    return {
        "format_version": 1,
        "stage": config.stage,
        "mask": config.mask,
        "languages": {code: NAMES.get(code, code) for code in config.data.languages},
        "pairs": [list(p) for a, b in pairs for p in ((a, b), (b, a))] if translates else [],
        "templates": {"generate": GENERATE, **({"translate": TRANSLATE} if translates else {})},
        "corpora": [{"name": s.key, "licence": ""} for s in sources],
        "config": json.loads(json.dumps(asdict(config))),
        "commit": commit(),
        "tokenizer_sha256": digest,
    }


def _id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise ConfigError(f"the tokenizer has no {token}: was it trained for these languages?")
    return int(index)
