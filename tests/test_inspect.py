"""inspect: numbers by hand, the balanced choice, and one sentence where a network cannot be cut."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from torch import nn

from anytime_lct.analysis.inspection import inspect
from anytime_lct.cli.main import run as program
from anytime_lct.errors import CountWarning
from anytime_lct.exits.profile import Cost
from anytime_lct.network import choose_places
from anytime_lct.recipes.recipe import CriticRecipe, CutRecipe

PLAIN = """
from torch import nn


class Plain(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.flatten, self.a, self.b = nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, outputs)

    def forward(self, x):
        if x.mean() > 1e9:
            x = x / 2
        return self.b(self.a(self.flatten(x)))
"""


def call(capfd, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        program([str(word) for word in words])
    return int(end.value.code or 0), *capfd.readouterr()


def test_a_perceptron_by_hand():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    inspection = inspect(model, torch.zeros(2, 4), CutRecipe(groups=2, by="balanced"), CriticRecipe(kind="paper"))
    assert inspection.main == Cost(flops=32 + 128 + 48, params=40 + 144 + 51)
    assert [(place.name, place.crosses, place.shape, place.flops) for place in inspection.places] == [
        ("1", "vector", (8,), 32),
        ("3", "vector", (16,), 160),
    ]
    (exit_, main) = inspection.parts
    assert (exit_.ends, exit_.critic, exit_.exit) == ("1", Cost(flops=24, params=27), Cost(flops=56, params=67))
    assert (main.group, main.critic, main.exit) == (Cost(flops=176, params=195), None, inspection.main)
    assert inspection.legal == 4 and not inspection.whole


def test_the_choice_is_that_of_training_and_the_network_stays_as_it_was():
    model, example = torchvision.models.resnet18(num_classes=10), torch.zeros(2, 3, 64, 64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inspection = inspect(model, example, CutRecipe(groups=3, by="balanced"), CriticRecipe())
    places = choose_places(model, example, CutRecipe(groups=3, by="balanced"))
    assert tuple(part.ends for part in inspection.parts[:-1]) == places
    assert inspection.places[1].crosses == "map" and inspection.places[-1].flops < inspection.main.flops
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()) and model.training


def test_a_trial_export_fails_before_a_training_would(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sorted.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Eigen(nn.Module):\n    def forward(self, x):\n"
        "        return torch.linalg.eigvalsh(x @ x.transpose(-1, -2))\n\n"
        "def make(outputs):\n    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Eigen(), nn.Flatten(), "
        "nn.Linear(16, outputs))\n"
    )
    words = ("inspect", "sorted.py:make", "--input", "3x4x4", "--classes", 7, "--groups", 2, "--critic", "slim")
    with pytest.warns(CountWarning, match="counted without aten::linalg_eigvalsh"):
        code, _, _ = call(capfd, *words)
    assert code == 0
    with pytest.warns(CountWarning):
        code, _, err = call(capfd, *words, "--export")
    assert code == 2 and "Layer group 1 cannot be exported to ONNX: " in err


def test_the_command_says_what_it_would_cut_and_why_it_cannot(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.py").write_text(PLAIN)
    shape = ("--input", "3x2x2", "--classes", 7)
    code, out, _ = call(capfd, "inspect", "mlp", *shape, "--groups", 2, "--set", "model.hidden=[5,4]", "--json")
    answer = json.loads(out)
    assert code == 0 and [place["name"] for place in answer["places"]] == ["relu1", "relu2"]
    assert answer["parts"][0]["group"] == {"flops": 60, "params": 65}
    code, out, _ = call(capfd, "inspect", "mlp", *shape, "--budget-flops", "0.99")
    assert code == 0 and "--set cut.places=relu1" in out and "--data DATA" in out
    code, out, _ = call(capfd, "inspect", "mlp", *shape, "--groups", 2, "--set", "model.hidden=[5, 4]")
    assert code == 0 and "--set 'model.hidden=[5, 4]' --set cut.places=" in out
    code, out, _ = call(capfd, "inspect", "mlp", *shape, "--groups", 2, "--export")
    assert code == 0 and "the largest difference of logits from torch is " in out
    code, out, _ = call(capfd, "inspect", "mlp", *shape, "--groups", 1)
    assert code == 0 and "--set cut.groups=1" in out and "cut.places" not in out
    resnet = ("resnet", "--input", "1x8x8", "--groups", 3, "--set", "cut.by=balanced")
    code, out, _ = call(capfd, "inspect", *resnet, "--critic", "paper")
    assert code == 0 and "Exit 1 costs 105.9% of the main network, exit 2 costs 100.0% of the main network." in out
    assert "Train with --set cut.shares=0.33,0.67 --set critic.kind=slim: 2 exits at 26%, 60%." in out
    code, _, err = call(capfd, "inspect", "plain.py:Plain", *shape)
    assert code == 2 and "plain.py:11 (if x.mean() > 1e9:)" in err and "name places" in err
    code, out, _ = call(capfd, "inspect", "plain.py:Plain", *shape, "--places", "a", "--critic", "slim")
    assert code == 0 and "main" in out
    for words, says in (
        (("mlp", "--input", "3x"), "--input as 3x224x224"),
        (("resnet20", "--input", "9", "--tokens", 0), "reads images (C, H, W)"),
        (("mlp", *shape, "--set", "train.epochs=2"), "such as model.width=8, or a key of cut or critic"),
        (("mlp", *shape, "--budget-flops", "1.5"), "less than 1"),
        (("mlp", *shape, "--groups", 4, "--budget-flops", "0.3", "--places", "relu2"), "leave one of them out"),
        (("mlp", *shape, "--set", "model.outputs=5"), "which comes from the data"),
        (("mlp", *shape, "--set", "model.hidden=1.5"), "hidden sizes of at least 1"),
        (("mlp", *shape, "--groups", 9), "from 1 to 3 layer groups, got 9"),
        (
            ("mlp", *shape, "--groups", 2, "--critic", "tiny"),
            "'critic.kind' is 'tiny': input should be 'slim', 'residual', 'paper', 'paper-imagenet' or 'own'.",
        ),
    ):
        code, _, err = call(capfd, "inspect", *words)
        assert code == 2 and says in " ".join(err.split())


LOUD = """
from torch import nn

class Loud(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, num_classes))

    def forward(self, x):
        print("I am here")
        return super().forward(x)
"""


@pytest.mark.parametrize("classes", ["3", "two"])
def test_what_a_network_prints_stays_out_of_json(classes, tmp_path, capfd):
    (tmp_path / "loud.py").write_text(LOUD)
    with pytest.raises(SystemExit):
        program(
            ["inspect", f"{tmp_path}/loud.py:Loud", "--input", "3x4x4", "--classes", classes, "--groups", "2", "--json"]
        )
    out, err = capfd.readouterr()
    assert json.loads(out).keys() & {"parts", "error"} and ("I am here" in err) == (classes == "3")
