"""Image data sets in detail: augmentation against torchvision's, files as they lie on disk, damaged ones."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import struct

import numpy as np
import pytest
import torch
from bundles import write_image_bundle
from PIL import Image
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from anytime_lct.data import datasets as data
from anytime_lct.data import folders, idx, pictures
from anytime_lct.data.augment import mirror, mix, move, zoom
from anytime_lct.data.images import IMAGENET
from anytime_lct.errors import DataError, RecipeError
from anytime_lct.export.raw import preprocessing
from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import TEXT, DataRecipe
from anytime_lct.runtime import inputs
from anytime_lct.runtime.preprocess import from_array, read_input

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # Python 3.12


def load(name, root=None, **options):
    return data.load(DataRecipe(name=name, root=None if root is None else str(root), **options))


def samples(dataset, split="train", epoch=0):
    """All pixels, before normalisation, and labels of a split."""
    minibatches = list(dataset.batches(split, epoch))
    mean, std = (torch.tensor(v).view(-1, 1, 1) * 255 for v in (dataset.facts.mean, dataset.facts.std))
    return torch.cat([x for x, _ in minibatches]) * std + mean, torch.cat([y for _, y in minibatches])


def write_folder(root, size=(6, 6), count=4, parts=("train", "test")):
    """Pictures of noise in two classes, lossless; `size` is (width, height)."""
    noise = np.random.default_rng(0)
    for part in parts:
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = noise.integers(0, 256, (size[1], size[0], 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")
    return root


def write_mnist(root, folder="MNIST", compress=False):
    """A tiny set in MNIST's files: image k of `count` is filled with the value k, and of class k % 10."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28).tobytes()
        labels = bytes(k % 10 for k in range(count))
        for name, content in (
            (f"{prefix}-images-idx3-ubyte", struct.pack(">HBB3I", 0, 8, 3, count, 28, 28) + pixels),
            (f"{prefix}-labels-idx1-ubyte", struct.pack(">HBBI", 0, 8, 1, count) + labels),
        ):
            if compress:
                (raw / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (raw / name).write_bytes(content)
    return raw


def test_every_data_set_on_text_is_known_as_one():
    on_text = {name for name, load in data.DATA_SETS.items() if load.__module__ == "anytime_lct.data.text"}
    assert on_text == TEXT


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 24), (5, 9)])
def test_moving_is_torchvisions_padded_crop_at_every_place(height, width):
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    down, right = max(1, height // 8), max(1, width // 8)
    padded = v2.functional.pad(image, [right, down, right, down])
    places = [(top, left) for top in range(2 * down + 1) for left in range(2 * right + 1)]
    luck = torch.tensor([((t + 0.5) / (2 * down + 1), (s + 0.5) / (2 * right + 1)) for t, s in places]).T
    expected = torch.stack([v2.functional.crop(padded, top, left, height, width) for top, left in places])
    images = move(image.expand(len(places), -1, -1, -1), luck)
    assert torch.equal(images, expected)
    assert images.is_contiguous()


def test_every_place_is_equally_likely_and_luck_stays_below_one():
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[0, 4, 4] = 1
    luck = torch.rand(2, 9000, generator=torch.Generator().manual_seed(0))
    where = move(image.expand(9000, -1, -1, -1), luck).flatten(1).argmax(1)
    places, counts = where.unique(return_counts=True)
    assert places.tolist() == [8 * row + column for row in (3, 4, 5) for column in (3, 4, 5)]
    assert ((counts - 1000).abs() < 5 * 1000**0.5).all()
    last = torch.full((2, 1), torch.tensor(1.0).nextafter(torch.tensor(0.0)).item())
    assert move(image[None], last)[0, 0, 3, 3] == 1


def test_mirroring_goes_by_luck():
    images = torch.randn(2, 1, 3, 4)
    assert torch.equal(mirror(images, torch.tensor([0.49, 0.5])), torch.stack([images[0].flip(-1), images[1]]))


def test_zooming_is_torchvisions_and_follows_from_the_seed():
    image = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    state = torch.get_rng_state()
    images = [zoom(image, (20, 20), seed) for seed in (1, 2, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    torch.manual_seed(1)
    assert torch.equal(images[0], v2.Compose([v2.RandomResizedCrop(20), v2.RandomHorizontalFlip()])(image))


def test_seeds_differ_with_every_number_and_its_place():
    seeds = {mix(a, b, c) for a in range(10) for b in range(10) for c in range(3)}
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("augment", ["none", "crop", "flip", "crop-flip", "imagenet"])
def test_what_happens_to_an_image_does_not_depend_on_its_batch(augment):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    small, large = (samples(load("digits", augment=augment, batch_size=size))[0] for size in (7, 500))
    assert torch.equal(small, large)
    assert torch.equal(torch.get_rng_state(), state)


def test_worker_processes_leave_the_random_state_and_outlive_ctrl_c(tmp_path):
    root = write_folder(tmp_path, count=30)
    alone, shared = (load("imagefolder", root=root, batch_size=3, augment="imagenet", workers=w) for w in (0, 2))
    expected = list(alone.batches("train", 2))
    state = torch.get_rng_state()
    minibatches = []
    for batch in shared.batches("train", 2):
        if not minibatches:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGINT)
        minibatches.append(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(expected, minibatches, strict=True))


def test_a_folder_too_large_for_memory_gives_the_same_images(tmp_path, monkeypatch):
    root = write_folder(tmp_path)
    in_memory = load("imagefolder", root=root, batch_size=3)
    monkeypatch.setattr(pictures, "IN_MEMORY_BYTES", 0)
    from_files = load("imagefolder", root=root, batch_size=3)
    assert in_memory.augment == from_files.augment == "crop-flip"
    assert from_files.facts.mean == IMAGENET[0] != in_memory.facts.mean
    for split in ("train", "validation", "test"):
        torch.testing.assert_close(samples(in_memory, split), samples(from_files, split), atol=1e-3, rtol=0)


def test_images_are_normalised_as_the_recipe_says(tmp_path):
    root, statistics = write_folder(tmp_path), {"mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 2.0)}
    own, ours = (load("imagefolder", root=root, batch_size=3, augment="none", **tables) for tables in ({}, statistics))
    assert (ours.facts.mean, ours.facts.std) == tuple(statistics.values())
    torch.testing.assert_close(samples(own)[0], samples(ours)[0], atol=1e-3, rtol=0)
    first, _ = next(ours.batches("train"))
    assert first[:, 0].min() >= -0.2 and first[:, 2].max() <= 0.35  # (x - 0.1) / 0.5 and (x - 0.3) / 2


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip", "imagenet", "auto"])
def test_large_images_take_every_augmentation(tmp_path, augment):
    root = write_folder(tmp_path, size=(70, 90), count=2, parts=("train", "val"))
    dataset = load("imagefolder", root=root, augment=augment, image_size=32)
    assert dataset.augment == ("imagenet" if augment == "auto" else augment)
    x, _ = samples(dataset)
    assert x.shape == (4, 3, 32, 32)
    path = root / "val" / "dog" / "1.png"
    expected = v2.functional.pil_to_tensor(v2.Compose([v2.Resize(37), v2.CenterCrop(32)])(Image.open(path)))
    torch.testing.assert_close(samples(dataset, "test")[0][3], expected.float(), atol=1e-3, rtol=0)


def test_what_a_device_reads_is_what_evaluation_saw(tmp_path):
    """Or else accuracy, temperatures and thresholds hold for other inputs than those that are answered."""
    root = write_folder(tmp_path, size=(70, 90), count=2, parts=("train", "val"))
    dataset = load("imagefolder", root=root, image_size=32)
    rules = preprocessing(dataset.facts, tmp_path)
    path = root / "val" / "dog" / "1.png"
    evaluated = next(iter(dataset.batches("test")))[0][3].numpy()
    np.testing.assert_allclose(from_array(np.array(Image.open(path)), rules)[0], evaluated, atol=1e-5)


def test_image_files_are_read_in_training_as_a_device_reads_them(tmp_path):
    root, exif = write_folder(tmp_path / "data", size=(70, 90), count=3, parts=("train", "val")), Image.Exif()
    exif[0x0112] = 6
    for path in root.rglob("1.png"):
        picture = Image.open(path).copy()
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(path, exif=exif)
    dataset = load("imagefolder", root=root, image_size=32)
    rules = preprocessing(dataset.facts, tmp_path)
    manifest = write_image_bundle(tmp_path / "bundle", channels=3).manifest.model_copy(update={"preprocessing": rules})
    evaluated = torch.cat([x for x, _ in dataset.batches("test")]).numpy()
    files = sorted((root / "val").rglob("*.png"))
    for file, x in zip(files, evaluated, strict=True):
        np.testing.assert_allclose(read_input(file, manifest)[0], x, atol=1e-5)


def test_hidden_folders_and_files_and_pipes_are_no_images(tmp_path):
    root = write_folder(tmp_path)
    expected = load("imagefolder", root=root, batch_size=3)
    for part in ("train", "test"):
        shutil.copytree(root / part / "cat", root / part / ".ipynb_checkpoints")
        shutil.copytree(root / part / "cat", root / part / "cat" / ".thumbnails")
        (root / part / "dog" / "._0.png").write_bytes(b"Mac OS X")
        os.mkfifo(root / part / "dog" / "9.png")
    dataset = load("imagefolder", root=root, batch_size=3)
    assert dataset.facts == expected.facts and dataset.facts.classes == ("cat", "dog")
    assert torch.equal(samples(dataset)[0], samples(expected)[0])


def test_predict_reads_of_a_folder_what_training_reads():
    assert inputs.SUFFIXES["image"] == (*folders.EXTENSIONS, ".npy") and set(IMG_EXTENSIONS) <= set(folders.EXTENSIONS)


def test_files_are_listed_in_torchvisions_order(tmp_path):
    root = write_folder(tmp_path, count=11)
    shutil.copytree(root / "train" / "cat", root / "train" / "dog" / "b" / "a")
    shutil.copytree(root / "train" / "cat", root / "train" / "dog" / "c")
    listed, reference = folders.list_images(root / "train"), datasets.ImageFolder(root / "train")
    assert list(zip(listed.files, listed.labels, strict=True)) == reference.samples
    assert list(listed.classes) == reference.classes


def test_folders_without_classes_or_images_are_refused(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / ".hidden").mkdir(parents=True)
    with pytest.raises(DataError, match=r"one folder per class in '.*train', got none"):
        load("imagefolder", root=tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match=r"images in every class folder of '.*train', got none in 'cat'"):
        load("imagefolder", root=tmp_path)


def test_a_class_whose_name_is_no_text_is_refused(tmp_path):
    root = write_folder(tmp_path)
    for part in ("train", "test"):
        (root / part / "dog").rename(os.fsdecode(os.fsencode(root / part) + b"/caf\xe9"))
    with pytest.raises(DataError, match=r"named in UTF-8, got 'caf\\xe9' in '.*train'; rename it"):
        load("imagefolder", root=root)


@pytest.mark.parametrize("size", [(6, 6), (90, 90)])
def test_images_of_sixteen_bits_are_refused_before_training(tmp_path, size):
    root = write_folder(tmp_path, size=size)
    for path in root.rglob("*.png"):
        Image.fromarray(np.full(size[::-1], 4000, np.uint16)).save(path)
    with pytest.raises(DataError, match=r"0.png' cannot be read: expected 8 bits a channel, got mode I"):
        load("imagefolder", root=root)


def test_a_recipe_sizes_an_image_folder(tmp_path):
    root = write_folder(tmp_path, size=(70, 90), count=2, parts=("train", "val"))
    recipe = recipes.read(None, {"data.name": "imagefolder", "data.root": str(root), "data.image_size": 40})
    assert data.from_recipe(recipe).facts.input_shape == (3, 40, 40)


def test_one_image_of_the_size_asked_for_does_not_speak_for_the_others(tmp_path):
    root = write_folder(tmp_path, size=(70, 90), count=2, parts=("train", "val"))
    first = min((root / "train").rglob("*.png"))
    Image.fromarray(np.full((40, 40, 3), 7, np.uint8)).save(first)
    dataset = load("imagefolder", root=root, image_size=40, augment="none")
    x, _ = samples(dataset)
    assert x.shape == (4, 3, 40, 40) and dataset.facts.resize == 46
    assert any((image.round() == 7).all() for image in x)  # as it is


def test_images_of_the_size_asked_for_are_held_in_memory_as_they_are(tmp_path):
    root = write_folder(tmp_path, size=(70, 70), count=2)
    dataset = load("imagefolder", root=root, augment="none", image_size=70)
    expected = torch.from_numpy(np.array(Image.open(root / "test" / "cat" / "0.png"))).permute(2, 0, 1)
    torch.testing.assert_close(samples(dataset, "test")[0][0], expected.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("in_memory", [True, False])
def test_nearly_all_images_of_one_size_keep_it_and_the_others_are_stretched(tmp_path, monkeypatch, in_memory):
    root = write_folder(tmp_path)
    odd = Image.fromarray(np.arange(7 * 6 * 3, dtype=np.uint8).reshape(6, 7, 3))
    odd.save(root / "test" / "dog" / "3.png")
    if not in_memory:
        monkeypatch.setattr(pictures, "IN_MEMORY_BYTES", 0)
    dataset = load("imagefolder", root=root)
    x, _ = samples(dataset, "test")
    expected = torch.from_numpy(np.array(odd.resize((6, 6), Image.Resampling.BILINEAR))).permute(2, 0, 1).float()
    torch.testing.assert_close(x[-1], expected, atol=1e-3, rtol=0)
    assert dataset.facts.input_shape == (3, 6, 6) and dataset.facts.resize is None


@pytest.mark.parametrize(
    ("sizes", "image_size", "largest", "expected"),
    [
        ([(64, 64)], None, 224, ((64, 64), True)),  # alike: their own size
        ([(40, 30)], None, 224, ((40, 30), True)),
        ([(64, 64)] * 9 + [(500, 400)], None, 224, ((64, 64), True)),
        ([(64, 64)] * 8 + [(500, 400)] * 2, None, 224, ((64, 64), False)),
        ([(k, 90) for k in (30, 31, 32, 33)], None, 224, ((31, 31), False)),  # the median of the shorter sides
        ([(70, 90), (71, 80), (72, 99)], None, 224, ((64, 64), False)),
        ([(190, 210), (180, 200), (300, 170)], None, 224, ((160, 160), False)),
        ([(300, 400), (400, 300)], None, 224, ((224, 224), False)),  # the network's own size
        ([(1024, 1024)], None, 300, ((300, 300), False)),
        ([(256, 256)], None, 380, ((256, 256), True)),
        ([(64, 64)], 224, 32, ((224, 224), False)),  # the recipe decides
        ([(64, 48)], (64, 48), 32, ((64, 48), True)),
    ],
)
def test_the_size_of_images_suits_them_and_the_network(sizes, image_size, largest, expected):
    assert pictures.choose_size(sizes, image_size, largest) == expected


def test_a_run_names_the_size_of_its_images(tmp_path):
    root = write_folder(tmp_path / "data", size=(200, 190), count=1, parts=("train", "val"))
    tables = {"data": {"name": "imagefolder", "root": str(root)}, "model": {"name": "timm:resnet10t"}}
    recipe = data.sized(recipes.complete(tables))
    assert recipe.data.image_size == 160  # below 176, for which the network is made
    recipes.write(recipe, tmp_path / "recipe.toml")
    (root / "train" / "cat" / "0.png").write_bytes(b"no image")  # the size is not chosen again
    assert data.sized(recipes.read(tmp_path / "recipe.toml")) == recipe
    oblong = recipes.complete({"data": {"name": "imagefolder", "image_size": [20, 40]}})
    recipes.write(oblong, tmp_path / "recipe.toml")
    assert recipes.read(tmp_path / "recipe.toml").data.image_size == (20, 40)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_met_on_the_way_is_one_sentence(tmp_path, workers):
    root = write_folder(tmp_path, size=(90, 90))
    (root / "train" / "dog" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^The image '.*dog/3.png' cannot be read: [^\n]*$"):
        samples(load("imagefolder", root=root, validation=0, workers=workers))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("name", "folder", "statistics"),
    [("mnist", "MNIST", ((0.1307,), (0.3081,))), ("fashion-mnist", "FashionMNIST", ((0.2860,), (0.3530,)))],
)
def test_idx_files_are_read_gzipped_or_not(tmp_path, name, folder, statistics, compress):
    write_mnist(tmp_path, folder, compress)
    dataset = load(name, root=tmp_path, augment="none", validation=0.25)
    assert [dataset.num_samples(s) for s in ("train", "validation", "test")] == [15, 5, 10]
    x, y = samples(dataset, "test")
    torch.testing.assert_close(x, torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 28, 28), atol=1e-3, rtol=0)
    assert y.tolist() == list(range(10))
    assert (dataset.facts.mean, dataset.facts.std) == statistics


def test_debians_fashion_mnist_is_found_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", write_mnist(tmp_path, "debian", compress=True))
    assert load("fashion-mnist", root=tmp_path / "none").num_samples("test") == 10


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("train-images-idx3-ubyte", None, "a file is missing"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + bytes(12), r"labels \(20,\) for images \(0, 0, 0\)"),
        ("train-images-idx3-ubyte", b"\0\0\x08", "4 bytes"),
        ("t10k-images-idx3-ubyte", b"<html>not found</html>", "not an IDX file"),
        (
            "t10k-labels-idx1-ubyte",
            b"\0\0\x08\x01\0\0\0\x03\1\2\3",
            r"labels \(3,\) for images \(10, 28, 28\)",
        ),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x0a" + bytes([99] * 10), "a label 99"),
    ],
)
def test_damaged_idx_files_are_one_sentence(tmp_path, file, content, says):
    path = write_mnist(tmp_path) / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^The data set 'mnist' in '.*' is damaged or incomplete .*{says}[^\n]*$"):
        load("mnist", root=tmp_path)


def test_a_truncated_archive_is_one_sentence(tmp_path):
    path = write_mnist(tmp_path, compress=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"^The data set 'mnist' in '.*gz' is damaged or incomplete [^\n]*$"):
        load("mnist", root=tmp_path)


def test_cifar_is_read_in_torchvisions_layout(tmp_path, monkeypatch):
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), np.uint8)
    lists = [[name, write(name, {"data": pixels, "labels": [*range(10), 0, 1]})] for name in ("train", "test")]
    classes = [f"class {k}" for k in range(10)]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists[:1])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists[1:])
    meta = {"filename": "meta", "key": "label_names", "md5": write("meta", {"label_names": classes})}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    dataset = load("cifar10", root=tmp_path)
    assert dataset.facts.classes == tuple(classes) and dataset.augment == "crop-flip"
    x, y = samples(dataset, "test")
    expected = torch.from_numpy(pixels.reshape(12, 3, 32, 32)).float()
    torch.testing.assert_close(x, expected, atol=1e-3, rtol=0)
    assert y.tolist() == [*range(10), 0, 1]
    (folder / "train").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"'cifar10' in '.*' is damaged or incomplete"):
        load("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("digit", {}, "no data set 'digit'; did you mean digits"),
        ("digits", {"validation": 0.9999}, "none of 1437 training images"),
        ("digits", {"mean": (0.5,)}, "data.mean and data.std together"),
        ("pydoc", {"mean": (0.5,), "std": (0.5,)}, "for images only"),
        ("digits", {"mean": (0.5, 0.4), "std": (1.0,)}, "channel of 'digits', 1, as data.mean, got 0.5, 0.4"),
        ("digits", {"mean": (0.5,), "std": (1.0, 1.0)}, "as data.std, all above 0, got 1.0, 1.0"),
    ],
)
def test_refusals_say_what_was_expected(name, options, says):
    with pytest.raises(DataError, match=says):
        load(name, **options)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("validation", 1.0, "' is 1.0: input should be less than 1."),
        ("validation", -0.1, "' is -0.1: input should be greater than or equal to 0."),
        ("validation", float("nan"), "' is nan: input should be less than 1."),
        ("batch_size", 0, "' is 0: input should be greater than or equal to 1."),
        ("workers", -1, "' is -1: input should be greater than or equal to 0."),
        ("sequence_length", 0, "' is 0: input should be greater than or equal to 1."),
        ("image_size", 0, "' is 0: input should be greater than or equal to 1."),
        ("std", [0.0], ".0' is 0.0: input should be greater than 0."),
        (
            "augment",
            "mixup",
            "' is 'mixup': input should be 'auto', 'none', 'flip', 'crop', 'crop-flip' or 'imagenet'.",
        ),
    ],
)
def test_a_recipe_refuses_what_no_data_set_takes(key, value, says):
    with pytest.raises(RecipeError, match=re.escape(f"The recipe's 'data.{key}{says}")):
        recipes.read(None, {f"data.{key}": value})
