"""Recipes: the paper's defaults, overrides, what is written is what is read, and clear refusals."""

from __future__ import annotations

import re

import pytest

from anytime_lct.errors import RecipeError
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import TEXT, CutRecipe
from anytime_lct.training.methods.table import checked


def test_the_papers_settings_are_the_defaults_of_their_task():
    images = reading.complete({"data": {"name": "cifar10"}})
    assert (images.groups.name, images.groups.lr, images.groups.momentum, images.groups.weight_decay) == (
        "sgd",
        0.1,
        0.9,
        5e-4,
    )
    assert images.critics == images.groups and images.critics_schedule == images.groups_schedule
    assert images.groups_schedule.milestones == (0.5, 0.75)
    assert (images.rule.form, images.rule.matching, images.rule.critic_loss) == ("per-sample", "l1", "cross-entropy")
    assert images.critic.kind == "residual"
    text = reading.complete({"data": {"name": "text"}})
    assert (text.groups.name, text.groups.lr, text.groups.weight_decay) == ("adam", 2.7e-3, 1.2e-5)
    assert (text.data.batch_size, text.data.sequence_length, text.model.options["embedding"]) == (128, 150, 128)
    assert (text.groups_schedule.milestones, text.groups_schedule.gamma) == ((0.2, 0.4, 0.6, 0.8), 0.33)


def test_options_of_a_default_network_do_not_pass_to_another():
    assert reading.complete({"model": {"name": "mlp"}}).model.options == {}
    assert reading.complete({"model": {"width": 8}}).model.options == {"depth": 14, "width": 8}


def test_options_of_a_default_optimizer_do_not_pass_to_another():
    with pytest.raises(RecipeError, match=r"needs a value for 'critics\.lr'"):
        reading.complete({"data": {"name": "cifar10"}, "critics": {"name": "adam"}})
    named = reading.complete({"data": {"name": "cifar10"}, "critics": {"name": "adam", "lr": 1e-4}})
    assert named.critics.weight_decay == 0.0


def test_entries_that_do_not_go_together_are_refused_in_a_sentence():
    with pytest.raises(RecipeError, match=r"^The recipe contradicts itself: places and shares both say where"):
        reading.complete({"cut": {"places": ["a"], "shares": [0.5]}})
    with pytest.raises(RecipeError, match=r"^Expected data\.augment = none with method admm"):
        checked(reading.complete({"data": {"name": "mnist"}, "model": {"name": "mlp"}, "train": {"method": "admm"}}))


def test_places_decide_the_number_of_groups():
    assert reading.complete({"cut": {"places": ["layer1", "layer2"]}}).cut.groups == 3


@pytest.mark.parametrize("name", reading.shipped())
def test_shipped_recipes_are_complete_and_survive_writing(name, tmp_path):
    recipe = reading.read(name)
    reading.write(recipe, tmp_path / "recipe.toml")
    assert reading.read(tmp_path / "recipe.toml") == recipe


def test_what_is_written_is_what_is_read_for_every_data_set(tmp_path):
    for data in TEXT | {"digits", "cifar10"}:
        recipe = reading.complete({"data": {"name": data}, "cut": {"places": ["a", "b", "c", "d"]}})
        reading.write(recipe, tmp_path / "recipe.toml")
        assert reading.read(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("groups.lr=0.05", ("groups.lr", 0.05)),
        ("train.epochs = 3", ("train.epochs", 3)),
        ("train.compile=true", ("train.compile", True)),
        ("cut.places=layer1,layer2", ("cut.places", ["layer1", "layer2"])),
        ("cut.places=layer1", ("cut.places", ["layer1"])),
        ("critic.depth=3,2,1", ("critic.depth", [3, 2, 1])),
        ("cut.places=1,5", ("cut.places", ["1", "5"])),
        ("cut.places=2", ("cut.places", ["2"])),
        ('cut.places=["a", "b"]', ("cut.places", ["a", "b"])),
        ("data.path=2024", ("data.path", "2024")),
        ("data.path=a,b.txt", ("data.path", "a,b.txt")),
        ("model.name=mlp", ("model.name", "mlp")),
        ('data.root="/x y"', ("data.root", "/x y")),
        ("data.mean=0.5", ("data.mean", [0.5])),
        ("data.std=0.5,1", ("data.std", [0.5, 1])),
    ],
)
def test_assignments_are_read_as_toml_or_bare_words(text, expected):
    assert reading.assignment(text) == expected


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"train.epoch": 3}, "did you mean epochs"),
        ({"train.epochs": 0}, "train.epochs"),
        ({"train.epochs": "many"}, "train.epochs"),
        ({"data.validation": 1.0}, "data.validation"),
        ({"groups.lr": -0.1}, "groups.lr"),
        ({"groups.lr": float("nan")}, "groups.lr"),
        ({"critics.name": "lion"}, "'sgd', 'adam' or 'adamw'"),
        ({"cut.by": "depth"}, "'cut.by' is 'depth': input should be 'layers', 'balanced', 'measured' or 'memory'"),
        ({"critic.kind": "tiny"}, "'tiny': input should be 'slim', 'residual', 'paper' or 'paper-imagenet'"),
        ({"cut.groups": 3, "cut.places": ["a"]}, "1 places make 2 groups"),
        ({"rule.form": "per_sample"}, "per-sample"),
        ({"epochs": 3}, "train.epochs=10"),
    ],
)
def test_refusals_name_the_key_and_what_was_expected(overrides, says):
    with pytest.raises(RecipeError, match=says):
        reading.read(None, overrides)


def test_files_that_are_no_recipe_are_refused(tmp_path):
    (tmp_path / "a.toml").write_text("[train\nepochs = 3")
    with pytest.raises(RecipeError, match="does not parse"):
        reading.read(tmp_path / "a.toml")
    with pytest.raises(RecipeError, match="shipped recipes"):
        reading.read("no-such")
    with pytest.raises(RecipeError, match="key=value"):
        reading.assignment("epochs")


def test_no_places_and_no_shares_leave_the_number_of_groups():
    assert CutRecipe(places=(), shares=()).groups == CutRecipe().groups == 4


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"data.name": {"a": 1}}, "The recipe's 'data.name' is {'a': 1}: input should be a valid string."),
        ({"critic.depth": 0}, "The recipe's 'critic.depth' is 0: input should be greater than or equal to 1."),
        ({"critic.depth": [1, 0]}, "The recipe's 'critic.depth.1' is 0: input should be greater than or equal to 1."),
        ({"critic.depth": "deep"}, "The recipe's 'critic.depth' is 'deep': input should be a valid integer"),
    ],
)
def test_a_key_of_several_types_is_named_without_them(overrides, says):
    with pytest.raises(RecipeError, match=re.escape(says)):
        reading.read(None, overrides)
