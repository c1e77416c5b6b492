"""Pictures are read as a viewer shows them, and brought to size as torchvision's usual evaluation does it."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.transforms import v2

from anytime_lct.errors import DataError, InputError
from anytime_lct.pixels import fit, picture_size, read_picture, shorter_side


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [(300, 410), (411, 300), (256, 256), (40, 31), (224, 225), (257, 900)])
def test_fitting_is_resize_256_and_centre_crop_224(size):
    pixels = _pixels(*size, 3)
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(Image.fromarray(pixels))
    np.testing.assert_array_equal(fit(pixels, 224, 224, shorter_side(224, 224)), np.asarray(expected))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_do_not_mix(channels):
    pixels = _pixels(20, 33, channels)
    alone = [fit(pixels[..., c : c + 1], 8, 8, 9) for c in range(channels)]
    np.testing.assert_array_equal(fit(pixels, 8, 8, 9), np.concatenate(alone, axis=-1))


def test_without_a_side_the_whole_picture_is_stretched():
    pixels = _pixels(20, 33, 3)
    expected = Image.fromarray(pixels).resize((9, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(fit(pixels, 8, 9), np.asarray(expected))


def test_pixels_of_the_right_size_stay_as_they_are():
    pixels = _pixels(8, 9, 3)
    assert fit(pixels, 8, 9) is pixels and fit(pixels, 8, 9, 12) is pixels


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_pictures_are_turned_as_their_exif_says(tmp_path, kind, orientation):
    exif, path = Image.Exif(), str(tmp_path / "a")
    exif[0x0112] = orientation
    Image.fromarray(_pixels(6, 9, 3)).save(path, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(read_picture(path, path, 3), expected)
    assert picture_size(path, path) == expected.shape[:2]


def test_a_picture_with_damaged_exif_stays_as_it_is(tmp_path):
    pixels = _pixels(6, 9, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\0\0damage")
    np.testing.assert_array_equal(read_picture(str(tmp_path / "a.png"), "a.png", 3), pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pictures_lie_on_white(tmp_path, mode):
    path = str(tmp_path / "a.png")
    if mode in ("RGBA", "LA"):
        picture = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
        picture.putpixel((1, 0), (51, 51, 51, 255))
        picture.putpixel((2, 0), (0, 0, 0, 51))
        picture.convert(mode).save(path)
        row = [255, 51, 204, 255]
    else:  # one colour, or one entry of the palette, is transparent
        picture = Image.new(mode, (4, 2), 0)
        picture.putpixel((1, 0), 1 if mode == "P" else (51, 51, 51))
        if mode == "P":
            picture.putpalette([0, 0, 0, 51, 51, 51])
        picture.save(path, transparency=0 if mode == "P" else (0, 0, 0))
        row = [255, 51, 255, 255]
    for channels in (1, 3):
        expected = np.array([row, [255] * 4])[..., None].repeat(channels, -1)
        np.testing.assert_array_equal(read_picture(path, path, channels), expected)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path, recwarn):
    path = str(tmp_path / "a.png")
    picture = Image.fromarray(_pixels(6, 6, 3)).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    picture.save(path, transparency=bytes([0, 128, 255, 255]))
    assert read_picture(path, path, 1).shape == (6, 6, 1) and not recwarn.list


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_a_channel_are_refused(dtype):
    file = BytesIO()
    Image.fromarray(_pixels(6, 6).astype(dtype)).save(file, "TIFF")
    for read in (lambda: read_picture(file, "deep", 3), lambda: picture_size(file, "deep")):
        with pytest.raises(DataError, match=r"^The image '.*' cannot be read: expected 8 bits a channel, got mode .*"):
            read()


def _huge_png(width, height):
    """The head of a sound PNG of that size, without its pixels."""
    chunk = b"IHDR" + struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    return BytesIO(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\x0aIDAT"
    )


def test_a_huge_picture_is_refused_by_its_size_alone(recwarn):
    with pytest.raises(InputError, match=r"^The image 'huge' cannot be read: it has more than 178,956,970 pixels; .*"):
        read_picture(_huge_png(14000, 14000), "huge", 3)
    with pytest.raises(InputError, match="damaged"):  # merely large, and without pixels: no warning
        read_picture(_huge_png(9600, 9600), "large", 3)
    assert not recwarn.list


def test_the_size_of_a_picture_is_read_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(_huge_png(9600, 4).read())
    assert picture_size(str(tmp_path / "a.png"), "a.png") == (4, 9600)
    with pytest.raises(DataError, match=r"none.png' cannot be read: No such file"):
        picture_size(str(tmp_path / "none.png"), "none.png")


@pytest.mark.parametrize("shape", [(1, 60000, 3), (60000, 1, 3), (2, 90001, 1)])
def test_a_thin_picture_is_cropped_before_it_is_enlarged(shape, monkeypatch):
    pixels, sizes = _pixels(*shape), []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *rest: sizes.append(size) or resize(self, size, *rest)
    )
    result = fit(pixels, 224, 224, 256)
    assert result.shape == (224, 224, shape[2]) and all(max(size) == 16 * 256 for size in sizes)
    long, short = max(shape), min(shape[:2])
    start = round((long - 16 * short) / 2)
    centre = pixels[:, start : start + 16 * short] if shape[1] == long else pixels[start : start + 16 * short]
    np.testing.assert_array_equal(result, fit(centre, 224, 224, 256))
