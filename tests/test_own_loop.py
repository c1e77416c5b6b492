"""Loops over a network of one's own, the user's and the toolkit's: resumed to the bit, then through every verb."""

from __future__ import annotations

import signal
from functools import cache, partial
from pathlib import Path

import asgi
import own_digits
import pytest
import torch
from fake_engine import FakeEngine
from serving_apps import bounded
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from anytime_lct.data import datasets
from anytime_lct.data.batches import Dataset
from anytime_lct.errors import CheckpointError, DataError, ModelError, RecipeError
from anytime_lct.exits.bundle import Contents
from anytime_lct.lct import Rule, descend
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CutRecipe, DataRecipe
from anytime_lct.run_folder.paths import Changes
from anytime_lct.task import losses
from anytime_lct.training.own import train
from anytime_lct.verbs import analyze, export, save, thresholds

DATA = DataRecipe(name=f"{own_digits.__file__}:data", batch_size=100)
EPOCHS, INTERRUPTED = 2, (1, 2)  # the epoch, and the minibatches of it that are done


def cut(width: int = 8) -> LCTNetwork:
    torch.manual_seed(0)
    return LCTNetwork.cut(own_digits.network(width=width), torch.zeros(2, 1, 8, 8), CutRecipe(places=("2",)))


@cache
def data_set() -> Dataset:
    return datasets.load(DATA)


class Training:
    """A user's loop, with mixup and a moving average; its state is what torch stores."""

    def __init__(self) -> None:
        self.network, self.epoch, self.batch = cut(), 0, 0
        self.optimizer = torch.optim.Adam(self.network.parameters(), 3e-3)
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    def run(self, stop: tuple[int, int] | None = None) -> None:
        data = data_set()
        while self.epoch < EPOCHS:
            for x, y in data.batches("train", self.epoch, start=self.batch):
                if (self.epoch, self.batch) == stop:
                    return
                generator = torch.Generator().manual_seed(1000 * self.epoch + self.batch)
                share, order = torch.rand((), generator=generator), torch.randperm(len(x), generator=generator)
                labels = nn.functional.one_hot(y, 10).float()
                self.step(torch.lerp(x[order], x, share), torch.lerp(labels[order], labels, share))
                self.batch += 1
            self.epoch, self.batch = self.epoch + 1, 0

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        h, waiting = x, None
        for f, c in zip(self.network.groups, [*self.network.critics, None], strict=True):
            here = descend(f, c, h, y, partial(losses, "classification"), Rule(critic_loss="mixed"))
            if waiting is not None:
                waiting.learn(here.L)
            h, waiting = here.h, here
        self.optimizer.step()
        self.average.update_parameters(self.network)

    def save(self, path: Path) -> None:
        parts = (self.network, self.optimizer, self.average)
        torch.save((self.epoch, self.batch, *(part.state_dict() for part in parts)), path)

    def load(self, path: Path) -> None:
        self.epoch, self.batch, *states = torch.load(path, weights_only=True)
        for part, state in zip((self.network, self.optimizer, self.average), states, strict=True):
            part.load_state_dict(state)


def test_a_loop_of_ones_own_resumes_to_the_bit_and_goes_through_every_verb(tmp_path):
    whole, first, second = Training(), Training(), Training()
    whole.run()
    first.run(stop=INTERRUPTED)
    first.save(tmp_path / "state.pt")
    second.load(tmp_path / "state.pt")
    second.run()
    network = second.average.module
    ours, theirs = network.state_dict().values(), whole.average.module.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    run = save(tmp_path / "run", network, DATA, model=own_digits.network)
    profile = analyze(run)
    thresholds(run, [0.9 * profile.cost(2).flops])
    bundle = export(run, tmp_path / "bundles" / "own", Contents(only="groups"))
    assert bundle.thresholds is not None and bundle.manifest.model == "own_digits.py:network"
    x, _ = next(iter(data_set().batches("test")))
    with FakeEngine() as engine, torch.no_grad():
        assert_served(engine, tmp_path / "bundles", x[:2], network.eval()(x[:2]))


def assert_served(engine: FakeEngine, folder: Path, x: Tensor, logits: list[Tensor]) -> None:
    tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}
    response = asgi.ask(bounded(folder, engine), "POST", "/v2/models/own/infer", {"inputs": [tensor]})
    outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
    assert outputs["logits"] == pytest.approx(logits[outputs["exit"][0] - 1].flatten().tolist(), abs=1e-4)


def loaders(stop: int | None = None) -> dict[str, object]:
    """Loaders of a user, the training part in an order and with noise of its own; it is interrupted at item `stop`."""
    parts, read = own_digits.data(), []

    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            read.append(index)
            if len(read) == stop:
                signal.raise_signal(signal.SIGINT)
            x, y = super().__getitem__(index)
            return (x + 0.1 * torch.rand(())).clamp(0, 1), y

    order = torch.Generator().manual_seed(stop or 0)  # whose state is another one after an interruption
    train_part = DataLoader(Noisy(*parts["train"].tensors), batch_size=100, shuffle=True, generator=order)
    return {**parts, "train": train_part, **{p: DataLoader(parts[p], batch_size=100) for p in ("validation", "test")}}


def test_a_network_of_ones_own_resumes_to_the_bit_in_a_run_folder(tmp_path):
    options = {"model": {"name": own_digits.network}, "train": {"average": 0.9}, "log": ["jsonl"]}
    whole, network, points = cut(), cut(), []

    class Mine:
        def write(self, point):
            points.append(point.step)

        def close(self):
            points.append("closed")

    (_, last) = train(whole, loaders(), epochs=2, run_dir=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(cut(), loaders(stop=850), epochs=2, run_dir=tmp_path / "cut", **options)
    again = {**options, "log": ["jsonl", Mine()]}
    (epoch,) = train(network, loaders(stop=0), epochs=2, run_dir=tmp_path / "cut", resume=True, **again)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), network.state_dict().values(), strict=True)
    )
    assert (epoch.train_losses, epoch.scores) == (last.train_losses, last.scores)
    assert points[-2:] == [12, "closed"] and points[0] > 6
    assert analyze(tmp_path / "cut").exits[1].validation.value == pytest.approx(last.scores[1])
    with pytest.raises(RecipeError, match=r"train\.average = 0\.9, got 0\.5"):
        train(cut(), loaders(), run_dir=tmp_path / "cut", resume=True, train={"average": 0.5})
    with pytest.raises(CheckpointError, match="holds a run already"):
        train(cut(), loaders(), run_dir=tmp_path / "cut")


def test_a_folder_without_a_factory_takes_one_later(tmp_path):
    network = cut(width=4)
    run = save(tmp_path / "run", network, loaders())
    with pytest.raises(CheckpointError, match=r"--model path/to/file\.py:FACTORY"):
        analyze(run)
    named = Changes(model=f"{own_digits.__file__}:network")
    with pytest.raises(CheckpointError, match="has shape"):
        analyze(run, changes=named)
    with pytest.raises(CheckpointError, match="has shape"):
        save(tmp_path / "other", network, loaders(), model=own_digits.network)
    with pytest.raises(CheckpointError, match="overwrite it by replace=True"):
        save(run, network, loaders())
    save(run, network, loaders(), model=own_digits.network, options={"width": 4}, replace=True)
    assert analyze(run).exits[0].test == analyze(network, loaders()).exits[0].test


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": lambda: None}, ModelError, "write one into a file"),
        ({"data": {"test": [(torch.randn(4, 1, 8, 8), torch.zeros(4).long())]}}, DataError, 'add "mean" and "std"'),
        (
            {"data": {"test": [(torch.rand(4, 64), torch.zeros(4).long())]}},
            DataError,
            "that the network reads, got one of shape",
        ),
        ({"data": {"tests": []}}, DataError, "got 'tests'"),
        (
            {"data": {"test": [(torch.rand(4, 1, 8, 8), torch.zeros(4).long())], "classes": "ab"}},
            DataError,
            "10 outputs",
        ),
    ],
)
def test_what_cannot_be_saved_is_refused(change, error, says, tmp_path):
    with pytest.raises(error, match=says):
        save(tmp_path / "run", cut(), change.get("data", {"test": loaders()["test"]}), model=change.get("model"))
    assert not (tmp_path / "run").exists()
