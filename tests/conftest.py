"""Fixtures that every part shares: a tiny random GPT-2 checkpoint and the bundles made of it.

The checkpoint is written with numpy and safetensors alone, in the form that `transformers` saves,
so that tests of the app need neither torch nor transformers. Weights are drawn wide enough that
logits are not nearly tied. Bundles are exported without the (slow) verification; the tests of
export cover that.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from app.bundle import Bundle

LANGUAGES = {"en": "English", "zh": "Chinese", "de": "German", "fr": "French"}
SENTENCES = [
    "The weather is beautiful today, and the children are playing in the garden.",
    "Where is the nearest train station? I would like to buy two tickets, please.",
    "She has read the book three times and still finds something new in it.",
    "今天天气很好，孩子们在花园里玩。",
    "最近的火车站在哪里？我想买两张票。",
    "这本书她读了三遍，每次都有新的发现。",
    "Das Wetter ist heute schön, und die Kinder spielen im Garten.",
    "Wo ist der nächste Bahnhof? Ich möchte bitte zwei Fahrkarten kaufen.",
    "Sie hat das Buch dreimal gelesen und findet immer noch etwas Neues darin.",
    "Il fait beau aujourd'hui et les enfants jouent dans le jardin.",
    "Où est la gare la plus proche ? Je voudrais acheter deux billets, s'il vous plaît.",
    "Elle a lu le livre trois fois et y trouve toujours quelque chose de nouveau.",
]
LAYERS, HEADS, WIDTH, CONTEXT, SPECIAL = 2, 4, 64, 128, 64


def special_tokens() -> list[str]:
    names = ["<|endoftext|>", "<|mask|>", "<|sep|>"]
    names += [f"<|src:{code}|>" for code in LANGUAGES]
    names += [f"<|tgt:{code}|>" for code in LANGUAGES]
    return names + [f"<|reserved:{k}|>" for k in range(SPECIAL - len(names))]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Twelve short sentences in four languages."""
    return list(SENTENCES)


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer.json of a byte-level BPE of about 600 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special_tokens(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def random_tensors(vocabulary: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, std: float = 0.2) -> NDArray[np.float32]:
        return rng.normal(0.0, std, shape).astype(np.float32)

    def norm(name: str) -> dict[str, NDArray[np.float32]]:
        return {f"{name}.weight": 1.0 + normal(WIDTH), f"{name}.bias": normal(WIDTH)}

    tensors = {
        "transformer.wte.weight": normal(vocabulary, WIDTH),
        "transformer.wpe.weight": normal(CONTEXT, WIDTH),
        **norm("transformer.ln_f"),
    }
    for layer in range(LAYERS):
        prefix = f"transformer.h.{layer}"
        tensors |= norm(f"{prefix}.ln_1") | norm(f"{prefix}.ln_2")
        for name, rows, columns in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            tensors[f"{prefix}.{name}.weight"] = normal(rows, columns)
            tensors[f"{prefix}.{name}.bias"] = normal(columns)
    return tensors


def checkpoint_config(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocabulary,
        "n_positions": CONTEXT,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A checkpoint directory: 2 layers, width 64, 4 heads, 128 positions, four languages."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("checkpoint")
    text = tiny_tokenizer.read_bytes()
    (folder / "tokenizer.json").write_bytes(text)
    vocabulary = Tokenizer.from_file(str(tiny_tokenizer)).get_vocab_size()
    save_file(random_tensors(vocabulary), folder / "model.safetensors", metadata={"format": "pt"})
    meta = {
        "format_version": 1,
        "stage": "finetune",
        "mask": "causal",
        "languages": LANGUAGES,
        "pairs": [[a, b] for a in LANGUAGES for b in LANGUAGES if a != b],
        "templates": {
            "translate": ["<|src:{source}|>", "<|tgt:{target}|>", "{text}", "<|sep|>"],
            "generate": ["<|endoftext|>", "{text}"],
        },
        "corpora": [{"name": "built-in sentences", "licence": "CC0-1.0"}],
        "config": {},
        "commit": "",
        "tokenizer_sha256": hashlib.sha256(text).hexdigest(),
        "step": 0,
    }
    for name, data in (
        ("config.json", checkpoint_config(vocabulary)),
        ("generation_config.json", {"bos_token_id": 0, "eos_token_id": 0}),
        ("meta.json", meta),
    ):
        (folder / name).write_text(json.dumps(data, ensure_ascii=False, indent=2))
    return folder


@pytest.fixture(scope="session")
def fp32_bundle(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Bundle:
    from export.bundle import export_bundle

    target = tmp_path_factory.mktemp("bundles") / "tiny-fp32"
    export_bundle(random_checkpoint, target, precision="fp32", verify=False)
    return Bundle.open(target)


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Bundle:
    from export.bundle import export_bundle

    target = tmp_path_factory.mktemp("bundles") / "tiny-int8"
    export_bundle(random_checkpoint, target, precision="int8", verify=False)
    return Bundle.open(target)


@pytest.fixture(scope="session")
def int4_bundle(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Bundle:
    from export.bundle import export_bundle

    target = tmp_path_factory.mktemp("bundles") / "tiny-int4"
    export_bundle(random_checkpoint, target, precision="int4", verify=False)
    return Bundle.open(target)


@pytest.fixture(scope="session")
def fp16_bundle(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Bundle:
    from export.bundle import export_bundle

    target = tmp_path_factory.mktemp("bundles") / "tiny-fp16"
    export_bundle(random_checkpoint, target, precision="fp16", verify=False)
    return Bundle.open(target)


def shortlist_arrays(tokenizer: Path) -> dict[str, NDArray[Any]]:
    """A shortlist for en-de, de-en and en-fr: 40 common ids, and up to 9 of each source id."""
    size, rng = Tokenizer.from_file(str(tokenizer)).get_vocab_size(), np.random.default_rng(4)
    arrays: dict[str, NDArray[Any]] = {
        "format": np.array(1),
        "tokenizer_sha256": np.array(hashlib.sha256(tokenizer.read_bytes()).hexdigest()),
        "vocabulary": np.array(size),
        "pairs": np.array(["de-en", "en-de", "en-fr"]),
    }
    for code in ("de", "en", "fr"):
        lengths = rng.integers(0, 10, size)
        common = np.append(0, rng.choice(np.arange(SPECIAL, size), 40, replace=False))
        arrays[f"{code}.common"] = np.sort(common).astype(np.uint16)
        arrays[f"{code}.offsets"] = np.append(0, np.cumsum(lengths)).astype(np.int32)
        arrays[f"{code}.ids"] = rng.integers(SPECIAL, size, lengths.sum()).astype(np.uint16)
    return arrays


@pytest.fixture(scope="session")
def shortlist_file(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    path = tmp_path_factory.mktemp("shortlist") / "made.npz"
    np.savez_compressed(path, **shortlist_arrays(tiny_tokenizer))
    return path


@pytest.fixture(scope="session", params=["fp32", "int8", "int4"])
def listed_bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory,
    random_checkpoint: Path, shortlist_file: Path,
) -> Bundle:  # fmt: skip
    """A bundle with a shortlist, of each precision that has one."""
    from export.bundle import export_bundle

    target = tmp_path_factory.mktemp("bundles") / f"listed-{request.param}"
    return export_bundle(
        random_checkpoint, target, precision=request.param, verify=False, shortlist=shortlist_file
    )
