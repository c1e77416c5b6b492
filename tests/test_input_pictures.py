"""Image files as the input of a request: decoded as `predict` does, within bounds that are checked first."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from bundles import write_image_bundle
from PIL import Image
from v2_requests import read, tensor, whole

from anytime_lct.errors import InputError
from anytime_lct.exits.budget import DEFAULT_ASK
from anytime_lct.runtime import preprocess
from anytime_lct.serving.limits import DEFAULT_LIMITS
from anytime_lct.serving.request import Refusal
from anytime_lct.serving.v2.protocol import read_request


def picture(kind, pixels, **more):
    """An image file's bytes."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, **more)
    return file.getvalue()


def pack_bytes(elements, parameters=None, **request):
    """A binary request with elements of BYTES, and the length of its JSON."""
    raw = b"".join(struct.pack("<I", len(each)) + each for each in elements)
    entry = tensor(None, "BYTES", (len(elements),), parameters={"binary_data_size": len(raw)} | (parameters or {}))
    head = json.dumps({"inputs": [entry], **request}).encode()
    return head + raw, str(len(head)).encode()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Image files of several sizes, modes and orientations, and what `predict` reads from them."""
    rng, turned = np.random.default_rng(4), Image.Exif()
    turned[0x0112] = 6
    contents = [
        picture("JPEG", rng.integers(0, 256, (31, 17, 3), np.uint8), exif=turned),
        picture("PNG", rng.integers(0, 256, (6, 6), np.uint8)),
        picture("PNG", rng.integers(0, 256, (9, 50, 4), np.uint8)),
    ]
    return [(content, tmp_path_factory.mktemp("files") / "image") for content in contents]


def test_image_files_are_decoded_as_predict_does(image, files):
    for content, path in files:
        path.write_bytes(content)
    expected = np.concatenate([preprocess.read_input(path, image) for _, path in files])
    contents = [content for content, _ in files]
    in_base64 = [b64encode(content) for content in contents]
    is_base64 = {"content_type": "base64"}
    for body, length in (pack_bytes(contents), pack_bytes(in_base64, is_base64)):
        assert np.array_equal(whole(body, length, image, DEFAULT_LIMITS, DEFAULT_ASK).x, expected)
    sent = tensor([each.decode() for each in in_base64], "BYTES", (3,), parameters=is_base64)
    assert np.array_equal(read(image, {"inputs": [sent]}).x, expected)
    for content, one in zip(contents, expected, strict=True):
        request = whole(content, b"0", image, DEFAULT_LIMITS, DEFAULT_ASK)
        assert np.array_equal(request.x[0], one) and request.outputs.binary == {"logits": True, "exit": True}


@pytest.mark.parametrize(
    ("data", "parameters", "words"),
    [
        (["iVBORw0K"], {}, "base64 in JSON, with 'content_type'"),
        (["%"], {"content_type": "base64"}, "Expected base64 in BYTES"),
        (["é"], {"content_type": "base64"}, "Expected base64 in BYTES"),
        ([b64encode(b"GIF89a").decode()], {"content_type": "base64"}, "got another kind as image 1"),
        ([b64encode(b"\xff\xd8\xff\xe0..").decode()], {"content_type": "base64"}, "'image 1' cannot be read"),
        ([], {}, "at least one image"),
        ([["AAAA"]], {}, "shape [batch]"),
    ],
)
def test_files_that_are_no_images_are_named(image, data, parameters, words):
    shape = (len(data), 1) if data and isinstance(data[0], list) else (len(data),)
    with pytest.raises((Refusal, InputError)) as caught:
        request = read_request(
            json.dumps({"inputs": [tensor(data, "BYTES", shape, parameters=parameters)]}).encode(),
            None, image, DEFAULT_LIMITS, DEFAULT_ASK,
        )  # fmt: skip
        request.decoding_size()
    assert words in str(caught.value)


def test_images_that_take_more_memory_than_a_request_has_are_refused_undecoded(image, monkeypatch):
    """They are a few bytes here: an empty PNG file of that size, whose head alone is read."""
    head = struct.pack(">IIBBBBB", 5000, 4000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    request = read_request(*pack_bytes([png]), image, DEFAULT_LIMITS, DEFAULT_ASK)
    with pytest.raises(Refusal, match="within 192 MB, got one that takes 267 MB as image 1; make it smaller"):
        request.decoding_size()
    room = replace(DEFAULT_LIMITS, in_flight=2 * DEFAULT_LIMITS.in_flight)
    request = read_request(*pack_bytes([png]), image, room, DEFAULT_ASK)
    assert request.decoding_size() == len(png) + 5000 * 4000 * 14 + 4 * 36


def test_networks_on_other_channels_and_on_text_take_no_image_files(text, files, tmp_path):
    deep = write_image_bundle(tmp_path / "deep", channels=4).manifest
    body, length = pack_bytes([files[0][0]])
    with pytest.raises(Refusal, match="UINT8, got 'BYTES'"):
        whole(body, length, deep, DEFAULT_LIMITS, DEFAULT_ASK)
    with pytest.raises(Refusal, match="as Inference-Header-Content-Length is 0"):
        read_request(files[0][0], b"0", deep, DEFAULT_LIMITS, DEFAULT_ASK)
    sent = tensor([b64encode(b"ab").decode()], "BYTES", (1,), parameters={"content_type": "base64"})
    assert read(text, {"inputs": [sent]}).x.tolist() == [[0, 1]]
