"""Weights as trainers save them become those of the network, to the bit, whatever wraps the file and its names."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from anytime_lct.data import datasets
from anytime_lct.errors import CheckpointError
from anytime_lct.models import networks
from anytime_lct.recipes import reading
from anytime_lct.recipes import recipe as recipes
from anytime_lct.run_folder import start, state_dicts
from anytime_lct.run_folder.build import build_network

FACTORY = """
from torch import nn


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.flat, self.head = nn.Flatten(), nn.Linear(144, outputs)

    def forward(self, x):
        return self.head(self.flat(self.stem(x)))


class Wrapper(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.module = Net(outputs)

    def forward(self, x):
        return self.module(x)


class Deep(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.flat, self.model = nn.Flatten(), nn.Sequential(nn.Linear(64, 8), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))

    def forward(self, x):
        return self.head(self.model(self.flat(x)))
"""


class Weights:
    """A network of the file above, and how it is loaded: `load(content)` returns the note of a file with `content`."""

    def __init__(self, folder: Path, name: str, **train: str) -> None:
        (folder / "net.py").write_text(FACTORY)
        self.folder, self.facts = folder, datasets.load(recipes.DataRecipe()).facts
        tables = {"model": {"name": f"{folder}/net.py:{name}"}, "cut": {"groups": 2}}
        self.recipe = reading.complete({**tables, "train": {"epochs": 1, "weights": str(folder / "w.pth"), **train}})
        torch.manual_seed(7)
        self.model = networks.build(self.recipe.model.name, (1, 8, 8), 10)
        self.state = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.network = build_network(self.recipe, self.facts)

    def load(self, content: object) -> str | None:
        torch.save(content, self.folder / "w.pth")
        return start.load_weights(self.network, self.recipe, self.facts)

    def are_loaded(self, *but: str) -> bool:
        return all(
            torch.equal(value, self.state[name]) == (name not in but)
            for name, value in self.network.main_state().items()
        )


@pytest.fixture
def net(tmp_path: Path) -> Weights:
    return Weights(tmp_path, "Net")


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "model.module.net.",
     "module.module."],
)  # fmt: skip
@pytest.mark.parametrize("name", ["Net", "Wrapper", "Deep"])
def test_prefixes_in_any_order_are_taken_away(tmp_path, name, prefix):
    weights = Weights(tmp_path, name)
    assert weights.load({prefix + key: value for key, value in weights.state.items()}) is None
    assert weights.are_loaded()


def test_a_safetensors_file_may_have_them_too(net):
    save_file({f"module.{name}": value for name, value in net.state.items()}, net.folder / "w.safetensors")
    recipe = net.recipe.model_copy(
        update={"train": net.recipe.train.model_copy(update={"weights": str(net.folder / "w.safetensors")})}
    )
    assert start.load_weights(net.network, recipe, net.facts) is None and net.are_loaded()


def test_a_network_gets_the_prefix_that_its_file_lacks(tmp_path):
    weights = Weights(tmp_path, "Wrapper")
    assert weights.load({key.replace("module.", "_orig_mod."): value for key, value in weights.state.items()}) is None
    assert weights.are_loaded()


def test_parts_that_are_compiled_by_themselves_are_known(net):
    assert net.load({name.replace("stem.", "stem._orig_mod."): value for name, value in net.state.items()}) is None
    assert net.are_loaded()


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "model_ema", "state_dict_ema"])
def test_a_trainers_file_is_unwrapped(net, key):
    assert net.load({"epoch": 3, key: net.state, "optimizer": {"lr": 0.1}}) is None and net.are_loaded()


def test_lightnings_file_is_read_without_its_loss(net):
    state = {f"model.{name}": value for name, value in net.state.items()} | {"criterion.weight": torch.ones(10)}
    note = net.load({"state_dict": state, "pytorch-lightning_version": "2.4.0", "hyper_parameters": {"lr": 0.1}})
    path = net.folder / "w.pth"
    assert note == f"The file '{path}' holds more than the network, which is left out: criterion.weight."
    assert net.are_loaded()


def test_averaged_weights_are_read_without_their_count(net):
    note = net.load(torch.optim.swa_utils.AveragedModel(net.model).state_dict())
    assert note is not None and note.endswith("left out: n_averaged.") and net.are_loaded()


def test_what_profilers_add_is_left_out(net):
    extra = {
        f"{name}{key}": torch.zeros(1) for name in ("", "stem.", "stem.0.") for key in ("total_ops", "total_params")
    }
    note = net.load({**net.state, **extra})
    assert note is not None and "left out: total_ops, total_params, stem.total_ops and 3 more." in note
    assert net.are_loaded()


@pytest.mark.parametrize(("name", "head"), [("Net", ["head.weight", "head.bias"]), ("Deep", ["head.2.weight"])])
def test_a_missing_classifier_starts_from_scratch(tmp_path, name, head):
    weights = Weights(tmp_path, name)
    note = weights.load({key: value for key, value in weights.state.items() if not key.startswith("head.")})
    assert note is not None and "have no classifier, the data has 10: head." in note and "from scratch" in note
    assert not any(torch.equal(weights.network.main_state()[key], weights.state[key]) for key in head)
    assert all(
        torch.equal(value, weights.state[key])
        for key, value in weights.network.main_state().items()
        if not key.startswith("head.")
    )


def test_a_frozen_network_needs_its_classifier(net):
    torch.save({key: value for key, value in net.state.items() if key.startswith("stem.")}, net.folder / "w.pth")
    with pytest.raises(CheckpointError, match=r"no classifier 'head.weight', .*cannot stay frozen"):
        start.load_weights(net.network, net.recipe, net.facts, frozen=True)


@pytest.mark.parametrize("part", ["stem.0.weight", "head.bias"])
def test_any_other_missing_weight_is_refused(net, part):
    with pytest.raises(CheckpointError, match=f"'{part}' is missing"):
        net.load({name: value for name, value in net.state.items() if name != part})


def test_another_networks_weights_are_refused(net):
    with pytest.raises(CheckpointError, match=r"'tail.weight' is unknown"):
        net.load({**net.state, "tail.weight": torch.zeros(2)})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(net, number):
    net.state["stem.0.bias"][1] = number
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 'stem.0.bias'; take the weights of an earlier"):
        net.load(net.state)


def test_infinity_that_the_network_itself_has_is_taken():
    own = {"mask": torch.tensor([0.0, -torch.inf]), "weight": torch.ones(2, 3)}
    model = nn.Linear(3, 2)
    assert state_dicts.rename(own, {"module.mask": own["mask"]}) == ({"mask": own["mask"]}, [])
    start.expect_finite("w.pth", own, {"mask": own["mask"], "weight": model.weight})


def test_other_objects_in_a_file_are_named(net):
    with pytest.raises(CheckpointError) as caught:
        net.load({"state_dict": net.state, "args": argparse.Namespace(lr=1)})
    assert "it holds an object argparse.Namespace; save model.state_dict() alone." in str(caught.value)
    assert "\x1b" not in str(caught.value)
