"""Recipes: what is wrong is named, and all built-in ones load."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.arguments import setting
from training.config import RECIPES, differences, load_recipe
from training.errors import ConfigError

GOOD = """
stage = "finetune"
model = "test"
steps = 10
[optimiser]
rate = 1
[data]
languages = ["en", "de"]
[data.weights]
"mono/*" = 2
"*" = 0.5
"""


def recipe_file(folder: Path, text: str = GOOD) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_recipe_is_read(tmp_path: Path) -> None:
    config = load_recipe(recipe_file(tmp_path))
    assert config.data.languages == ("en", "de") and config.steps == 10
    assert config.optimiser.rate == 1.0 and isinstance(config.optimiser.rate, float)
    assert list(config.data.weights.items()) == [("mono/*", 2.0), ("*", 0.5)]
    assert config.mask == "causal" and config.minutes == 0.0


@pytest.mark.parametrize("name", [p.stem for p in sorted(RECIPES.glob("*.toml"))])
def test_built_in_recipes_load(name: str) -> None:
    config = load_recipe(name)
    assert config.stage in name


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("steps = 10", "stepps = 10", "stepps: unknown key"),
        ("rate = 1", "rat = 1", "optimiser.rat: unknown key"),
        ("[data.weights]", "[data.wieghts]", "data.wieghts: unknown key"),
        ('stage = "finetune"', "", "stage: missing"),
        ('languages = ["en", "de"]', "", "data.languages: missing"),
        ('stage = "finetune"', 'stage = "tune"', "stage = 'tune'.*pretrain, finetune"),
        ("steps = 10", 'steps = "10"', "steps = '10': must be int"),
        ("steps = 10", "steps = 10.0", "steps = 10.0: must be int"),
        ("steps = 10", "steps = true", "steps = True: must be int"),
        ("rate = 1", "rate = true", "optimiser.rate = True: must be float"),
        ("rate = 1", "rate = 0", "optimiser.rate = 0"),
        ("rate = 1", "warmup = 1.0", "optimiser.warmup = 1.0"),
        ("rate = 1", "clip = nan", "optimiser.clip = nan"),
        ("rate = 1", "weight_decay = -1", "optimiser.weight_decay = -1"),
        ("rate = 1", 'name = "sgd"', "optimiser.name = 'sgd'"),
        ('["en", "de"]', '"en,de"', "data.languages = 'en,de': must be a list"),
        ('["en", "de"]', '["en", 7]', "data.languages"),
        ('["en", "de"]', '["en", "en"]', "data.languages: 'en' comes twice"),
        ('["en", "de"]', "[]", "data.languages is empty"),
        ('"*" = 0.5', '"*" = "half"', r"data.weights.\* = 'half': must be float"),
        ('"*" = 0.5', '"*" = -0.5', "data.weights.*-0.5"),
        ("steps = 10", "steps = 10\nminutes = 1.0", "steps = 10, tokens = 0, minutes = 1.0"),
        ("steps = 10", "", "steps = 0, tokens = 0, minutes = 0.0"),
        ("steps = 10", "steps = 10\nminutes = -1.0", "minutes = -1.0"),
        ("steps = 10", "steps = 10\ndropout = 1.0", "dropout = 1.0"),
        ("steps = 10", "steps = 10\nlabel_smoothing = -0.1", "label_smoothing = -0.1"),
        ("steps = 10", "steps = 10\naccumulate = 0", "accumulate = 0"),
        ("steps = 10", "steps = 10\nbatch_tokens = 100", "batch_tokens = 100.*max_tokens = 128"),
        ("steps = 10", "steps = 10\ncheckpoint_minutes = -1", "checkpoint_minutes = -1"),
        ("steps = 10", "steps = 10\ndata = 3", "recipe"),  # TOML: defined twice
        ('languages = ["en", "de"]', 'languages = ["en"]\ntext_share = 1.0', "data.text_share"),
        ('languages = ["en", "de"]', 'languages = ["en"]\nmax_tokens = 2', "data.max_tokens = 2"),
        ('stage = "finetune"', 'stage = "pretrain"\nmask = "prefix"', "mask = 'prefix'"),
        ("steps = 10", "steps = ", "recipe.toml"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(ConfigError, match=named):
        load_recipe(recipe_file(tmp_path, GOOD.replace(old, new)))


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    text = 'stage = "finetune"\nmodel = "test"\nsteps = 1\ndata = 3\n'
    with pytest.raises(ConfigError, match="data = 3: must be a table"):
        load_recipe(recipe_file(tmp_path, text))


def test_an_unknown_recipe_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nothing'.*finetune-cpu.*pretrain-cpu"):
        load_recipe("nothing")
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe(tmp_path / "absent.toml")


def test_a_folder_of_a_recipes_name_hides_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "finetune-cpu").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("finetune-cpu").stage == "finetune"


def test_overrides_replace_keys_and_the_other_bound_gives_way(tmp_path: Path) -> None:
    file = recipe_file(tmp_path)
    config = load_recipe(file, {"minutes": 2, "data.max_tokens": 64, "optimiser.name": "muon"})
    assert (config.steps, config.minutes) == (0, 2.0)
    assert config.data.max_tokens == 64 and config.optimiser.name == "muon"
    with pytest.raises(ConfigError, match="data.max: unknown key"):
        load_recipe(file, {"data.max": 1})
    with pytest.raises(ConfigError, match="steps.x: steps is not a table"):
        load_recipe(file, {"steps.x": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=100", ("steps", 100)), ("minutes=1.5", ("minutes", 1.5)),
        ("model=mini", ("model", "mini")), ("compile=true", ("compile", True)),
        ('data.languages=["en", "de"]', ("data.languages", ["en", "de"])),
        ("data.list=a=b.txt", ("data.list", "a=b.txt")), ("steps = 7", ("steps", 7)),
        ("model='mini'", ("model", "mini")), ("steps=", ("steps", "")),
    ],
)  # fmt: skip
def test_settings_are_parsed(text: str, expected: tuple[str, object]) -> None:
    assert setting(text) == expected


def test_a_setting_without_a_value_is_named() -> None:
    with pytest.raises(ConfigError, match="--set steps: must be KEY=VALUE"):
        setting("steps")


def test_differences_name_dotted_keys(tmp_path: Path) -> None:
    from dataclasses import asdict

    file = recipe_file(tmp_path)
    before = asdict(load_recipe(file))
    before["data"]["languages"] = ["en", "de"]  # as JSON gives it back
    assert list(differences(before, load_recipe(file))) == []
    now = load_recipe(file, {"data.max_tokens": 64, "optimiser.rate": 0.5})
    assert list(differences(before, now)) == [
        ("data.max_tokens", 128, 64), ("optimiser.rate", 1.0, 0.5),
    ]  # fmt: skip
    del before["data"]["licences"]  # a key that came later counts with its default
    assert list(differences(before, load_recipe(file))) == []
