"""A run goes on, and is measured, on the data that it has learned; `train` says at its start what that is."""

from __future__ import annotations

import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from anytime_lct import verbs
from anytime_lct.cli.progress import start_line
from anytime_lct.data import datasets
from anytime_lct.errors import DataError
from anytime_lct.exits.bundle import Contents
from anytime_lct.recipes import reading
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.paths import Changes
from anytime_lct.training.events import Start
from anytime_lct.training.run import train

POSITIONS = """
import torch
from torch import nn


class Positions(nn.Module):
    def __init__(self, input_shape, outputs, sliced=False):
        super().__init__()
        self.embedding, self.output = nn.Embedding(outputs, 8), nn.Linear(8, outputs)
        self.position, self.sliced = nn.Parameter(torch.zeros(input_shape[0], 8)), sliced

    def forward(self, x):
        return self.output(self.embedding(x) + (self.position[: x.shape[1]] if self.sliced else self.position))
"""


def write_images(root, classes=("cat", "dog"), count=4, side=8):
    for part in ("train", "test"):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = np.full((side, side, 3), 90 * number + k, np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")


def rename(root):
    for part in ("train", "test"):
        (root / part / "cat").rename(root / part / "kitten")


def add_one(root):
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "9.png")


def add_class(root):
    for part in ("train", "test"):
        shutil.copytree(root / part / "cat", root / part / "ape")


def enlarge(root):
    shutil.rmtree(root)
    write_images(root, side=12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on a folder of images, a stopped one, and the folder."""
    root = tmp_path_factory.mktemp("changed")
    write_images(root / "data")
    recipe = reading.complete(
        {
            "data": {"name": "imagefolder", "root": str(root / "data"), "batch_size": 4, "validation": 0.25},
            "model": {"name": "mlp", "hidden": [8]},
            "cut": {"groups": 2},
            "train": {"epochs": 2},
        }
    )
    verbs.train(recipe, root / "run")
    verbs.analyze(root / "run")
    with pytest.raises(KeyboardInterrupt):
        for event in train(recipe, datasets.from_recipe(recipe), root / "stopped"):
            if isinstance(event, Start):
                os.kill(os.getpid(), signal.SIGINT)
    return root


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (rename, "class 1 'cat', got class 1 'dog'"),
        (add_class, "classes 2, got classes 3"),
        (add_one, r"samples \(6, 2, 8\), got training, validation and test samples \(7, 2, 8\)"),
        (enlarge, "images of one size, got images resized to 9"),
    ],
)
def test_changed_images_are_refused(trained, tmp_path, change, says):
    data = trained / "data"
    shutil.copytree(data, tmp_path / "kept")
    try:
        change(data)
        for call in (
            lambda: verbs.train(None, trained / "stopped", resume=True),
            lambda: verbs.analyze(trained / "run"),
            lambda: verbs.thresholds(trained / "run", [1e6]),
            lambda: verbs.export(trained / "run", tmp_path / "bundle", Contents(), int8_samples=4),
        ):
            with pytest.raises(DataError, match=says):
                call()
    finally:
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "kept", data)


def test_the_same_data_elsewhere_is_taken(trained, tmp_path):
    shutil.copytree(trained / "data", tmp_path / "moved")
    shutil.copytree(trained / "run", tmp_path / "run")
    assert verbs.analyze(tmp_path / "run", changes=Changes(data_root=str(tmp_path / "moved"))).num_groups == 2


def test_facts_without_counts_are_compared_without_them(trained):
    facts = run_folder.read(trained / "run")[1]
    assert facts.counts == (6, 2, 8)
    record = json.loads((trained / "run" / "facts.json").read_text())
    assert record["counts"] == [6, 2, 8]
    old = type(facts)(**{name: value for name, value in vars(facts).items() if name != "counts"})
    run_folder.expect_same_data(trained / "run", old, facts)


def test_training_begins_with_its_data_and_cuts(tmp_path):
    recipe = reading.complete(
        {"model": {"name": "mlp", "hidden": [8, 8]}, "cut": {"groups": 3}, "train": {"epochs": 1}}
    )
    start = next(event for event in train(recipe, datasets.from_recipe(recipe), tmp_path / "run"))
    assert isinstance(start, Start)
    assert start_line(start) == (
        "digits: 10 classes (0, 1, 2, 3, 4, ...) as 1x8x8; 1,293 images for training, 144 for validation, 360 for "
        f"test; cut after {', '.join(start.places)}; exits at 90%, 100% of the main network's 656 multiply-adds; "
        "a step takes about 1 MB of memory"
    )


def positions_recipe(folder, **model):
    (folder / "net.py").write_text(POSITIONS)
    (folder / "text.txt").write_text("abc\n" * 500)
    return reading.complete(
        {
            "data": {"name": "text", "path": str(folder / "text.txt"), "batch_size": 4, "sequence_length": 30},
            "model": {"name": f"{folder}/net.py:Positions", **model},
            "cut": {"groups": 2},
            "train": {"epochs": 1},
        }
    )


def test_a_network_with_fixed_positions_is_refused_before_training(tmp_path, capsys):
    recipe = positions_recipe(tmp_path)
    with pytest.raises(
        DataError, match=r"the validation split's windows of 16 characters, got one for 30 alone \(.*\)"
    ):
        list(train(recipe, datasets.from_recipe(recipe), tmp_path / "run"))
    assert not (tmp_path / "run").exists() and not capsys.readouterr().err


def test_a_network_that_slices_its_positions_is_trained_and_measured(tmp_path):
    recipe = positions_recipe(tmp_path, sliced=True)
    start, *_ = train(recipe, datasets.from_recipe(recipe), tmp_path / "run")
    assert isinstance(start, Start)
    assert start_line(start).startswith(
        r"text: 4 symbols ('\n', 'a', 'b', 'c') in UTF-8; 1,800 characters for training, 100 for validation, 100 for "
        "test; cut"
    )
    assert verbs.analyze(tmp_path / "run").metric == "bpc"
