"""Data sets from the user's own file: what its factory may give, and that a run keeps the file."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anytime_lct import verbs
from anytime_lct.cli.train import default_folder
from anytime_lct.data import datasets
from anytime_lct.data.augment import erase
from anytime_lct.errors import CheckpointError, DataError
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import DataRecipe
from anytime_lct.run_folder import checkpoint
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.training.run import train

FILE = """
import random
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset
from sizes import SIDE

class Items(torch.utils.data.Dataset):
    def __init__(self, count, view=lambda pixels: pixels):
        self.count, self.view = count, view

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        pixels = np.full((SIDE, SIDE, 3), index, np.uint8)
        pixels[0, 0] = 200
        return self.view(pixels), np.int64(index % 2)

def tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)

VIEWS = {"numpy": lambda pixels: pixels, "pillow": Image.fromarray, "uint8": tensor, "float": lambda p: tensor(p) / 255}

class Data:
    def __init__(self, view="numpy"):
        self.train, self.validation = Items(40, VIEWS[view]), Items(6, VIEWS[view])
        self.test, self.classes = DataLoader(Items(10, VIEWS[view]), batch_size=3), ["even", "odd"]

def pillow(): return Data("pillow")
def uint8(): return Data("uint8")
def floats(): return Data("float")

def noisy():
    torch.rand(3)
    def add(pixels):
        return pixels + np.uint8(np.random.randint(3) + random.randrange(3) + int(torch.randint(3, ())))
    return {"train": Items(40, add)}

def rooted(root):
    names = (root / "names.txt").read_text().split()
    return {"train": Items(8), "test": Items(4), "classes": names}

class Endless(IterableDataset):
    def __iter__(self): return iter(())

def endless(): return {"train": DataLoader(Endless())}
def nothing(): return None
def empty(): return {"train": []}
def requires(path): return None
def broken(): return {"train": Items(8, lambda pixels: pixels / 0 if 1 / 0 else pixels)}
def scaled(): return {"train": Items(8, lambda pixels: tensor(pixels) / 127.5 - 1)}
def labels(): return {"train": Items(8), "test": Items(4), "classes": ["one"]}
def words(): return {"train": [(np.zeros((4, 4), np.uint8), "cat")] * 9}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.py").write_text(FILE)
    (tmp_path / "here" / "sizes.py").write_text("SIDE = 4\n")
    return tmp_path / "here" / "mine.py"


def load(file, factory, **options):
    return datasets.load(DataRecipe(name=f"{file}:{factory}", **options))


def batches(dataset, split="train", epoch=0, start=0):
    return list(dataset.batches(split, epoch, start))


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, z) and torch.equal(y, w) for (x, y), (z, w) in zip(a, b, strict=True)
    )


def test_images_of_pillow_torch_and_numpy_are_the_same(file):
    expected = load(file, "Data", augment="none")
    assert expected.facts.name == "mine.py:Data" and expected.facts.classes == ("even", "odd")
    assert expected.facts.input_shape == (3, 4, 4) and expected.facts.counts == (40, 6, 10) and not expected.notes
    x, y = batches(expected, "test")[0]
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (expected.facts.mean, expected.facts.std))
    assert [round(value) for value in ((x * std + mean) * 255)[:, 0, 1, 1].tolist()] == list(range(10))
    assert y.tolist() == [0, 1] * 5
    for factory in ("pillow", "uint8", "floats"):
        other = load(file, factory, augment="none")
        assert other.facts.mean == expected.facts.mean
        assert all(same(batches(other, part), batches(expected, part)) for part in ("train", "validation", "test"))


def test_random_numbers_of_items_follow_from_seed_epoch_and_number(file):
    dataset = load(file, "noisy", batch_size=8)
    assert dataset.augment == "none" and dataset.facts.counts == (32, 4, 4) and "no test part" in dataset.notes[0]
    whole = batches(dataset, epoch=1)
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.get_rng_state()
    assert same(batches(load(file, "noisy", batch_size=8, workers=1), epoch=1, start=1), whole[1:])
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(batches(dataset, epoch=2), whole)
    assert same(batches(dataset, "validation", 1), batches(dataset, "validation", 2))


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("absent", "function or class 'absent' in '.*mine.py' that builds the data set"),
        ("endless", "training part of '.*mine.py:endless', as every minibatch follows from the seed, got a Endless"),
        ("nothing", '"train": .., "test": .., "classes".* got a NoneType'),
        ("empty", "Expected items in the training part of .* got none"),
        ("requires", "at most `root`, .* requires path too; give"),
        ("broken", r"Item 0 of the training part .* division by zero \(at .*mine.py:\d+: "),
        ("scaled", r"float pixels in \[0, 1\], got values from -1 to 0.569; leave Normalize out"),
        ("labels", "labels from 0 to 0, .* got 1 for item 1 of the training part"),
        ("words", "expected the number of its class as the label, got 'cat'"),
        ("rooted", r"cannot be made: .*names.txt'.*its parameter `root`, if it has one, is '.*here'"),
    ],
)
def test_factories_that_do_not_suit_say_so(file, factory, says):
    with pytest.raises(DataError, match=says):
        load(file, factory)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"file at '.*absent.py', which is not there; name it with --data path/to"):
        load("absent.py", "make")
    with pytest.raises(DataError, match=r"no data set 'absent'; did you mean .*path/to/file.py:FACTORY"):
        datasets.expect_known("absent")


def recipe_of(file, factory):
    tables = {
        "data": {"name": f"{file}:{factory}", "batch_size": 4},
        "model": {"name": "mlp", "hidden": [6]},
        "cut": {"groups": 2},
        "train": {"epochs": 2},
    }
    return reading.complete(tables)


def weights(path):
    return checkpoint.load_tensors(path / "main.safetensors")


def test_a_run_keeps_the_file_and_goes_on_to_the_bit(file, tmp_path, monkeypatch):
    monkeypatch.setattr("anytime_lct.training.loop.REPORT_SECONDS", -1.0)
    recipe, whole, cut = recipe_of(file, "noisy"), tmp_path / "whole", tmp_path / "cut"
    assert default_folder(recipe) == Path("runs/mine.py-noisy-mlp-0")
    verbs.train(recipe, whole)
    with pytest.raises(KeyboardInterrupt):
        for count, _ in enumerate(train(recipe, datasets.from_recipe(recipe), cut)):
            if count == 4:
                os.kill(os.getpid(), signal.SIGINT)
    assert sorted(each.name for each in (cut / "data").iterdir()) == ["mine.py", "sizes.py"]
    shutil.move(cut, tmp_path / "moved")
    file.write_text("raise SystemExit('the original')\n")
    verbs.train(None, tmp_path / "moved", resume=True)
    a, b = weights(whole), weights(tmp_path / "moved")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert verbs.analyze(tmp_path / "moved").data == "mine.py:noisy"
    (whole / "data" / "sizes.py").write_text("SIDE = 5\n")
    with pytest.raises(CheckpointError, match=r"sizes.py' as it was .* restore it from '.*mine.py:noisy', or train"):
        run_folder.open_run(whole)


def test_the_folder_of_the_data_is_that_of_the_file_or_of_data_root(file, tmp_path):
    (file.parent / "names.txt").write_text("a b")
    assert load(file, "rooted").facts.classes == ("a", "b")
    (tmp_path / "names.txt").write_text("c d")
    assert load(file, "rooted", root=str(tmp_path)).facts.classes == ("c", "d")


def test_images_of_several_sizes_and_one_channel(file):
    grey = [(Image.fromarray(np.full((20 + k, 30), k, np.uint8)), k % 2) for k in range(20)]
    file.write_text("data = None\ndef make(): return data\n")
    load_factory_of(file).data = {"train": grey, "test": grey}
    dataset = load(file, "make")
    assert dataset.facts.input_shape == (1, 29, 29) and dataset.facts.resize == 33 and dataset.augment == "imagenet"
    assert batches(dataset, "test")[0][0].shape == (20, 1, 29, 29) and len(dataset.facts.mean) == 1


def load_factory_of(file):
    """Return the module of a file that a data set has."""
    from anytime_lct.models.files import load_factory

    return __import__("sys").modules[load_factory(f"{file}:make", "data set", DataError).__module__]


def write_folder(root, parts=("train",)):
    for part in parts:
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for k in range(10):
                Image.fromarray(np.full((6, 6, 3), 100 * label + k, np.uint8)).save(root / part / name / f"{k}.png")
    return root


def folder_of(root, **options):
    return datasets.load(DataRecipe(name="imagefolder", root=str(root), augment="none", **options))


def test_a_folder_without_a_test_part_is_split_by_the_seed(tmp_path):
    dataset = folder_of(write_folder(tmp_path), test=0.2, validation=0.1)
    assert dataset.facts.counts == (14, 2, 4) and "no test part: 4 of its 20 images" in dataset.notes[0]
    pixels = torch.cat([x[:, 0, 0, 0] for part in ("train", "validation", "test") for x, _ in batches(dataset, part)])
    assert len(set(pixels.tolist())) == 20  # each image in one part


def test_a_folder_with_all_parts_keeps_them(tmp_path):
    dataset = folder_of(write_folder(tmp_path, ("train", "val", "test")))
    assert dataset.facts.counts == (20, 20, 20) and not dataset.notes


@pytest.mark.parametrize("in_memory", [True, False])
def test_files_that_cannot_be_read_are_left_out_and_named(tmp_path, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.setattr("anytime_lct.data.pictures.IN_MEMORY_BYTES", 0)
    root = write_folder(tmp_path, ("train", "test"))
    damaged = [root / "train" / "cat" / "0.png", root / "test" / "dog" / "9.png"]
    damaged[0].write_bytes(b"no image")
    damaged[1].write_bytes(damaged[1].read_bytes()[:-40])
    dataset = folder_of(root, skip_unreadable=2)
    assert sum(dataset.facts.counts) == 38 and all(str(path) in dataset.notes[0] for path in damaged)
    assert len(batches(dataset, "test")[0][1]) == 19
    with pytest.raises(
        DataError, match=r"unreadable = 1 files .*, got 2; the first: The image '.*cat/0.png' cannot be read"
    ):
        folder_of(root, skip_unreadable=1)


def test_a_share_of_the_training_images_loses_a_box(file):
    plain, erased = (load(file, "Data", augment="none", erase=share, batch_size=8) for share in (0.0, 0.5))
    assert same(batches(plain, "test"), batches(erased, "test"))
    whole = batches(erased, epoch=1)
    assert same(whole[2:], batches(erased, epoch=1, start=2)) and not same(whole, batches(erased, epoch=2))
    lost = [bool((image == 0).all(0).any()) for x, _ in whole for image in x]
    assert 0.25 < sum(lost) / len(lost) < 0.75
    draws = torch.rand(5, 500, generator=torch.Generator().manual_seed(0))
    boxes = (erase(torch.ones(500, 1, 40, 60), draws, 1.0) == 0).float().mean(dim=(1, 2, 3))
    assert 0.015 < boxes.min() < boxes.max() < 0.34 and boxes.mean().item() == pytest.approx(0.175, abs=0.01)
