"""Fashion-MNIST as Debian or torchvision lays it out: found, right, and learnt from for a moment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from anytime_lct.data import datasets as data
from anytime_lct.data.idx import DEBIAN_FASHION_MNIST
from anytime_lct.data.locations import ROOT_VARIABLE
from anytime_lct.recipes import reading
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.training.run import train

ROOT = Path(os.environ.get(ROOT_VARIABLE, ".data"))
available = (ROOT / "FashionMNIST").is_dir() or DEBIAN_FASHION_MNIST.is_dir()
pytestmark = pytest.mark.skipif(not available and "CI" not in os.environ, reason="Fashion-MNIST is not on this machine")


def test_fashion_mnist_is_all_there():
    dataset = data.from_recipe(reading.read(None, {"data.name": "fashion-mnist", "data.augment": "none"}))
    assert [dataset.num_samples(s) for s in ("train", "validation", "test")] == [54_000, 6_000, 10_000]
    assert dataset.facts.input_shape == (1, 28, 28)
    assert dataset.facts.classes[0] == "T-shirt/top"
    labels = torch.cat([y for _, y in dataset.batches("test")])
    assert torch.bincount(labels).tolist() == [1000] * 10
    assert dataset.facts.mean == pytest.approx((0.2860,), abs=2e-3)


def test_one_epoch_of_local_critic_training_learns_real_images(tmp_path):
    settings = {
        "data.name": "fashion-mnist", "data.augment": "flip", "model.name": "mlp", "cut.groups": 3,
        "train.epochs": 1, "groups.lr": 0.05, "groups_schedule.name": "one-cycle", "critics.lr": 1e-3,
    }  # fmt: skip
    recipe = reading.read(None, settings)
    for _ in train(recipe, data.from_recipe(recipe), tmp_path / "run"):
        pass
    last = json.loads((tmp_path / "run" / run_folder.METRICS).read_text())
    assert min(last["validation"]["accuracy"]) > 0.7  # chance is 0.1
