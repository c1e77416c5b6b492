"""What exits save: shares of the main network, the line about exits that save too little, and that its advice helps."""

from __future__ import annotations

import re

import pytest
import torch
from test_inspect import call

from anytime_lct import savings
from anytime_lct.analysis import measure
from anytime_lct.data import datasets
from anytime_lct.errors import PartitionError
from anytime_lct.models import networks
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import CriticRecipe, CutRecipe
from anytime_lct.run_folder.folder import open_run
from anytime_lct.training.events import Note, Start
from anytime_lct.training.run import train
from anytime_lct.verbs.analyze import savings_warning

SHAPE = (1, 8, 8)
SMALL = ("resnet", {"depth": 8, "width": 16})
PERCEPTRON = {"model.name": "mlp", "train.epochs": 1}


@pytest.mark.parametrize(
    ("costs", "says"),
    [
        ([100], ""),
        ([30, 70, 100], ""),
        ([90, 100], ""),
        ([70, 70, 100], ""),
        ([91, 100], "Exit 1 costs 91.0% of the main network."),
        ([120, 110, 100], "Exit 1 costs 120.0% of the main network, exit 2 costs 110.0% of the main network."),
        ([60, 50, 40, 100], "Exit 1 costs more than exit 2 (60.0% and 50.0% of the main network), exit 2 costs more "
                            "than exit 3 (50.0% and 40.0% of the main network)."),
        ([60, 70, 50, 100], "Exit 1 costs more than exit 3 (60.0% and 50.0% of the main network), exit 2 costs more "
                            "than exit 3 (70.0% and 50.0% of the main network)."),
    ],
)  # fmt: skip
def test_an_exit_that_saves_too_little_is_named(costs, says):
    assert savings.problem(costs) == says


@pytest.mark.parametrize(
    ("model", "cut", "critic"),
    [
        (SMALL, {"groups": 3}, {"kind": "paper"}),  # slim critics help
        (SMALL, {"places": ("layer2.0", "flatten")}, {"kind": "slim"}),  # other places help
        (SMALL, {"places": ("layer2.0", "flatten")}, {"kind": "slim", "depth": 9}),  # these and shallow critics help
        (("mlp", {}), {}, {"kind": "residual"}),  # fewer exits help
    ],
)
def test_the_advice_is_true(model, cut, critic):
    name, options = model
    model, example = networks.build(name, SHAPE, 10, **options), torch.zeros(2, *SHAPE)
    cut, critic = CutRecipe(**cut), CriticRecipe(**critic)
    costs = savings.multiply_adds(LCTNetwork.cut(model, example, cut, critic, compare=False), example)
    line = savings.warning(costs, model, example, cut, critic, "classification")
    assert line.startswith(savings.problem(costs)) and line != savings.problem(costs)
    settings = dict(reading.assignment(text) for text in re.findall(r"--set (\S+?)(?=[: ])", line))
    if "cut.shares" in settings:
        cut = CutRecipe(shares=tuple(settings["cut.shares"]))
    critic = critic.model_copy(update={key[7:]: value for key, value in settings.items() if key[:7] == "critic."})
    costs = savings.multiply_adds(LCTNetwork.cut(model, example, cut, critic, compare=False), example)
    assert not savings.problem(costs)
    assert line.endswith(f" at {', '.join(f'{share:.0%}' for share in savings.shares(costs)[:-1])}.")


def test_a_network_that_no_setting_helps_gets_no_advice():
    model = torch.nn.Sequential(torch.nn.Linear(9, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    example, cut, critic = torch.zeros(2, 9), CutRecipe(), CriticRecipe()
    costs = savings.multiply_adds(LCTNetwork.cut(model, example), example)
    line = savings.warning(costs, model, example, cut, critic, "classification")
    assert line == (
        "Exit 1 costs 100.0% of the main network. No cheaper critics, and no other cuts of this network, change that."
    )


def test_train_inspect_and_analyze_say_the_same_of_a_network_with_few_places(capfd, tmp_path):
    recipe = reading.read(None, PERCEPTRON)
    events = list(train(recipe, datasets.from_recipe(recipe), tmp_path))
    start = next(event for event in events if isinstance(event, Start))
    fewer, line, *_ = [event.text for event in events if isinstance(event, Note)]  # alarms may follow
    assert fewer == "Cut in 3 layer groups instead of 4: this network can only be cut after relu1 and relu2."
    assert line == "Exit 2 costs 100.0% of the main network. Train with --set cut.shares=0.5: 1 exit at 34%."
    assert reading.read(tmp_path / "recipe.toml").cut.groups == 3
    run = open_run(tmp_path)
    profile = measure.profile(run.network, run.load_data(), "mlp")
    assert start.costs == tuple(profile.cost(i).flops for i in (1, 2, 3))
    assert savings_warning(tmp_path, profile) == line
    code, out, _ = call(capfd, "inspect", "mlp", "--input", "1x8x8", "--classes", 10)
    assert code == 0 and fewer in out and line in out
    settings = ("--set", "cut.shares=0.5", "--set", "critic.kind=slim")
    code, out, _ = call(capfd, "inspect", "mlp", "--input", "1x8x8", "--classes", 10, *settings)
    assert code == 0 and "Cut in 2," in out and "costs" not in out.split("Cut in 2,")[1]


def test_a_number_of_groups_that_does_not_fit_is_refused(tmp_path):
    recipe = reading.read(None, {**PERCEPTRON, "cut.groups": 4})
    with pytest.raises(PartitionError, match="from 1 to 3 layer groups, got 4"):
        list(train(recipe, datasets.from_recipe(recipe), tmp_path))
    with pytest.raises(PartitionError, match="from 1 to 1 layer groups, got 4"):
        LCTNetwork.cut(torch.nn.Linear(3, 2), torch.zeros(2, 3))
