"""The two stages, pretrain and fine-tune: from a recipe and folders to a run that is going.

Thin: it finds the sources, makes or reuses the shards, builds the stream of batches that the stage
learns from, and hands all to the loop.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from hashlib import file_digest
from hashlib import sha256 as hash256
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from training.batches import Batch, PairRows, Stream, Tags, TextRows
from training.checkpoint import commit, load_checkpoint, recover_folder
from training.config import RunConfig, differences
from training.corpus import (
    NAMES,
    RULES,
    Cleaner,
    LeakCheck,
    Source,
    files_of,
    find_sources,
    first_match,
    require_languages,
    weight_of,
)
from training.errors import CheckpointError, ConfigError, CorpusError
from training.evaluate import flat, losses, token_bytes, valid_batches
from training.learner import Learner
from training.loop import Run, autocast
from training.model import GPT, preset
from training.shards import FORMAT, Shard, Side, prepare
from training.tokenizer import END, GENERATE, SEPARATOR, TRANSLATE, load_tokenizer, sha256


def start(
    config: RunConfig, corpus: Path, folder: Path, tokenizer_file: Path,
    init: Path | None = None, test_folders: list[Path] | None = None, device: str = "auto",
    progress: bool = True,
) -> Path:  # fmt: skip
    """Run a stage to its end in `folder` (or go on with it); returns the checkpoint's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _remember(folder, config)
    tokenizer = load_tokenizer(tokenizer_file)
    tags = _tags(config, tokenizer)
    model = _model(config, tokenizer, init, _device(device))
    sources = [s for s in find_sources(corpus, config.data.languages, config.data.list)
               if weight_of(s, config.data.weights) > 0]  # fmt: skip
    paired = config.stage == "finetune"  # each language must then be in a pair
    learnt = [s for s in sources if not paired or len(s.languages) == 2]
    require_languages(learnt, config.data.languages, f"{'pairs' if paired else 'sources'} "
                      f"with a weight above 0 in corpus {corpus}")  # fmt: skip
    digest = sha256(tokenizer_file)
    train, valid = shards_of(config, sources, tokenizer, digest, folder, test_folders or [])
    weights = [weight_of(s, config.data.weights) for s in sources]
    stream, held = _streams(config, tags, train, valid, weights)
    sizes = token_bytes(tokenizer)
    _, dtype = autocast(config, model.device)
    run = Run(
        config, Learner(model, config, dtype), stream, folder, _meta(config, sources, digest),
        tokenizer_file, progress=progress,
        validate=lambda learner: flat(losses(learner.model, held, sizes, config.mask, dtype)),
    )  # fmt: skip
    return run.train()


def shards_of(
    config: RunConfig, sources: list[Source], tokenizer: Tokenizer, digest: str, folder: Path,
    test_folders: list[Path],
) -> tuple[list[Shard], list[Shard]]:  # fmt: skip
    """The run's shards, made once; made anew when data, tokenizer or test sets differ.

    Raises CorpusError when they differ and the run has steps behind it.
    """
    described = [
        RULES, FORMAT, digest, config.data.valid_examples,
        [_digest(path) for path in files_of(test_folders)],
        [[s.key, *(_digest(p) for p in s.paths)] for s in sources],
    ]  # fmt: skip
    mark = hash256(json.dumps(described).encode()).hexdigest()
    data = folder / "shards"
    done = data / "done"
    before = done.read_text(encoding="utf-8") if done.exists() else ""
    if before == mark:
        stems = [data / s.key.replace("/", "_") for s in sources]
        return tuple(  # type: ignore[return-value]
            [Shard(s.with_name(f"{s.name}.{part}.bin")) for s in stems]
            for part in ("train", "valid")
        )
    if before and (folder / "last").exists():
        raise CorpusError(
            f"{folder}: corpus, test sets or tokenizer are not those the run was started with; "
            "use another folder for another run"
        )
    done.unlink(missing_ok=True)  # from here on the folder is of no use until it is whole
    cleaner = Cleaner(LeakCheck.of_folders(test_folders))
    made = prepare(sources, tokenizer, digest, cleaner, data, config.data.valid_examples)
    (folder / "corpus.txt").write_text(cleaner.report.table() + "\n", encoding="utf-8")
    done.write_text(mark, encoding="utf-8")
    return made


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "blake2b").hexdigest()


def _tags(config: RunConfig, tokenizer: Tokenizer) -> Tags:
    return Tags(
        _id(tokenizer, END), _id(tokenizer, SEPARATOR),
        {code: _id(tokenizer, f"<|src:{code}|>") for code in config.data.languages},
        {code: _id(tokenizer, f"<|tgt:{code}|>") for code in config.data.languages},
    )  # fmt: skip


def _streams(
    config: RunConfig, tags: Tags, train: list[Shard], valid: list[Shard], weights: list[float]
) -> tuple[Stream, list[Batch]]:
    data = config.data
    paired = [i for i, s in enumerate(train) if len(s.header.languages) == 2]
    pairs = held_pairs = text = None
    length = data.max_tokens
    if config.stage == "finetune":
        pairs, held_pairs = (
            PairRows([shards[i] for i in paired], [passes[i] for i in paired], tags, length,
                     data.directions)
            for shards, passes in ((train, weights), (valid, [1.0] * len(train)))
        )  # fmt: skip
    if config.stage == "pretrain" or data.text_share:
        text = TextRows(train, weights, tags.end, length)
    held_text = {}
    for code in data.languages if text else ():
        mine = _text_in(code, valid)
        held_text[code] = TextRows(mine, [1.0] * len(mine), tags.end, length)
    micro = max(1, config.batch_tokens // config.accumulate)
    held = valid_batches(held_pairs, held_text, micro, data.valid_examples)
    return Stream(pairs, text, micro, config.seed, data.text_share), held


def _text_in(language: str, shards: list[Shard]) -> list[Shard | Side]:
    """Running text in a language; where there is none, that side of the pairs."""
    text: list[Shard | Side] = [s for s in shards if s.header.languages == (language,) and len(s)]
    return text or [
        Side(s, s.header.languages.index(language)) for s in shards
        if len(s.header.languages) == 2 and language in s.header.languages
    ]  # fmt: skip


def _model(config: RunConfig, tokenizer: Tokenizer, init: Path | None, device: torch.device) -> GPT:
    torch.manual_seed(config.seed)
    entries = tokenizer.get_vocab_size()
    wanted = preset(config.model, entries, dropout=config.dropout)
    if config.data.max_tokens > wanted.context:
        raise ConfigError(
            f"data.max_tokens = {config.data.max_tokens}: the context of model = "
            f"{config.model!r} is {wanted.context}"
        )
    if init is None:
        return GPT(wanted).to(device)
    model, _ = load_checkpoint(init)
    if model.config.vocabulary != entries:
        raise ConfigError(
            f"init {init}: {model.config.vocabulary} entries, the tokenizer has {entries}"
        )
    fresh = GPT(wanted)
    if replace(model.config, dropout=config.dropout) != wanted:
        raise ConfigError(f"init {init}: is {model.config}, the recipe's model is {wanted}")
    fresh.load_state_dict(model.state_dict())
    return fresh.to(device)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device = {name!r}: no CUDA device is at hand")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device = {name!r}: must be auto, cpu or cuda") from None


def _remember(folder: Path, config: RunConfig) -> None:
    """Keep the recipe beside the run; a resumed run must have the same one."""
    file = folder / "config.json"
    if recover_folder(folder / "last"):
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file}: {error}") from None
        for key, then, now in differences(before, config):
            raise ConfigError(
                f"{folder}: was started with {key} = {then!r}, now {now!r}; "
                "use another folder for another run"
            )
        return
    file.write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")


def _meta(config: RunConfig, sources: list[Source], digest: str) -> dict[str, Any]:
    both = {s.languages for s in sources if len(s.languages) == 2}
    globs = config.data.directions or ("*",)
    pairs = sorted(
        (a, b) for a, b in both | {(b, a) for a, b in both}
        if any(fnmatchcase(f"{a}-{b}", glob) for glob in globs)
    )  # fmt: skip
    translates = config.stage == "finetune"
    return {
        "format_version": 1,
        "stage": config.stage,
        "mask": config.mask,
        "languages": {code: NAMES.get(code, code) for code in config.data.languages},
        "pairs": [list(p) for p in pairs] if translates else [],
        "templates": {"generate": GENERATE, **({"translate": TRANSLATE} if translates else {})},
        "corpora": [
            {"name": s.key, "licence": first_match(s, config.data.licences, "")} for s in sources
        ],
        "config": json.loads(json.dumps(asdict(config))),
        "commit": commit(),
        "tokenizer_sha256": digest,
    }


def _id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise ConfigError(f"the tokenizer has no {token}: was it trained for these languages?")
    return int(index)
