"""Checkpoints against transformers, faults that are named, and state that survives a kill."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training import checkpoint
from training.checkpoint import (
    load_checkpoint,
    load_state,
    recover_folder,
    replace_folder,
    save_checkpoint,
    save_state,
)
from training.config import OptimiserConfig
from training.distributed import ALONE
from training.errors import CheckpointError, SaveError
from training.model import GPT
from training.optim import build_optimisers, optimiser_state, restore_optimisers

IDS = torch.tensor([[5, 9, 33, 7, 80, 2, 41, 13], [1, 2, 3, 4, 5, 6, 7, 8]])


def logits(model: GPT) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.eval()(IDS)[0])


@pytest.fixture
def saved(model: GPT, tmp_path: Path) -> Path:
    meta = {"stage": "pretrain", "languages": {"zh": "中"}}
    save_checkpoint(tmp_path / "saved", model, None, meta)
    return tmp_path / "saved"


def test_transformers_reads_ours(model: GPT, saved: Path) -> None:
    from transformers import GPT2LMHeadModel

    theirs, info = GPT2LMHeadModel.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(IDS).logits, logits(model), atol=1e-4, rtol=1e-4)
    assert theirs.generation_config.eos_token_id == 0


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A GPT-2 that transformers drew at random, and its logits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=97, n_positions=24, n_embd=32, n_layer=2, n_head=2,
                        initializer_range=0.3)  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("foreign")
    model.save_pretrained(folder)
    with torch.no_grad():
        return folder, model(IDS).logits


def _as_saved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors


def _no_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("transformer."): t for name, t in tensors.items()}


def _with_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()}


def _with_masks(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 24, 24).tril() for i in range(2)}
    return {**_no_prefix(tensors), **masks, "h.0.attn.masked_bias": torch.tensor(-1e4)}


def _half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.to(torch.bfloat16) for name, t in tensors.items()}


Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@pytest.mark.parametrize("change", [_as_saved, _no_prefix, _with_head, _with_masks, _half])
def test_we_read_theirs(
    foreign: tuple[Path, torch.Tensor], tmp_path: Path, change: Change
) -> None:
    folder = shutil.copytree(foreign[0], tmp_path / "copy")
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    model, meta = load_checkpoint(folder)
    assert meta == {} and model.device.type == "cpu"
    tolerance = 0.3 if change is _half else 1e-4
    torch.testing.assert_close(logits(model), foreign[1], atol=tolerance, rtol=1e-4)


def test_round_trip_keeps_weights_and_meta(model: GPT, saved: Path) -> None:
    again, meta = load_checkpoint(saved)
    assert meta == {"stage": "pretrain", "languages": {"zh": "中"}}
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"), ("activation_function", "relu"), ("n_inner", 100),
        ("scale_attn_by_inverse_layer_idx", True), ("scale_attn_weights", False),
        ("tie_word_embeddings", False), ("n_embd", None), ("n_layer", "two"), ("n_head", 2.0),
        ("vocab_size", True), ("n_positions", 0), ("layer_norm_epsilon", "small"), ("n_head", 5),
        ("resid_pdrop", [0.1]),
    ],
)  # fmt: skip
def test_each_fault_of_the_config_is_named(saved: Path, key: str, value: object) -> None:
    file = saved / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    ours = {"n_positions": "context = 0", "n_head": "model.heads = 5" if value == 5 else key}
    with pytest.raises(CheckpointError, match=ours.get(key, key)) as caught:
        load_checkpoint(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("key", ["n_embd", "n_layer", "n_head", "n_positions", "vocab_size"])
def test_a_missing_size_is_named(saved: Path, key: str) -> None:
    values = json.loads((saved / "config.json").read_text())
    del values[key]
    (saved / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        load_checkpoint(saved)


def forget_digest(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    del meta["sha256"]
    (folder / "meta.json").write_text(json.dumps(meta))


def test_tensors_that_do_not_fit_are_named(saved: Path) -> None:
    forget_digest(saved)
    tensors = load_file(saved / "model.safetensors")
    name = "transformer.h.1.mlp.c_fc.weight"
    for broken, words in (
        ({k: v for k, v in tensors.items() if k != name}, "is missing"),
        ({**tensors, "transformer.h.2.mlp.c_fc.weight": torch.ones(2)}, "h.2.* is unknown"),
        ({**tensors, name: tensors[name].t().contiguous()}, r"is \(128, 32\)"),
    ):
        save_file(broken, saved / "model.safetensors")
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(saved)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "meta.json"])
@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe\x00 cut"])
def test_damaged_files_are_named(saved: Path, file: str, content: bytes) -> None:
    (saved / file).write_bytes(content)
    with pytest.raises(CheckpointError, match="saved"):
        load_checkpoint(saved)


def test_a_cut_file_and_a_missing_folder(saved: Path, tmp_path: Path) -> None:
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match="saved"):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")


def test_altered_weights_are_told_from_ours(model: GPT, saved: Path) -> None:
    file = saved / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1  # a weight like any other, and yet not the one that was saved
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="saved: model.safetensors is not the file that meta"):
        load_checkpoint(saved)
    forget_digest(saved)
    assert not torch.equal(logits(load_checkpoint(saved)[0]), logits(model))


def test_replacing_leaves_whole_folders_only(tmp_path: Path) -> None:
    target = tmp_path / "last"
    for text in ("one", "two"):
        new = tmp_path / "last.partial"
        new.mkdir()
        (new / "file").write_text(text)
        replace_folder(new, target)
        assert (target / "file").read_text() == text
        assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_a_kill_between_the_renames_is_repaired(tmp_path: Path) -> None:
    target = tmp_path / "last"
    assert not recover_folder(target)
    (tmp_path / "last.old").mkdir()
    assert recover_folder(target) and target.is_dir()
    (tmp_path / "last.old").mkdir()  # killed while the old one was being removed
    (tmp_path / "last.old" / "file").touch()
    assert recover_folder(target) and not (target / "file").exists()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_restores_optimisers(model: GPT, tmp_path: Path, name: str) -> None:
    def steps(count: int) -> list[float]:
        drawn = []
        for _ in range(count):
            loss = model(IDS)[0].square().mean()
            loss.backward()
            for optimiser in optimisers.values():
                optimiser.step()
                optimiser.zero_grad()
            drawn.append(loss.item())
        return drawn

    config = OptimiserConfig(name=name, rate=1e-2)  # type: ignore[arg-type]
    optimisers = build_optimisers(model, config)
    steps(2)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    save_state(tmp_path, {"state": optimiser_state(model, optimisers, ALONE)}, {"step": 2})
    expected = steps(3)
    model.load_state_dict(weights)
    optimisers = build_optimisers(model, config)
    tensors, values = load_state(tmp_path)
    restore_optimisers(model, optimisers, tensors["state"])
    assert values == {"step": 2}
    assert steps(3) == expected


def test_state_of_another_optimiser_is_named(model: GPT) -> None:
    adamw = build_optimisers(model, OptimiserConfig())
    model(IDS)[0].sum().backward()
    adamw["adamw"].step()
    tensors = optimiser_state(model, adamw, ALONE)
    with pytest.raises(CheckpointError, match="nothing for the optimiser muon"):
        restore_optimisers(model, build_optimisers(model, OptimiserConfig(name="muon")), tensors)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    save_state(tmp_path, {"state": {"a": torch.ones(3)}, "heads": {"b": torch.ones(2)}}, {"n": 1})
    return tmp_path


def test_damaged_state_is_named(state: Path) -> None:
    assert load_state(state)[0]["heads"]["b"].tolist() == [1, 1]
    for file in ("state.safetensors", "heads.safetensors"):
        whole = (state / file).read_bytes()
        for content in (whole[:-1], whole[:-1] + b"x", b"short"):
            (state / file).write_bytes(content)
            with pytest.raises(CheckpointError, match=f"{file} is not the file that state.json"):
                load_state(state)
        (state / file).write_bytes(whole)
    for content in (b"[]", b"{}", b"", b'{"n": 1, "sha256'):
        (state / "state.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=str(state)):
            load_state(state)
    (state / "heads.safetensors").unlink()
    with pytest.raises(CheckpointError, match=str(state)):
        load_state(state)


# -- a disk that takes no more


def test_a_full_disk_leaves_the_checkpoint_before(
    model: GPT, small_disk: Callable[[int], Path]
) -> None:
    place = small_disk(256 * 1024)  # one checkpoint, not two
    folder = place / "saved"
    save_checkpoint(folder, model, None, {"step": 1})
    before = logits(model)
    with torch.no_grad():
        model.transformer["wte"].weight.add_(1)  # type: ignore[operator]
    with pytest.raises(SaveError, match="disk0/saved: could not be written: .*No space left"):
        save_checkpoint(folder, model, None, {"step": 2})
    assert [p.name for p in place.iterdir()] == ["saved"]
    again, meta = load_checkpoint(folder)
    assert meta == {"step": 1} and torch.equal(logits(again), before)


@pytest.mark.parametrize("failing", ["_write_json", "save_file", "replace_folder", "fsync", "move"])
def test_a_failing_disk_leaves_the_checkpoint_before(
    model: GPT, saved: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*arguments: object, **keys: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    def rename(self: Path, target: Path) -> None:
        if self.suffix == ".partial":
            full()
        os.rename(self, target)

    with monkeypatch.context() as patch:
        if failing == "move":
            patch.setattr(Path, "rename", rename)
        else:
            patch.setattr(checkpoint.os if failing == "fsync" else checkpoint, failing, full)
        with pytest.raises(SaveError, match="saved: could not be written.*No space left"):
            save_checkpoint(saved, model, None, {"step": 2})
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]
    assert load_checkpoint(saved)[1] == {"stage": "pretrain", "languages": {"zh": "中"}}


def test_a_move_that_failed_half_way_is_repaired_by_the_next(tmp_path: Path) -> None:
    for name, text in (("last.old", "one"), ("last.partial", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    seen: list[str] = []
    real = checkpoint.shutil.rmtree

    def removed(folder: Path, ignore_errors: bool = False) -> None:
        if folder.exists():
            seen.append((tmp_path / "last" / "file").read_text())  # a whole one is in place
        real(folder, ignore_errors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", removed)
        replace_folder(tmp_path / "last.partial", tmp_path / "last")
    assert seen == ["two"]
