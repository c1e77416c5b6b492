"""Sweeps: the keys that they vary, what they judge trials by, and that an interrupted one goes on."""

from __future__ import annotations

import json

import pytest

from anytime_lct import verbs
from anytime_lct.errors import RecipeError
from anytime_lct.recipes import reading
from anytime_lct.recipes.spaces import Space, read_space
from anytime_lct.training.events import Progress
from anytime_lct.verbs.sweep import area

AXES = ["critics.lr=log:1e-3..1e-1", "groups.name=sgd|adamw"]


@pytest.fixture(scope="module")
def recipe():
    keys = {"data": {"name": "digits", "batch_size": 256}, "model": {"name": "mlp"}, "train": {"epochs": 1}}
    return reading.complete(keys)


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("critics.lr=log:1e-4..1e-1", Space("critics.lr", "log", 1e-4, 0.1)),
        ("groups.momentum=0.8..0.99", Space("groups.momentum", "linear", 0.8, 0.99)),
        ("groups.momentum=lin:0..1", Space("groups.momentum", "linear", 0, 1)),
        ("cut.groups=2..4", Space("cut.groups", "whole", 2, 4)),
        ("critic.kind=slim|residual", Space("critic.kind", "choice", choices=("slim", "residual"))),
    ],
)
def test_a_key_has_a_range_or_a_list_of_values(text, space):
    assert read_space(text) == space
    assert Space("cut.shares", "choice", choices=("0.2,0.5", "0.3")).value("0.3") == [0.3]


@pytest.mark.parametrize("text", ["critics.lr", "critics.lr=0.1", "a.b=..3", "a.b=x..y", "a.b=3..2", "a.b=log:0..1"])
def test_other_values_are_refused(text):
    with pytest.raises(RecipeError, match="Expected"):
        read_space(text)


def test_the_area_counts_the_best_exit_within_every_budget():
    assert area((0.5, 0.4, 1.0), (20, 50, 100)) == pytest.approx(0.4)
    assert area((0.9,), ()) == 0.9


def test_an_interrupted_sweep_goes_on_as_if_it_had_not_been(recipe, tmp_path, program):
    steps = []

    def interrupt(number, settings, event):
        steps.append(number)
        if number == 2 and isinstance(event, Progress):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verbs.sweep(recipe, AXES, tmp_path / "halted", trials=2, report=interrupt)
    assert set(steps) == {1, 2}
    halted = verbs.sweep(recipe, AXES, tmp_path / "halted", trials=2)
    whole = verbs.sweep(recipe, AXES, tmp_path / "whole", trials=2)
    assert [(each.settings, each.value) for each in halted.trials] == [
        (each.settings, each.value) for each in whole.trials
    ]
    assert whole.best is not None and whole.best.value == max(each.value or 0 for each in whole.trials)
    assert reading.read(whole.recipe).critics.lr == whole.best.settings["critics.lr"]
    code, out, _ = program(
        "train", "--data", "digits", "--model", "mlp", "--epochs", 1, "--set", "data.batch_size=256",
        "--sweep", AXES[0], "--sweep", AXES[1], "--trials", 2, "--run-dir", tmp_path / "whole", "--json",
    )  # fmt: skip
    assert code == 0 and json.loads(out)["best"]["number"] == whole.best.number
    with pytest.raises(RecipeError, match="the spaces of the sweep"):
        verbs.sweep(recipe, AXES[:1], tmp_path / "whole")


def test_what_cannot_be_searched_is_refused_before_it_trains(recipe, tmp_path, program):
    for options, words in (
        ({"objective": "exit:9"}, "an exit up to"), ({"objective": "best"}, "main, exit:N or area"),
        ({"trials": 0}, "at least one trial"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=words):
            verbs.sweep(recipe, AXES, tmp_path / words[:7], **options)
    with pytest.raises(RecipeError, match="critics"):
        verbs.sweep(recipe, ["critics.speed=1..2"], tmp_path / "unknown")
    code, _, err = program("train", "--sweep", "critics.lr=1e-3..1e-2", "--workers", 2)
    assert code == 2 and "Expected one process" in err


@pytest.mark.parametrize("name", ["sweep.json", "study.jsonl"])
def test_a_damaged_file_of_a_sweep_is_named(name, recipe, tmp_path):
    (tmp_path / name).write_text("{garbage\n{}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"{name}', got a damaged file; choose another --run-dir"):
        verbs.sweep(recipe, AXES, tmp_path, trials=1)
