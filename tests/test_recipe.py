"""Recipes: the paper's defaults, overrides, what is written is what is read, and clear refusals."""

from __future__ import annotations

import re

import pytest

from anytime_lct.errors import RecipeError
from anytime_lct.recipes import fitting, reading
from anytime_lct.recipes.recipe import TEXT, CutRecipe
from anytime_lct.training.methods.table import checked


def test_defaults_of_images_and_text():
    images = reading.complete({"data": {"name": "cifar10"}})
    assert (images.rule.form, images.rule.matching, images.rule.critic_loss) == ("per-sample", "l1", "cross-entropy")
    assert images.groups_schedule.name == "one-cycle" and images.critics_schedule == images.groups_schedule
    assert (images.critic.kind, images.groups.lr, images.train.clip_norm) == (None, None, None)
    text = reading.complete({"data": {"name": "text"}})
    assert (text.groups.name, text.groups.lr, text.train.clip_norm, text.cut.groups) == ("adam", 2.7e-3, 1.0, 2)
    own = reading.complete({"data": {"name": "text"}, "model": {"name": "own.py:make"}})
    assert (own.groups.name, own.groups.lr, own.train.clip_norm, own.cut.groups) == (None,) * 4


def fitted(traits, rows=128, **tables):
    recipe = fitting.fit(reading.complete(tables), traits, rows)
    assert fitting.is_fitted(recipe)
    return recipe


CONVOLUTIONAL = fitting.Traits(batch_norms=True, layer_norms=False, attention=False, recurrent=False)
TRANSFORMER = fitting.Traits(batch_norms=False, layer_norms=True, attention=True, recurrent=False)


def test_optimizers_follow_from_the_network_and_the_minibatch():
    small, large = fitted(CONVOLUTIONAL, 32), fitted(CONVOLUTIONAL, 256)
    assert (small.groups.name, small.groups.lr, large.groups.lr) == ("sgd", 0.025, 0.2)
    assert small.critics == small.groups and small.groups.weight_decay == 5e-4 and small.train.clip_norm == 0.0
    assert fitted(CONVOLUTIONAL, 32, critic={"kind": "slim"}).critics == small.groups  # slim critics learn by SGD too
    transformer = fitted(TRANSFORMER, 512)
    assert (transformer.groups.name, transformer.groups.lr, transformer.groups.weight_decay) == ("adamw", 2e-3, 0.05)
    assert transformer.train.clip_norm == 1.0
    plain = fitting.Traits(batch_norms=False, layer_norms=False, attention=False, recurrent=False)
    assert fitted(plain).groups.name == "adamw"


def test_what_a_recipe_names_is_not_fitted():
    recipe = fitted(CONVOLUTIONAL, groups={"lr": 0.3}, train={"clip_norm": 2.0})
    assert (recipe.groups.name, recipe.groups.lr, recipe.critics.lr, recipe.train.clip_norm) == ("sgd", 0.3, 0.3, 2.0)
    adam = fitted(CONVOLUTIONAL, critics={"name": "adam"})
    assert (adam.groups.lr, adam.critics.lr, adam.critics.weight_decay) == (0.1, 1e-3, 0.0)
    started = fitted(CONVOLUTIONAL, train={"weights": "default"})
    assert (started.groups.lr, started.critics.lr) == (0.01, 0.1)


def test_options_of_a_default_network_do_not_pass_to_another():
    assert reading.complete({"model": {"name": "mlp"}}).model.options == {}
    assert reading.complete({"model": {"width": 8}}).model.options == {"depth": 14, "width": 8}


def test_options_of_a_default_optimizer_do_not_pass_to_another():
    named = reading.complete({"data": {"name": "text"}, "groups": {"name": "sgd"}})
    assert (named.groups.name, named.groups.lr) == ("sgd", None)


def test_entries_that_do_not_go_together_are_refused_in_a_sentence():
    with pytest.raises(RecipeError, match=r"^The recipe contradicts itself: 2 shares make 3 groups, but groups = 2"):
        reading.complete({"cut": {"places": ["a"], "shares": [0.5, 0.7]}})
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
        (
            {"cut.by": "depth"},
            "'cut.by' is 'depth': input should be 'shares', 'layers'",
        ),
        ({"critic.kind": "tiny"}, "'tiny': input should be 'slim', 'residual', 'paper', 'paper-imagenet' or 'own'"),
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
    assert CutRecipe(places=(), shares=()).groups is CutRecipe().groups is None


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
