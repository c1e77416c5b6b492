"""A folder of pictures as people have them: training and `predict` see the same pixels of each file."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from bundles import write_image_bundle
from PIL import Image

from anytime_lct.data import datasets
from anytime_lct.errors import DataError, InputError
from anytime_lct.export.raw import preprocessing
from anytime_lct.recipes.recipe import DataRecipe
from anytime_lct.runtime.preprocess import read_input

SIDE = 24
TURNS = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip  # from the upright picture to the one that is stored


def upright(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def kinds(picture):
    """A picture as many kinds of files have it: the name of the file, the stored image, and options of `save`."""
    mask = Image.linear_gradient("L").resize(picture.size)
    clear = picture.copy()
    clear.putalpha(mask)
    grey = clear.convert("LA")
    palette = picture.quantize(16)
    yield from (
        ("rgb.png", picture, {}), ("rgb.jpg", picture, {}), ("rgb.webp", picture, {"lossless": True}),
        ("rgb.tif", picture, {}), ("rgb.bmp", picture, {}), ("rgba.png", clear, {}), ("rgba.webp", clear, {}),
        ("palette.png", palette, {}), ("palette.gif", palette, {}), ("clear.png", palette, {"transparency": 3}),
        ("half.png", palette, {"transparency": bytes(range(0, 256, 16))}), ("clear.gif", palette, {"transparency": 3}),
        ("grey.png", picture.convert("L"), {}), ("la.png", grey, {}), ("one_bit.png", picture.convert("1"), {}),
        ("cmyk.jpg", picture.convert("CMYK"), {}), ("cmyk.tif", picture.convert("CMYK"), {}),
    )  # fmt: skip
    for orientation, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = picture if turn is None else picture.transpose(turn)
        yield f"turned_{orientation}.png", stored, {"exif": exif}
        yield f"turned_{orientation}.jpg", stored, {"exif": exif, "quality": 95}


def write_pictures(folder, width, height):
    """A picture of noise in many kinds of files; returns how many."""
    folder.mkdir(parents=True)
    for name, image, options in kinds(upright(width, height)):
        image.save(folder / name, **options)
    return len(list(folder.iterdir()))


def load(root, **options):
    return datasets.load(DataRecipe(name="imagefolder", root=str(root), batch_size=50, **options))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_image_bundle(tmp_path_factory.mktemp("bundle") / "b", channels=3).manifest


@pytest.mark.parametrize(
    ("size", "image_size", "resize"),
    [((SIDE, SIDE), None, None), ((SIDE, 36), None, None), ((SIDE, 36), 16, 18), ((SIDE, SIDE), 40, 46)],
)
def test_training_and_prediction_see_the_same_pixels(tmp_path, manifest, recwarn, size, image_size, resize):
    for part in ("train", "test"):
        for name in ("a", "b"):
            count = write_pictures(tmp_path / part / name, *size)
    data = load(tmp_path, image_size=image_size)
    assert data.facts.resize == resize and data.facts.counts[2] == 2 * count
    rules = preprocessing(data.facts, tmp_path)
    assert rules.ground == "white"
    answering = manifest.model_copy(update={"preprocessing": rules})
    files = sorted((tmp_path / "test" / "a").iterdir())
    seen = {file.name: x.numpy() for file, x in zip(files, next(data.batches("test"))[0][:count], strict=True)}
    for file in files:
        np.testing.assert_allclose(read_input(file, answering)[0], seen[file.name], atol=1e-5, err_msg=file.name)
    for orientation in TURNS:  # they all show the picture upright
        np.testing.assert_array_equal(seen[f"turned_{orientation}.png"], seen["rgb.png"])
    assert np.abs(seen["rgba.png"] - seen["rgb.png"]).max() > 0.5  # nobody sees colours below transparency
    assert not [warning for warning in recwarn if "PIL" in warning.filename]


@pytest.mark.parametrize("kind", ["deep.png", "cut.jpg", "cut.png"])
def test_what_cannot_be_shown_is_refused_alike(tmp_path, manifest, kind):
    for part in ("train", "test"):
        write_pictures(tmp_path / part / "a", SIDE, SIDE)
    path = tmp_path / "train" / "a" / kind
    if kind == "deep.png":
        Image.fromarray(np.full((SIDE, SIDE), 4000, np.uint16)).save(path)
        reason = "expected 8 bits a channel, got mode I;16; convert it"
    else:
        upright(SIDE, SIDE).save(path)
        path.write_bytes(path.read_bytes()[:-200])
        reason = "it is damaged or of another kind; repair or remove it"
    sentence = f"^The image '{re.escape(str(path))}' cannot be read: {reason}.$"
    with pytest.raises(DataError, match=sentence):
        load(tmp_path)
    with pytest.raises(InputError, match=sentence):
        read_input(path, manifest)


def test_a_thousand_pictures_are_the_same_in_training_and_prediction_file_by_file(tmp_path, manifest):
    folder, count = tmp_path / "train" / "a", 0
    folder.mkdir(parents=True)
    while count < 1000:
        for name, image, options in kinds(upright(8 + count % 5, 8 + count % 3, seed=count)):
            image.save(folder / f"{count:04}_{name}", **options)
            count += 1
    deep = [folder / name for name in ("deep.png", "deep.tif")]
    for path in deep:
        Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(path)
    truncated = folder / "0500_truncated.jpg"
    truncated.write_bytes((folder / "0001_rgb.jpg").read_bytes()[:-60])
    data = load(tmp_path, skip_unreadable=3)
    left_out = [truncated, *deep]
    assert data.notes[0] == f"Skipped files that cannot be read, 3: {', '.join(map(str, left_out))}."
    images = data.parts["train"][0]
    rules = preprocessing(data.facts, tmp_path)
    answering = manifest.model_copy(update={"preprocessing": rules})
    seen = iter(images.view(torch.arange(len(images.labels))).float())
    mean, std = (torch.tensor(values).view(-1, 1, 1) * 255 for values in (data.facts.mean, data.facts.std))
    for path in sorted(folder.iterdir()):
        if path in left_out:
            with pytest.raises(InputError, match="cannot be read"):
                read_input(path, answering)
        else:
            expected = next(seen).sub_(mean).div_(std)
            np.testing.assert_allclose(read_input(path, answering)[0], expected, atol=1e-5, err_msg=path.name)
    assert next(seen, None) is None and count >= 1000
