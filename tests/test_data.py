"""Data sets: splits, determinism from seed and epoch alone, streams of text, and clear refusals."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from anytime_lct.data import datasets as data
from anytime_lct.data import folders
from anytime_lct.errors import DataError
from anytime_lct.recipes import reading as recipes
from anytime_lct.training.prepare import expect_keys_suit

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # Python 3.12


def load(**settings):
    return data.from_recipe(recipes.read(None, {key.replace("__", "."): value for key, value in settings.items()}))


def batches(dataset, split="train", epoch=0, start=0):
    return list(dataset.batches(split, epoch, start))


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def image_folder(root, train=("cat", "dog"), test=("cat", "dog"), side=(6, 6), count=5):
    for part, classes in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = np.full((side[1], side[0], 3), 40 * number + k, np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")
    return root


def test_the_digits_need_nothing_and_are_split_by_seed():
    one, other = load(), load(train__seed=1)
    assert one.facts.input_shape == (1, 8, 8)
    assert one.facts.classes == tuple("0123456789")
    assert [one.num_samples(s) for s in ("train", "validation", "test")] == [1293, 144, 360]
    for split, alike in (("test", True), ("validation", False)):
        labels = [torch.cat([y for _, y in dataset.batches(split)]) for dataset in (one, other)]
        assert torch.equal(*labels) is alike
    assert sum(len(y) for _, y in batches(one)) == 1293
    assert len(batches(one)) == one.num_batches("train") == 41


def test_no_training_image_is_in_the_validation_split():
    dataset = load(data__augment="none", data__validation=0.3)
    validation = {x.numpy().tobytes() for batch, _ in dataset.batches("validation") for x in batch}
    training = {x.numpy().tobytes() for batch, _ in dataset.batches("train") for x in batch}
    assert not validation & training
    assert load(data__validation=0.0).num_samples("validation") == 0


def test_batches_follow_from_seed_and_epoch_alone():
    dataset = load()
    torch.manual_seed(1)
    whole = batches(dataset, epoch=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert same(whole, batches(dataset, epoch=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(whole[5:], batches(dataset, epoch=3, start=5))
    assert same(whole, batches(load(data__workers=2), epoch=3))
    assert not same(whole, batches(dataset, epoch=4))
    assert not same(whole, batches(load(train__seed=1), epoch=3))


def test_images_are_normalised_by_the_training_part():
    dataset = load(data__augment="none")
    x = torch.cat([x for x, _ in dataset.batches("train")])
    assert x.dtype == torch.float32
    assert x.mean().item() == pytest.approx(0, abs=1e-4)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_augmentation_moves_and_mirrors_training_images_only():
    plain, augmented = load(data__augment="none"), load(data__augment="crop-flip", data__batch_size=1)
    assert same(batches(plain, "test"), batches(load(data__augment="crop-flip"), "test"))
    original = {x[0].numpy().tobytes() for x, _ in load(data__augment="none", data__batch_size=1).batches("train")}
    unchanged = [x[0].numpy().tobytes() in original for x, _ in augmented.batches("train")]
    share = sum(unchanged) / len(unchanged)
    assert 0.02 < share < 0.2  # 1 in 9 offsets, half of them mirrored: about 1 in 18 and symmetric ones


def test_text_streams_go_on_from_batch_to_batch(tmp_path):
    text = "".join(chr(97 + k % 26) for k in range(3000))
    (tmp_path / "a.txt").write_text(text)
    dataset = load(data__name="text", data__path=str(tmp_path / "a.txt"), data__batch_size=4, data__sequence_length=10)
    assert dataset.facts.classes == tuple("abcdefghijklmnopqrstuvwxyz")
    minibatches = batches(dataset)
    x, y = torch.cat([x for x, _ in minibatches], 1), torch.cat([y for _, y in minibatches], 1)
    assert torch.equal(y[:, :-1], x[:, 1:])
    assert torch.equal((x + 1) % 26, y)
    length = (2700 - 1) // 4
    assert "".join(dataset.facts.classes[k] for k in x[1][:30]) == text[length : length + 30]
    assert same(minibatches[3:], batches(dataset, start=3))
    for split, characters in (("validation", 150), ("test", 150)):
        windows = batches(dataset, split)
        assert {tuple(x.shape) for x, _ in windows} == {(4, 9)}
        assert dataset.num_samples(split) == sum(y.numel() for _, y in windows) > 0.9 * characters


def test_a_folder_of_texts_is_split_by_its_files(tmp_path):
    for name, text in (("train", "abc" * 100), ("valid", "ab" * 50), ("test", "cb" * 50)):
        (tmp_path / f"ptb.char.{name}.txt").write_text(text)
    dataset = load(data__name="text", data__path=str(tmp_path), data__batch_size=2, data__sequence_length=8)
    assert dataset.facts.classes == ("a", "b", "c")
    assert dataset.num_samples("train") == 288
    assert (tmp_path / "ptb.char.valid.txt").unlink() is None
    with pytest.raises(DataError, match=r"valid.txt or"):
        load(data__name="text", data__path=str(tmp_path), data__batch_size=2, data__sequence_length=8)


def test_text_comes_back_from_its_symbols(tmp_path):
    text = "né 🂡\nabcd" * 60
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    dataset = load(
        data__name="text", data__root=str(tmp_path), data__path="a.txt",
        data__validation=0.0, data__batch_size=1, data__sequence_length=5,
    )  # fmt: skip
    assert dataset.facts.classes == tuple(sorted(set(text)))
    assert dataset.num_samples("validation") == 0 and batches(dataset, "validation") == []
    back = "".join(dataset.facts.classes[k] for x, _ in batches(dataset) for k in x[0])
    assert back == text[: len(back)] and len(back) == 510  # of 513, in windows of 5; the last one has a y too
    end = "".join(dataset.facts.classes[k] for _, y in batches(dataset, "test") for k in y[0])
    assert end == text[514 : 514 + 24]  # 26 of the last 27 are predicted, in 6 equal windows of at most 5


def test_a_folder_of_texts_needs_no_validation_part_where_none_is_wanted(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("abc" * 100)
    dataset = load(data__name="text", data__path=str(tmp_path), data__validation=0.0, data__batch_size=1)
    assert [dataset.num_samples(s) for s in ("validation", "test")] == [0, 298]  # 299 in 2 equal windows


@pytest.mark.parametrize(
    ("codec", "named"),
    [("utf-8", None), ("utf-8-sig", None), ("utf-16", None), ("utf-32", None), ("utf-16-be", "utf-16-be"),
     ("latin-1", "latin-1"), ("cp1252", "cp1252")],
)  # fmt: skip
def test_a_text_is_decoded_by_its_mark_or_as_the_recipe_says(tmp_path, codec, named):
    (tmp_path / "b").write_bytes(("ÿA" * 500).encode(codec))
    settings = {"data__encoding": named} if named else {}
    facts = load(
        data__name="text", data__path=str(tmp_path / "b"), data__batch_size=2, data__sequence_length=5, **settings
    ).facts
    assert facts.classes == ("A", "ÿ") and facts.encoding == named and sum(facts.counts) == 1000
    assert facts.encodings == (named or codec.removesuffix("-sig"),)


@pytest.mark.parametrize(
    ("content", "settings", "says"),
    [
        (b"it\x92s " * 200, {}, r"UTF-8 text in '.*b', got byte 0x92 at 2; .*data.encoding="),
        ("né".encode("utf-16-le") * 200, {}, "UTF-8 text"),
        ("ab".encode("utf-16-le") * 200, {}, "got zero bytes, as UTF-16 without a mark"),
        (b"\xff\xfea" * 3, {}, "UTF-16 text"),
        (b"ab" * 200, {"data__encoding": "utf-17"}, "that Python knows, got 'utf-17'"),
    ],
)
def test_a_text_of_unknown_bytes_is_refused_before_training(tmp_path, content, settings, says):
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(DataError, match=says):
        load(data__name="text", data__path=str(tmp_path / "b"), data__batch_size=2, **settings)


def test_pydoc_needs_nothing():
    dataset = load(data__name="pydoc")
    assert dataset.facts.task == "language-model"
    assert dataset.num_samples("train") > 200_000


def test_an_image_folder_of_small_images_is_held_in_memory(tmp_path):
    dataset = load(
        data__name="imagefolder",
        data__root=str(image_folder(tmp_path)),
        data__augment="none",
        data__batch_size=4,
    )
    assert dataset.facts.classes == ("cat", "dog")
    assert dataset.facts.input_shape == (3, 6, 6)
    assert sorted(torch.cat([y for _, y in dataset.batches("test")]).tolist()) == [0] * 5 + [1] * 5


def test_an_image_folder_of_large_images_is_cropped_and_read_as_needed(tmp_path):
    root = image_folder(tmp_path, side=(300, 260), count=2)
    dataset = load(data__name="imagefolder", data__root=str(root), data__batch_size=2)
    assert dataset.facts.input_shape == (3, 224, 224)
    for split in ("train", "test"):
        x, _ = batches(dataset, split)[0]
        assert x.shape == (2, 3, 224, 224)
    assert same(
        batches(dataset, "train"),
        batches(load(data__name="imagefolder", data__root=str(root), data__batch_size=2, data__workers=1)),
    )


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_missing_data_says_where_it_was_looked_for_and_how_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.setattr("anytime_lct.data.idx.DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    with pytest.raises(DataError, match=rf"'{name}' in '{tmp_path}'.*missing.*--data-root.*data.download=true"):
        load(data__name=name, data__root=str(tmp_path))


def test_image_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="with train/, and perhaps test/"):
        load(data__name="imagefolder", data__root=str(tmp_path))
    root = image_folder(tmp_path / "a", test=("cat", "cow"))
    with pytest.raises(DataError, match=r"the classes of the training part, cat, dog, but 'cow' is not among them"):
        load(data__name="imagefolder", data__root=str(root))
    root = image_folder(tmp_path / "b")
    (root / "train" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0.png' cannot be read"):
        load(data__name="imagefolder", data__root=str(root))


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ("nowhere", r"at '.*nowhere', got nothing; name another"),
        ("photos.zip", r"at '.*photos.zip', got a file; unpack it"),
        (".", r"beside photos; did you mean --data-root .*photos\?"),
        ("photos/train", r"beside cat, dog; did you mean --data-root .*photos\?"),
        ("photos/train/cat", r"beside no other folder"),
    ],
)
def test_a_folder_too_high_or_too_low_is_set_right(tmp_path, root, says):
    image_folder(tmp_path / "photos", count=1)
    (tmp_path / "photos.zip").write_bytes(b"")
    with pytest.raises(DataError, match=says):
        load(data__name="imagefolder", data__root=str(tmp_path / root))


def test_folders_of_classes_alone_are_an_image_folder(tmp_path):
    parts = image_folder(tmp_path / "parts")
    (parts / "test").rename(tmp_path / "elsewhere")
    (parts / "train").rename(parts / "photos")
    load_flat = partial(load, data__name="imagefolder", data__root=str(parts / "photos"))
    dataset = load_flat()
    assert dataset.facts.classes == ("cat", "dog") and dataset.facts.counts == (8, 1, 1)
    (parts / "photos" / "runs").mkdir()
    with pytest.raises(DataError, match="move the folders of classes into train/, or runs, which has no images"):
        load_flat()


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_the_validation_part_has_its_usual_names(tmp_path, name):
    root = image_folder(tmp_path)
    image_folder(tmp_path / "other", count=2)
    (tmp_path / "other" / "test").rename(root / name)
    dataset = load(data__name="imagefolder", data__root=str(root))
    assert dataset.facts.counts == (10, 4, 10)


def test_a_test_part_may_lack_classes_and_what_is_left_out_is_said(tmp_path):
    root = image_folder(tmp_path, train=("ape", "cat", "dog"), test=("cat", "dog"))
    (root / "test" / "ape").mkdir()
    (root / "train" / "__MACOSX").mkdir()
    (root / "train" / "cat" / "6.heic").write_bytes(b"of a telephone")
    dataset = load(data__name="imagefolder", data__root=str(root))
    assert sorted(torch.cat([y for _, y in dataset.batches("test")]).tolist()) == [1] * 5 + [2] * 5
    assert dataset.facts.classes == ("ape", "cat", "dog")
    assert [note.partition("'")[2].partition("' ")[2] or note for note in dataset.notes] == [
        "has no images of 1 of the classes: ape.",
        "Left out files whose extension is not that of an image: 1 .heic.",
    ]
    for path in (root / "train" / "ape").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(DataError, match=r"none in 'ape', but files of other kinds than .jpg.*: 5 .heic; add some, or"):
        load(data__name="imagefolder", data__root=str(root))


def test_data_that_nothing_can_be_learnt_of_or_that_would_be_ignored_is_refused(tmp_path):
    root = image_folder(tmp_path, train=("cat",), test=("cat",))
    recipe = recipes.complete({"data": {"name": "imagefolder", "root": str(root)}})
    with pytest.raises(DataError, match="at least two classes in 'imagefolder', got cat alone"):
        expect_keys_suit(recipe, data.from_recipe(recipe).facts)
    with pytest.raises(DataError, match=f"'digits', which is built in, got '{root}'"):
        load(data__root=str(root))
    with pytest.raises(DataError, match=f"did you mean imagefolder, as in --data imagefolder --data-root {root}"):
        load(data__name=str(root))


@pytest.mark.parametrize(
    ("path", "train", "expected"),
    [("photos", 1, True), ("photos/train/run", 1, True), ("photos/runs/run", 1, False), ("runs/run", 1, False),
     ("photos/runs/run", 0, True), ("photos2", 0, False)],
)  # fmt: skip
def test_a_run_folder_is_apart_from_the_images(tmp_path, path, train, expected):
    (tmp_path / "photos" / ("train" if train else "cat")).mkdir(parents=True)
    assert folders.among_images(tmp_path / path, tmp_path / "photos") is expected


def test_texts_that_cannot_be_learnt_are_refused(tmp_path):
    with pytest.raises(DataError, match="needs a file"):
        load(data__name="text")
    with pytest.raises(DataError, match="Expected a text in"):
        load(data__name="text", data__path=str(tmp_path / "none"))
    (tmp_path / "short").write_text("too short")
    with pytest.raises(DataError, match="too few"):
        load(data__name="text", data__path=str(tmp_path / "short"))
