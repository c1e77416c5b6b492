"""train(network, data): the weights of a run, the user's own random state and data order, and clear refusals."""

from __future__ import annotations

import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from anytime_lct.data import datasets
from anytime_lct.errors import DataError, DivergenceError, RecipeError
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import CutRecipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import build_network
from anytime_lct.training import run as runs
from anytime_lct.training.events import Epoch
from anytime_lct.training.own import train

TABLES = {
    "groups": {"name": "sgd", "lr": 0.05},
    "critics": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0},
    "groups_schedule": {"name": "cosine"},
    "critics_schedule": {"name": "constant"},
    "rule": {"critic_loss": "mixed", "cross_entropy": 0.5},
}


def small(dropout: float = 0.0) -> LCTNetwork:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    return LCTNetwork.cut(nn.Sequential(*layers), torch.zeros(2, 6), CutRecipe(groups=2))


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 6, generator=generator), torch.randint(0, 3, (5,), generator=generator)) for _ in range(count)
    ]


def test_the_weights_are_those_of_a_run_folder(tmp_path):
    recipe = recipes.complete(
        {
            "data": {"name": "digits", "augment": "none", "batch_size": 200},
            "model": {"name": "resnet", "depth": 8, "width": 4, "dropout": 0.2},
            "cut": {"groups": 3},
            "train": {"epochs": 1, "seed": 3, "clip_norm": 1.0},
            **TABLES,
        }
    )
    data = datasets.from_recipe(recipe)
    *_, last = (event for event in runs.train(recipe, data, tmp_path / "run") if isinstance(event, Epoch))
    network = build_network(recipe, data.facts)
    ours = list(data.batches("train")), list(data.batches("validation"))
    (epoch,) = train(network, {"train": ours[0], "validation": ours[1]}, train={"seed": 3, "clip_norm": 1.0}, **TABLES)
    run = run_folder.open_run(tmp_path / "run").network
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), run.state_dict().values(), strict=True))
    assert (epoch.train_losses, epoch.scores) == (last.train_losses, last.scores)
    assert not network.training


def test_data_see_the_users_own_random_state():
    """Dropout is seeded step by step, but the order of the data is the user's, another one every epoch."""
    x, y = torch.arange(12.0).view(12, 1).expand(12, 6), torch.arange(12) % 3
    visits: list[list[float]] = [[], [], []]

    class Noting(TensorDataset):
        def __getitem__(self, index):
            visits[epoch].append(float(index))
            return super().__getitem__(index)

    loader = DataLoader(Noting(x, y), batch_size=4, shuffle=True)
    for epoch in range(2):
        torch.manual_seed(epoch)
        train(small(dropout=0.5), loader, **TABLES)
    epoch = 2
    torch.manual_seed(0)
    train(small(dropout=0.5), loader, epochs=2, **TABLES)
    orders = [visits[0], visits[1], visits[2][:12], visits[2][12:]]
    assert all(sorted(order) == [float(k) for k in range(12)] for order in orders)
    assert orders[2] != orders[3]


class Drawing(torch.nn.Module):
    """Scales its input in training by numbers that Python and numpy draw."""

    def forward(self, x):
        return x * (random.random() + np.random.rand()) if self.training else x


def test_what_a_network_draws_from_python_and_numpy_follows_from_the_seed():
    """And the loader's own draws do not see it."""

    def run(state: int) -> tuple[list[torch.Tensor], list[float]]:
        random.seed(state)
        np.random.seed(state)
        draws: list[float] = []

        class Loader(list):
            def __iter__(self):
                for batch in super().__iter__():
                    draws.append(random.random() + np.random.rand())
                    yield batch

        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), Drawing(), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        network = LCTNetwork.cut(model, torch.zeros(2, 6), CutRecipe(groups=2))
        train(network, Loader(batches()), **TABLES)
        return list(network.parameters()), draws

    (weights, first), (others, second) = run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    random.seed(1)
    np.random.seed(1)
    assert first == [random.random() + np.random.rand() for _ in first] != second


def test_every_epoch_is_reported():
    reports: list[Epoch] = []
    epochs = train(small(), batches(), epochs=3, report=reports.append, **TABLES)
    assert epochs == reports and [(e.epoch, e.step) for e in epochs] == [(1, 4), (2, 8), (3, 12)]
    assert epochs[-1].scores == () and len(epochs[-1].train_losses) == 2


def test_validation_is_brought_to_the_device_a_minibatch_at_a_time():
    alive, most = weakref.WeakSet(), []

    class Counted:
        def __iter__(self):
            for x, y in batches():
                x = x.double()
                alive.add(x)
                yield x, y
                most.append(len(alive))

    network = small()
    train(network.double(), {"train": [(x.double(), y) for x, y in batches()], "validation": Counted()}, **TABLES)
    assert len(most) == 4 and max(most) <= 2


@pytest.mark.parametrize(
    ("data", "tables", "error", "says"),
    [
        (iter(batches()), {}, DataError, "with a length"),
        ([], {}, DataError, "at least one minibatch"),
        (batches(), {"groups": {"rate": 1.0}}, RecipeError, "groups.rate"),
        (batches(), {"train": {"method": "bp"}}, RecipeError, "got 'train.method'"),
        (batches(), {"critic": {"kind": "paper"}}, RecipeError, "got 'critic'"),
        (batches(), {"groups": {"lr": 1e30}}, DivergenceError, "lower groups"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(data, tables, error, says):
    with pytest.raises(error, match=says):
        train(small(), data, epochs=3, **tables)
