"""Files become the batches that the manifest promises, or one sentence."""

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bundles import SYMBOLS, write_image_bundle, write_text_bundle
from PIL import Image

from anytime_lct.errors import InputError
from anytime_lct.exits.bundle import Bundle, Manifest, Preprocessing
from anytime_lct.runtime.preprocess import from_array, from_text, read_input

GREY = Preprocessing(kind="image", channels=1, height=2, width=3, mean=(0.5,), std=(0.25,))
COLOUR = Preprocessing(kind="image", channels=3, height=2, width=3, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_image_bundle(tmp_path_factory.mktemp("grey")).manifest


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_image_bundle(tmp_path_factory.mktemp("colour"), channels=3).manifest


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_text_bundle(tmp_path_factory.mktemp("text"))


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _says(path: Path, manifest: Manifest) -> str:
    with pytest.raises(InputError) as caught:
        read_input(path, manifest)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def test_grey_pixels_by_hand() -> None:
    pixels = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
    expected = np.array([[[[-2.0, -1.2, -0.4], [0.4, 1.2, 2.0]]]], dtype=np.float32)
    for same in (pixels, pixels[None], pixels[..., None], pixels[None, ..., None]):
        batch = from_array(same, GREY)
        assert batch.dtype == np.float32 and batch.flags.c_contiguous
        np.testing.assert_allclose(batch, expected, atol=1e-6)


def test_channels_come_first() -> None:
    pixels = _pixels(4, 2, 3, 3)
    batch = from_array(pixels, COLOUR)
    for c in range(3):
        by_hand = (pixels[..., c] / 255 - COLOUR.mean[c]) / COLOUR.std[c]
        np.testing.assert_allclose(batch[:, c], by_hand, atol=1e-6)
    np.testing.assert_array_equal(from_array(pixels[0], COLOUR), batch[:1])


def test_three_dimensions_of_grey_are_a_batch_where_the_size_says_so() -> None:
    narrow = GREY.model_copy(update={"width": 1})
    assert from_array(_pixels(5, 2, 1), narrow).shape == (5, 1, 2, 1)
    assert from_array(_pixels(2, 3, 1), GREY).shape == (1, 1, 2, 3)


def test_other_sizes_are_resized_as_pillow_does() -> None:
    pixels = _pixels(9, 8)
    small = np.asarray(Image.fromarray(pixels).resize((3, 2), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(from_array(pixels, GREY), from_array(small, GREY))
    pixels = _pixels(9, 8, 3)
    small = np.asarray(Image.fromarray(pixels).resize((3, 2), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(from_array(pixels, COLOUR), from_array(small, COLOUR))


def test_floats_are_ready_inputs() -> None:
    ready = np.random.default_rng(0).standard_normal((2, 1, 2, 3))
    np.testing.assert_array_equal(from_array(ready, GREY), ready.astype(np.float32))
    np.testing.assert_array_equal(from_array(ready[0].astype(">f4"), GREY), ready[:1].astype(np.float32))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (_pixels(28, 28, 3), r"\(H, W\)"), (_pixels(1, 2, 3, 3), "1 channel,"), (_pixels(6), "shape"),
        (np.zeros((2, 3), np.int64), "int64"), (np.zeros((2, 3), np.float32), r"\(1, 2, 3\)"),
        (np.zeros((0, 2, 3), np.uint8), "at least one"), (np.full((1, 2, 3), np.nan, np.float32), "NaN"),
        (np.full((1, 2, 3), 1e300), "infinity"), (np.zeros((1, 3, 2), np.float32), r"got \(1, 3, 2\)"),
    ],
)  # fmt: skip
def test_other_arrays(array: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_array(array, GREY)


def test_grey_pixels_for_colour() -> None:
    for pixels in (_pixels(2, 3), _pixels(4, 2, 3, 1), _pixels(2, 3, 4)):
        with pytest.raises(InputError, match="3 channels"):
            from_array(pixels, COLOUR)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_image_files(tmp_path: Path, grey: Manifest, colour: Manifest, mode: str) -> None:
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    picture = Image.fromarray(_pixels(6, 6, 3)).convert(mode)
    picture.save(path)
    for manifest, channels in ((grey, "L"), (colour, "RGB")):
        expected = from_array(np.asarray(picture.convert(channels)), manifest.preprocessing)
        np.testing.assert_array_equal(read_input(path, manifest), expected)


def test_large_image_files_are_resized(tmp_path: Path, colour: Manifest) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(_pixels(20, 30, 3)).save(path)
    assert read_input(path, colour).shape == (1, 3, 6, 6)


def test_array_files(tmp_path: Path, grey: Manifest) -> None:
    np.save(tmp_path / "many.npy", _pixels(5, 6, 6))
    np.testing.assert_array_equal(
        read_input(tmp_path / "many.npy", grey), from_array(_pixels(5, 6, 6), grey.preprocessing)
    )


def test_files_that_are_no_image(tmp_path: Path, grey: Manifest) -> None:
    buffer = io.BytesIO()
    Image.fromarray(_pixels(60, 60)).save(buffer, "PNG")
    files = {
        "cut.png": buffer.getvalue()[:200], "noise.png": b"noise" * 100, "noise.npy": b"noise" * 100,
        "zip.npy": b"PK\x03\x04noise", "empty.png": b"", "empty.npy": b"", "pickle.npy": pickle.dumps([1, 2]),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert "damaged" in _says(tmp_path / "cut.png", grey)
    assert "damaged" in _says(tmp_path / "noise.png", grey)
    assert "damaged" in _says(tmp_path / "zip.npy", grey)
    assert "empty" in _says(tmp_path / "empty.png", grey)
    assert "empty" in _says(tmp_path / "empty.npy", grey)
    for name in ("noise.npy", "pickle.npy"):
        assert "numpy.save" in _says(tmp_path / name, grey)
    assert "No such file" in _says(tmp_path / "absent.png", grey)
    assert "folder" in _says(tmp_path, grey)
    Image.fromarray(_pixels(6, 6).astype(np.uint16)).save(tmp_path / "deep.png")
    assert "8 bits" in _says(tmp_path / "deep.png", grey)


def test_array_files_of_another_kind(tmp_path: Path, grey: Manifest) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    assert "pickled" in _says(tmp_path / "objects.npy", grey)
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, a=_pixels(6, 6))
    assert "archive" in _says(tmp_path / "archive.npy", grey)
    np.save(tmp_path / "whole.npy", _pixels(6, 6))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-5])
    assert "damaged" in _says(tmp_path / "cut.npy", grey)
    np.save(tmp_path / "nan.npy", np.full((1, 6, 6), np.nan))
    assert _says(tmp_path / "nan.npy", grey).startswith(f"In '{tmp_path / 'nan.npy'}': expected finite")


def test_texts(tmp_path: Path, text: Bundle) -> None:
    np.testing.assert_array_equal(from_text("ab é\n", text.manifest.preprocessing), [[0, 1, 2, 3, 4]])
    (tmp_path / "a.txt").write_bytes("é b\n".encode())
    np.testing.assert_array_equal(read_input(tmp_path / "a.txt", text.manifest), [[3, 2, 1, 4]])
    without = text.manifest.model_copy(update={"preprocessing": Preprocessing(kind="text", symbols="ab é")})
    np.testing.assert_array_equal(read_input(tmp_path / "a.txt", without), [[3, 2, 1]])
    assert len(SYMBOLS) == text.manifest.outputs


def test_texts_are_decoded_as_in_training(tmp_path: Path, text: Bundle) -> None:
    for codec in ("utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "a.txt").write_bytes("é b\n".encode(codec))
        np.testing.assert_array_equal(read_input(tmp_path / "a.txt", text.manifest), [[3, 2, 1, 4]])
    latin = text.manifest.preprocessing.model_copy(update={"encoding": "latin-1"})
    (tmp_path / "a.txt").write_bytes(b"\xe9 b\n")
    manifest = text.manifest.model_copy(update={"preprocessing": latin})
    np.testing.assert_array_equal(read_input(tmp_path / "a.txt", manifest), [[3, 2, 1, 4]])


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_pipes_are_read_to_their_end(tmp_path: Path, grey: Manifest, kind: str) -> None:
    buffer, pixels = io.BytesIO(), _pixels(6, 6)
    if kind == "npy":
        np.save(buffer, pixels)
    else:
        Image.fromarray(pixels).save(buffer, "PNG")
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        pool.submit((tmp_path / "pipe").write_bytes, buffer.getvalue())
        x = read_input(tmp_path / "pipe", grey)
    np.testing.assert_array_equal(x, from_array(pixels, grey.preprocessing))


def test_texts_that_the_network_cannot_read(tmp_path: Path, text: Bundle, grey: Manifest) -> None:
    (tmp_path / "a.txt").write_text("abz")
    assert "got 'z' as character 3" in _says(tmp_path / "a.txt", text.manifest)
    (tmp_path / "b.txt").write_bytes(b"\xe9a")
    assert "UTF-8" in _says(tmp_path / "b.txt", text.manifest)
    with pytest.raises(InputError, match="none"):
        from_text("", text.manifest.preprocessing)
    with pytest.raises(InputError, match="Expected images"):
        from_text("ab", grey.preprocessing)
    with pytest.raises(InputError, match="Expected text"):
        from_array(_pixels(6, 6), text.manifest.preprocessing)
