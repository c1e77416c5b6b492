"""Regression through every verb: numbers are learned, measured, exported and answered in the unit of the data."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from v2_requests import read, reply, tensor

from anytime_lct import verbs
from anytime_lct.analysis import statistics
from anytime_lct.data import datasets
from anytime_lct.data.loaders import LoadedBatches
from anytime_lct.errors import BudgetError, DataError, ExportError, RecipeError
from anytime_lct.evaluation import Tally
from anytime_lct.exits.bundle import Contents
from anytime_lct.exits.selector import select
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import DataRecipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.serving.request import Refusal
from anytime_lct.serving.v2 import protocol
from anytime_lct.task import losses
from anytime_lct.training.prepare import expect_keys_suit

FILE = """
import numpy as np

class Greys:
    def __init__(self, count, seed, view=lambda target: target):
        self.pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), np.uint8)
        self.pixels[:, :4] //= 1 + np.arange(count, dtype=np.uint8)[:, None, None] % 8
        self.view = view

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        image = self.pixels[index]
        return image, self.view(np.array([1000 + image[:4].mean(), image.mean()], np.float32))

def make():
    return {"train": Greys(400, 0), "test": Greys(80, 1), "targets": ["upper", "mean"]}

def one(): return {"train": Greys(50, 0, lambda target: float(target[0]))}
def endless(): return {"train": Greys(50, 0, lambda target: target * np.nan)}
def equal(): return {"train": Greys(50, 0, lambda target: [1.0, 2.0])}
def mixed(): return {"train": Greys(50, 0, lambda target: float(target[0]) if target[1] > 90 else 3)}
def unnamed(): return {"train": Greys(50, 0), "targets": ["one"]}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on two targets, with its profile and its bundle."""
    folder = tmp_path_factory.mktemp("regression")
    (folder / "greys.py").write_text(FILE, encoding="utf-8")
    recipe = reading.complete({
        "data": {"name": f"{folder / 'greys.py'}:make", "batch_size": 40},
        "model": {"name": "mlp", "hidden": [24, 16]}, "cut": {"groups": 3}, "train": {"epochs": 5},
    })  # fmt: skip
    epoch = verbs.train(recipe, folder / "run")
    profile = verbs.analyze(folder / "run")
    assert epoch is not None and np.allclose(epoch.scores, [exit.validation.value for exit in profile.exits], rtol=1e-5)
    verbs.export(folder / "run", folder / "bundle")
    return folder


def test_the_metric_is_the_root_of_the_mean_squared_error_in_the_unit_of_the_data(run):
    opened = run_folder.open_run(run / "run")
    data, profile = opened.load_data(), run_folder.read_profile(run / "run")
    x, y = next(data.batches("test"))
    centers = torch.tensor(opened.facts.centers)
    with torch.no_grad():
        numbers = opened.network(torch.cat([x for x, _ in data.batches("test")]))[-1] * opened.facts.scale + centers
    truth = torch.cat([y for _, y in data.batches("test")]) * opened.facts.scale + centers
    main, test = (numbers - truth).square().mean().sqrt().item(), profile.exits[-1].test
    assert profile.metric == "rmse" and test.value == pytest.approx(main, rel=1e-4) and test.low < main < test.high
    assert test.value < opened.facts.scale  # better than the mean target
    assert opened.facts.classes == ("upper", "mean") and opened.facts.outputs == 2
    train = torch.cat([y for _, y in data.batches("train")])
    assert train.mean(dim=0).abs().max() < 1e-5 and train.var(dim=0, correction=0).mean() == pytest.approx(1, abs=1e-5)
    assert torch.equal(losses("regression", x[:, 0, :1, 0], y[:, :1]), (x[:, 0, :1, 0] - y[:, :1]).square()[:, 0])


def test_a_tally_and_an_interval_take_the_root():
    tally, Z, y = Tally("regression", 1), torch.tensor([[1.0], [2.0], [4.0]]), torch.zeros(3, 1)
    tally.add(0, Z, y)
    loss, rmse, error, _ = Tally.scaled(tally.results(), 10.0)[:, 0].tolist()
    assert loss == pytest.approx(7) and rmse == pytest.approx(10 * 7**0.5)
    assert error == pytest.approx(10 * np.std([1, 4, 16]) / 3**0.5 / (2 * 7**0.5))
    value, low, high = statistics.interval(np.array([1.0, 4.0, 16.0]), "rmse")
    assert value == pytest.approx(7**0.5) and low == 0 and high > value
    assert statistics.p_worse(np.array([[2.0, 3, 4], [1, 1, 1]]), "rmse")[0][1] < 0.05


def test_exits_are_selected_by_rmse(run, program):
    profile = run_folder.read_profile(run / "run")
    worst = max(exit.validation.value for exit in profile.exits)
    assert select(profile, max_rmse=worst + 1e-6).exit == select(profile, max_drop=worst).exit == 1
    with pytest.raises(BudgetError, match="use max_rmse or max_drop"):
        select(profile, min_accuracy=0.5)
    code, out, _ = program("select", run / "run", "--max-drop", "1000", "--json")
    assert code == 0 and json.loads(out)["metric"] == "rmse"
    assert "in the unit of the targets" in program("select", run / "run", "--max-drop", "1%")[2]


def test_a_bundle_answers_numbers_in_the_unit_of_the_data(run, program, tmp_path):
    opened, session = run_folder.open_run(run / "run"), AnytimeSession(run / "bundle")
    x = torch.cat([x for x, _ in opened.load_data().batches("test")])[:3]
    with torch.no_grad():
        exits = [Z * opened.facts.scale + torch.tensor(opened.facts.centers) for Z in opened.network(x)]
    for answer, Z in zip(session.stream(x.numpy()), exits, strict=True):
        np.testing.assert_allclose(answer.logits, Z.numpy(), rtol=1e-5)
    np.save(tmp_path / "x.npy", x.numpy())
    code, out, _ = program("predict", run / "bundle", tmp_path / "x.npy", "--fixed", "main", "--json")
    rows = json.loads(out)["answers"]
    assert code == 0 and [list(row["numbers"].values()) for row in rows] == pytest.approx(exits[-1].numpy(), rel=1e-5)
    table = program("predict", run / "bundle", tmp_path / "x.npy")[1]
    assert "numbers" in table and "upper 10" in table
    header = program("predict", run / "bundle", tmp_path / "x.npy", "--format", "csv")[1].splitlines()[0]
    assert header == "input,sample,exit,flops,stopped,upper,mean"
    code, _, err = program("predict", run / "bundle", tmp_path / "x.npy", "--min-confidence", "0.9")
    assert code == 2 and "got one of numbers, which have none" in err
    assert "with a network that classifies" in program("predict", run / "bundle", tmp_path / "x.npy", "--top", "3")[2]


def test_the_protocol_describes_and_writes_numbers(run):
    manifest = AnytimeSession(run / "bundle").manifest
    outputs = protocol.describe_model("greys", ["1"], manifest)["outputs"]
    assert [(each["name"], each["shape"]) for each in outputs] == [("numbers", [-1, 2]), ("exit", [-1])]
    image = tensor(np.zeros((1, 1, 8, 8)).tolist(), shape=(1, 1, 8, 8))
    request = read(manifest, {"inputs": [image]}).request
    answer = reply(np.array([[1020.5, 90.25]], np.float32), np.array([2]))
    body = json.loads(protocol.write_reply(request, "greys", "1", answer, 0.0)[0])
    assert body["outputs"][0] == {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [1020.5, 90.25]}
    of_classes = {"name": "numbers", "parameters": {"classification": 1}}
    for wanted, words in (({"name": "logits"}, "numbers, exit"), (of_classes, "leave it out")):
        with pytest.raises(Refusal, match=words):
            read(manifest, {"inputs": [image], "outputs": [wanted]})


def test_what_needs_a_confidence_is_refused_in_one_sentence(run, program, tmp_path):
    code, _, err = program("thresholds", run / "run", "--mean-flops", "70%")
    assert code == 2 and "got one of numbers, which have no confidence" in err
    with pytest.raises(ExportError, match="leave --single-file out"):
        verbs.export(run / "run", tmp_path / "single", Contents(single=True))
    recipe, facts = run_folder.read(run / "run")
    smoothed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"label_smoothing": 0.1})})
    with pytest.raises(RecipeError, match=r"no train\.label_smoothing"):
        expect_keys_suit(smoothed, facts)


def test_targets_of_a_factory(run):
    data = datasets.load(DataRecipe(name=f"{run / 'greys.py'}:one"))
    assert data.facts.task == "regression" and data.facts.classes == ("target",) and data.augment == "none"
    for factory, words in (
        ("endless", "finite numbers"), ("equal", "targets that differ"), ("mixed", "give all in one form"),
        ("unnamed", "a name for each of 2 targets, got 1"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            datasets.load(DataRecipe(name=f"{run / 'greys.py'}:{factory}"))


def test_minibatches_of_the_user_s_program_may_have_targets():
    network = LCTNetwork([torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1))], [])
    x, y = torch.zeros(3, 1, 2, 2), torch.tensor([0.5, 1.0, 2.0])
    facts = LoadedBatches({"test": [(x, y)]}, "test").described(network).facts
    assert (facts.task, facts.outputs) == ("regression", 1)
    assert losses("regression", torch.zeros(3, 1), y).tolist() == [0.25, 1.0, 4.0]
