"""Pictures are brought to size as torchvision's usual evaluation does it."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from anytime_lct.pixels import fit, shorter_side


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
