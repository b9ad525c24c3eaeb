"""The two stages, pretrain and fine-tune: from a recipe and folders to a run that is going.

Thin: it finds the sources, makes or reuses the shards, builds the stream of batches that the stage
learns from, and hands all to the loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from training.batches import Batch, PairRows, Stream, Tags, TextRows
from training.checkpoint import commit, load_checkpoint, recover_folder
from training.config import RunConfig, differences
from training.corpus import (
    NAMES,
    Source,
    find_sources,
    first_match,
    require_directions,
    require_languages,
    weight_of,
)
from training.corruption import Vocabulary
from training.dataset import REPORT, shards_of
from training.distil import distiller_of
from training.distributed import Ranks, device_of_rank, joined
from training.errors import CheckpointError, ConfigError, CorpusError
from training.evaluate import (
    auxiliary_batches,
    auxiliary_figures,
    flat,
    losses,
    token_bytes,
    valid_batches,
)
from training.judge import judge_of
from training.learner import Learner
from training.loop import Run, autocast
from training.mixture import Mixture
from training.model import GPT, preset
from training.results import write_validation
from training.shards import Shard, Side
from training.teachers import thinned
from training.tokenizer import (
    END,
    GENERATE,
    MASK,
    SEPARATOR,
    TRANSLATE,
    load_tokenizer,
    sha256,
    task_token,
    tokens_of,
    with_tokens,
)
from training.words import Keeper

INIT = "init"  # in place of a preset: sizes, languages and tasks of the checkpoint to start from


def start(
    config: RunConfig, corpus: Path, folder: Path, tokenizer_file: Path,
    init: Path | None = None, test_folders: list[Path] | None = None, device: str = "auto",
    progress: bool = True, adds: Sequence[Path] = (), shared: Path | None = None,
) -> Path:  # fmt: skip
    """Run a stage to its end in `folder` (or go on with it); returns the checkpoint's folder.

    The sources of the folders `adds` join those of the corpus. With `shared`, a folder, runs that
    read the same have their shards there.
    """
    place = device_of_rank(find_device(device))
    with joined(place) as ranks:
        with ranks.first_alone():  # it makes the files that the others read
            run = _prepared(config, corpus, folder, tokenizer_file, init, test_folders or [],
                            place, progress, adds, shared, ranks)  # fmt: skip
        checkpoint = run(ranks=ranks).train()
        if ranks.first:
            write_validation(folder)
        return checkpoint


def _prepared(
    config: RunConfig, corpus: Path, folder: Path, tokenizer_file: Path, init: Path | None,
    test_folders: list[Path], device: torch.device, progress: bool, adds: Sequence[Path],
    shared: Path | None, ranks: Ranks,
) -> Callable[..., Run]:  # fmt: skip
    """The run, with shards and all else that it reads at hand; made by calling what is returned
    with `ranks`, on all ranks at a time, since they share the model."""
    folder.mkdir(parents=True, exist_ok=True)
    _remember(folder, config)
    tokenizer_file = _fitted(config, tokenizer_file, init, folder)
    tokenizer = load_tokenizer(tokenizer_file)
    tags = tags_of(config, tokenizer)
    model, before = _model(config, tokenizer, init, device)
    data = config.data
    sources = [s for s in find_sources(corpus, data.languages, data.list, adds, data.tasks)
               if weight_of(s, data.weights) > 0]  # fmt: skip
    paired = config.stage == "finetune"  # each language must then be in a pair
    learnt = [s for s in sources if not paired or len(s.languages) == 2]
    require_languages(learnt, () if data.tasks else data.languages,
                      f"{'pairs' if paired else 'sources'} with a weight above 0 in corpus "
                      f"{corpus}")  # fmt: skip
    require_directions(sources, data.directions if paired else ())
    digest = sha256(tokenizer_file)
    train, valid = shards_of(config, sources, tokenizer, digest, folder, test_folders, shared)
    if not any(map(len, train)):
        raise CorpusError(f"corpus {corpus}: nothing is left of it; {folder / REPORT} says "
                          "what was dropped")  # fmt: skip
    weights = [weight_of(s, config.data.weights) for s in sources]
    mixture = _mixture(config, tokenizer)
    stream, held, tasks = _streams(config, tags, mixture, train, valid, weights)
    sizes = token_bytes(tokenizer)
    context, dtype = autocast(config, model.device)
    kept = folder / "teachers"
    name = f".{ranks.rank}of{ranks.world}" if ranks.world > 1 else ""
    keeper = Keeper(kept, config.distil.top_k, config.batch_tokens, context, dtype, name)
    distiller = distiller_of(config, model, stream, tokenizer_file, keeper)
    judge = judge_of(config, distiller, valid, tags, tokenizer, kept / "bleu.json")
    return partial(
        Run, config, Learner(model, config, dtype, distiller), stream, folder,
        _meta(config, sources, digest, before),
        tokenizer_file, progress=progress,
        validate=lambda learner: {
            **flat(losses(learner.model, held, sizes, config.mask, dtype)),
            **flat(auxiliary_figures(learner, tasks)),
            **(judge(learner.model) if judge else {}),
        },
    )  # fmt: skip


def tags_of(config: RunConfig, tokenizer: Tokenizer) -> Tags:
    return Tags(
        _id(tokenizer, END), _id(tokenizer, SEPARATOR),
        {code: _id(tokenizer, f"<|src:{code}|>") for code in config.data.languages},
        {code: _id(tokenizer, f"<|tgt:{code}|>") for code in config.data.languages},
        {task: _id(tokenizer, task_token(task)) for task in config.data.tasks},
        _id(tokenizer, MASK),
    )  # fmt: skip


def _mixture(config: RunConfig, tokenizer: Tokenizer) -> Mixture | None:
    """What corrupts the rows of pretraining, if an objective asks for it."""
    wanted = config.objectives
    if config.stage != "pretrain" or not (wanted.masking or wanted.infilling or wanted.replaced):
        return None
    return Mixture(wanted, Vocabulary.of(tokenizer))


def _streams(
    config: RunConfig, tags: Tags, mixture: Mixture | None, train: list[Shard],
    valid: list[Shard], weights: list[float],
) -> tuple[Stream, list[Batch], list[Batch]]:  # fmt: skip
    """What is learnt from; held-out rows of pairs and text; and those of auxiliary objectives."""
    data = config.data
    paired = [i for i, s in enumerate(train) if len(s.header.languages) == 2 or s.header.task]
    plain = [i for i, s in enumerate(train) if not (s.header.one_way or s.header.task)]
    pairs = held_pairs = text = None
    length = data.max_tokens
    if config.stage == "finetune":
        pairs, held_pairs = (
            PairRows([shards[i] for i in paired], [passes[i] for i in paired], tags, length,
                     data.directions, data.source_noise)
            for shards, passes in ((train, weights), (valid, [1.0] * len(train)))
        )  # fmt: skip
    if config.stage == "pretrain" or data.text_share:
        text = TextRows([train[i] for i in plain], [weights[i] for i in plain], tags.end, length)
    held_text = {}
    for code in data.languages if text else ():
        mine = _text_in(code, valid)
        held_text[code] = TextRows(mine, [1.0] * len(mine), tags.end, length)
    micro = max(1, config.batch_tokens // config.accumulate)
    limit = data.valid_examples
    held = valid_batches(held_pairs, held_text, micro, limit)
    tasks = auxiliary_batches(mixture, held_text, micro, limit) if mixture else []
    return Stream(pairs, text, micro, config.seed, data.text_share, mixture), held, tasks


def _text_in(language: str, shards: list[Shard]) -> list[Shard | Side]:
    """Running text in a language; where there is none, that side of the pairs."""
    text: list[Shard | Side] = [s for s in shards if s.header.languages == (language,) and len(s)]
    return text or [
        Side(s, s.header.languages.index(language)) for s in shards
        if len(s.header.languages) == 2 and language in s.header.languages
    ]  # fmt: skip


def _model(
    config: RunConfig, tokenizer: Tokenizer, init: Path | None, device: torch.device
) -> tuple[GPT, dict[str, Any]]:
    """The model of a run, and the meta.json of the checkpoint that it starts from, or {}."""
    torch.manual_seed(config.seed)
    entries = tokenizer.get_vocab_size()
    model, meta = load_checkpoint(init) if init else (None, {})
    if config.model == INIT and model is None:
        raise ConfigError(f"model = {INIT!r}: give the checkpoint to start from")
    wanted = (
        replace(model.config, dropout=config.dropout) if model and config.model == INIT
        else preset(config.model, entries, dropout=config.dropout)
    )  # fmt: skip
    if config.data.max_tokens > wanted.context:
        raise ConfigError(
            f"data.max_tokens = {config.data.max_tokens}: the context of model = "
            f"{config.model!r} is {wanted.context}"
        )
    if model is None:
        if config.init_layers == "even":
            raise ConfigError("init_layers = 'even': give the checkpoint whose layers to take")
        return GPT(wanted).to(device), {}
    if model.config.vocabulary != entries:
        raise ConfigError(
            f"init {init}: {model.config.vocabulary} entries, the tokenizer has {entries}"
        )
    if config.init_layers == "even":
        model, taken = thinned(model, wanted.layers)
        meta = {**meta, "init_layers": taken}
    fresh = GPT(wanted)
    if replace(model.config, dropout=config.dropout) != wanted:
        raise ConfigError(f"init {init}: is {model.config}, the recipe's model is {wanted}")
    fresh.load_state_dict(model.state_dict())
    return fresh.to(device), meta


def find_device(name: str) -> torch.device:
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
    _keep(file, json.dumps(asdict(config), indent=2) + "\n")


def _keep(file: Path, text: str) -> None:
    """Write a text unless it is there: another rank may be reading it."""
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def _fitted(config: RunConfig, file: Path, init: Path | None, folder: Path) -> Path:
    """The tokenizer's file, or a copy in which reserved entries are named as the run needs them."""
    like = init / "tokenizer.json" if init and (init / "tokenizer.json").exists() else None
    fitted = with_tokens(file, tokens_of(config.data.languages, config.data.tasks), like)
    if fitted.get_vocab() == load_tokenizer(file).get_vocab():
        return file
    _keep(folder / "tokenizer.json", fitted.to_str(pretty=True))
    return folder / "tokenizer.json"


def _meta(
    config: RunConfig, sources: list[Source], digest: str, before: dict[str, Any]
) -> dict[str, Any]:
    there = {s.languages for s in sources if len(s.languages) == 2}
    back = {s.languages[::-1] for s in sources if len(s.languages) == 2 and not s.one_way}
    globs = config.data.directions or ("*",)
    pairs = sorted(
        (a, b) for a, b in there | back if any(fnmatchcase(f"{a}-{b}", glob) for glob in globs)
    )
    translates = config.stage == "finetune" and bool(pairs)
    templates = {f"task:{task}": [task_token(task), "{text}", SEPARATOR]
                 for task in config.data.tasks}  # fmt: skip
    meta: dict[str, Any] = {
        "format_version": 1,
        "stage": config.stage,
        "mask": config.mask,
        "languages": {code: NAMES.get(code, code) for code in config.data.languages},
        "pairs": [list(p) for p in pairs] if translates else [],
        "templates": {"generate": GENERATE, **({"translate": TRANSLATE} if translates else {}),
                      **templates},
        "corpora": [
            {"name": s.key, "licence": first_match(s, config.data.licences, "")} for s in sources
        ],
        "config": json.loads(json.dumps(asdict(config))),
        "commit": commit(),
        "tokenizer_sha256": digest,
    }
    if config.init_layers == "even":
        meta["init_layers"] = before["init_layers"]
    return _continued(meta, before) if config.model == INIT else meta


def _continued(meta: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A model that is trained on keeps the languages, directions and tasks that it had."""
    if meta["stage"] == "pretrain":
        meta["mask"] = before.get("mask", meta["mask"])
    for key in ("languages", "templates"):
        meta[key] = {**before.get(key, {}), **meta[key]}
    for key in ("pairs", "corpora"):
        meta[key] = before.get(key, []) + [x for x in meta[key] if x not in before.get(key, [])]
    return meta


def _id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise ConfigError(f"the tokenizer has no {token}: was it trained for these languages?")
    return int(index)
