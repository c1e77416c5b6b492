"""The input of a request: what is read equals what was sent, and what lies is refused in one sentence."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from bundles import SYMBOLS
from v2_requests import X, pack, read, tensor, whole

from anytime_lct.errors import InputError, LCTError
from anytime_lct.exits.budget import DEFAULT_ASK, Ask
from anytime_lct.runtime import preprocess
from anytime_lct.serving.limits import DEFAULT_LIMITS
from anytime_lct.serving.request import Refusal
from anytime_lct.serving.v2.protocol import read_request
from anytime_lct.serving.v2.tensors import from_bytes, from_list


@pytest.mark.parametrize("data", [X.ravel().tolist(), X.tolist()], ids=["flat", "nested"])
def test_json_is_read_to_the_bit(image, data):
    request = read(image, {"id": "7", "inputs": [tensor(data)]})
    assert np.array_equal(request.x, X) and request.x.dtype == np.float32
    assert (request.id, request.outputs.binary, request.ask) == ("7", {"logits": False, "exit": False}, Ask())


@pytest.mark.parametrize(("datatype", "dtype"), [("FP32", "<f4"), ("FP64", "<f8"), ("FP16", "<f2")])
@pytest.mark.parametrize("filler", [0, 1, 2, 3])
def test_binary_is_read_to_the_bit_wherever_it_begins(image, datatype, dtype, filler):
    sent = X.astype(dtype)
    body, length = pack(sent, datatype, id="x" * filler)
    request = whole(body, length, image, DEFAULT_LIMITS, DEFAULT_ASK)
    assert np.array_equal(request.x, sent.astype(np.float32))
    assert request.x.flags.aligned and request.x.dtype == np.float32


def test_pixels_are_preprocessed_as_the_bundle_says(image):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 9, 7, 1), np.uint8)
    body, length = pack(pixels, "UINT8")
    expected = preprocess.from_array(pixels, image.preprocessing)
    assert np.array_equal(whole(body, length, image, DEFAULT_LIMITS, DEFAULT_ASK).x, expected)
    sent = tensor(pixels.tolist(), "UINT8", pixels.shape)
    assert np.array_equal(read(image, {"inputs": [sent]}).x, expected)


def test_text_is_numbers_or_strings(text):
    expected = [[0, 1, 1, 3], [3, 3, 0, 4]]
    texts = ["".join(SYMBOLS[k] for k in row) for row in expected]
    assert read(text, {"inputs": [tensor(expected, "INT64", (2, 4))]}).x.tolist() == expected
    assert read(text, {"inputs": [tensor(texts, "BYTES", (2,))]}).x.tolist() == expected
    for datatype, dtype in (("INT64", "<i8"), ("INT32", "<i4")):
        body, length = pack(np.array(expected, dtype), datatype)
        x = whole(body, length, text, DEFAULT_LIMITS, DEFAULT_ASK).x
        assert x.tolist() == expected and x.dtype == np.int64
    raw = b"".join(struct.pack("<I", len(each.encode())) + each.encode() for each in texts)
    entry = tensor(None, "BYTES", (2,), parameters={"binary_data_size": len(raw)})
    head = json.dumps({"inputs": [entry]}).encode()
    assert whole(head + raw, str(len(head)).encode(), text, DEFAULT_LIMITS, DEFAULT_ASK).x.tolist() == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "image"}, "Expected an input named 'input', got 'image'"),
        ({"datatype": "BOOL"}, "datatype FP32, FP64, FP16, UINT8, BYTES, got 'BOOL'"),
        ({"datatype": ["FP32"]}, "datatype"),
        ({"shape": [2, 36]}, "Expected an input of shape (batch, 1, 6, 6)"),
        ({"shape": [0, 1, 6, 6], "data": []}, "Expected at least one sample"),
        ({"shape": [-2, 1, 6, 6]}, "'shape' to be a list"),
        ({"shape": [True, 1, 6, 6]}, "'shape' to be a list"),
        ({"shape": [2.0, 1, 6, 6]}, "'shape' to be a list"),
        ({"shape": [1] * 9}, "'shape' to be a list"),
        ({"shape": [1, 10**4000, 10**4000, 6]}, "'shape' to be a list"),
        ({"shape": [1, 2**62, 2**62, 2**62]}, "values in 'data' for shape"),
        ({"shape": [10**18, 1, 6, 6]}, "at most 256 images"),
        ({"shape": [2, 10**12, 10**12, 6]}, "Expected 12"),
        ({"data": X.ravel().tolist()[:-1]}, "Expected 72 values in 'data' for shape [2, 1, 6, 6], got 71"),
        ({"data": X.tolist()[:1]}, "flat or nested"),
        ({"data": [X[0].tolist(), X[1].ravel().tolist()]}, "flat or nested"),
        ({"data": [[[[[1.0]]]]]}, "flat or nested"),
        ({"data": "AAAA"}, "'data' as a list"),
        ({"data": {"0": 1}}, "'data' as a list"),
        ({"data": ["1"] * 72}, "got a string"),
        ({"data": [True] * 72}, "got a truth value"),
        ({"data": [None] * 72}, "got a null"),
        ({"data": [0.0] * 71 + [[1.0]]}, "got a list"),
        ({"data": [10**400] * 72}, "beyond it"),
        ({"data": [1e300] * 72}, "Expected finite numbers"),
        ({"parameters": {"shared_memory_region": "x"}}, "shared_memory_region"),
        ({"parameters": {"binary_data_size": 288}}, "Expected one of 'data' and 'binary_data_size'"),
        ({"parameters": []}, "as a JSON object"),
    ],
)
def test_wrong_inputs_are_named(image, changes, words):
    with pytest.raises((Refusal, InputError)) as caught:
        read(image, {"inputs": [tensor(X.ravel().tolist()) | changes]})
    assert words in str(caught.value)
    assert getattr(caught.value, "status", 400) == 400


@pytest.mark.parametrize(
    ("size", "cut", "length", "words"),
    [
        (287, 0, None, "Expected 'binary_data_size' 288"),
        (289, 0, None, "Expected 'binary_data_size' 288"),
        (10**15, 0, None, "Expected 'binary_data_size' 288"),
        (-288, 0, None, "Expected 'binary_data_size' 288"),
        ("288", 0, None, "Expected 'binary_data_size' 288"),
        (True, 0, None, "Expected 'binary_data_size' 288"),
        (284, 4, None, "Expected 288 bytes for FP32 of shape [2, 1, 6, 6], got 284"),
        (288, 4, None, "Expected 'binary_data_size' 284"),
        (288, 0, b"99999", "Inference-Header-Content-Length"),
        (288, 0, b"-5", "Inference-Header-Content-Length"),
        (288, 0, b"1e3", "Inference-Header-Content-Length"),
        (288, 0, b"", "Inference-Header-Content-Length"),
        (288, 0, b"9" * 5000, "Inference-Header-Content-Length"),
        (288, 0, b"0", "in JSON"),
    ],
)
def test_sizes_that_lie_are_refused(image, size, cut, length, words):
    head = json.dumps({"inputs": [tensor(parameters={"binary_data_size": size})]}).encode()
    body = head + X.tobytes()
    with pytest.raises(Refusal) as caught:
        whole(body[: len(body) - cut], length or str(len(head)).encode() if length != b"" else b"",
                     image, DEFAULT_LIMITS, DEFAULT_ASK)  # fmt: skip
    assert words in str(caught.value)


def test_bytes_that_nobody_announced_are_refused(image):
    head = json.dumps({"inputs": [tensor(X.ravel().tolist())]}).encode()
    with pytest.raises(Refusal, match="no bytes behind the JSON, got 3"):
        whole(head + b"abc", str(len(head)).encode(), image, DEFAULT_LIMITS, DEFAULT_ASK)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(image, number):
    x = X.copy()
    x[1, 0, 2, 3] = number
    body, length = pack(x, "FP32")
    with pytest.raises(InputError, match="finite"):
        whole(body, length, image, DEFAULT_LIMITS, DEFAULT_ASK)


@pytest.mark.parametrize(
    "raw", [b"\x01", b"\x02\0\0\0a", b"\xff\xff\xff\xff", b"\x01\0\0\0\xff", b"\x01\0\0\0a" * 2, b""]
)
def test_strings_that_lie_about_their_length_are_refused(text, raw):
    entry = tensor(None, "BYTES", (1,), parameters={"binary_data_size": len(raw)})
    head = json.dumps({"inputs": [entry]}).encode()
    with pytest.raises((Refusal, InputError)):
        whole(head + raw, str(len(head)).encode(), text, DEFAULT_LIMITS, DEFAULT_ASK)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "words"),
    [
        ("INT64", (1, 2), [0, 5], "Expected symbols of 0 to 4, got 5"),
        ("INT64", (1, 2), [0, -1], "got -1"),
        ("INT64", (1, 2), [0, 1.0], "got a fraction"),
        ("INT64", (1, 2), [0, 2**63], "beyond it"),
        ("INT64", (1, 0), [], "at least one sample"),
        ("FP32", (1, 2), [0, 1], "datatype INT64, INT32, BYTES"),
        ("BYTES", (1,), ["z"], "got 'z' as character 1"),
        ("BYTES", (1,), [""], "at least one character"),
        ("BYTES", (0,), [], "at least one text"),
        ("BYTES", (2,), ["a", "ab"], "one length"),
        ("BYTES", (1, 1), [["a"]], "shape [batch]"),
        ("BYTES", (1,), [1], "Expected strings"),
        ("BYTES", (1,), ["a" * 20_000], "at most 16384 characters"),
        ("INT64", (2, 9000), [0] * 18_000, "at most 16384 characters"),
    ],
)
def test_wrong_text_is_named(text, datatype, shape, data, words):
    with pytest.raises((Refusal, InputError)) as caught:
        read(text, {"inputs": [tensor(data, datatype, shape)]})
    assert words in str(caught.value)


def test_tensors_cross_the_wire_without_a_copy_where_they_can():
    raw = np.arange(4, dtype="<f4").tobytes()
    assert np.shares_memory(from_bytes("FP32", (4,), memoryview(raw)), np.frombuffer(raw, "u1"))
    assert np.array_equal(from_list("INT64", (2, 1), [[1], [2]]), [[1], [2]])


def test_pixels_that_would_grow_beyond_a_body_are_refused_before_they_do(image):
    pixels = np.zeros((9, 1, 1, 1), np.uint8)
    body, length = pack(pixels, "UINT8")
    room = replace(DEFAULT_LIMITS, body=8 * 4 * 36)
    with pytest.raises(Refusal, match="at most 8 images"):
        read_request(body, length, image, room, DEFAULT_ASK)
    request = read_request(*pack(pixels[:8], "UINT8"), image, room, DEFAULT_ASK)
    assert request.input_bytes == 8 * 4 * 36 and request.read_input().nbytes == request.input_bytes


@pytest.mark.parametrize("shape", [[1, 2**40, 2**40, 0], [1, 10**30, 0, 28]])
@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_a_shape_that_no_array_can_have_is_refused(image, datatype, shape):
    entry = tensor(None, datatype, shape, parameters={"binary_data_size": 0})
    with pytest.raises(Refusal, match="shape"):
        read(image, {"inputs": [entry]})
    with pytest.raises(LCTError):
        read(image, {"inputs": [tensor([], datatype, shape)]})


@pytest.mark.parametrize("shape", [(1, 20_000, 1, 1), (1, 1, 20_000, 1)])
def test_pixels_of_no_shape_that_pictures_have_are_refused(image, shape):
    with pytest.raises(Refusal, match="up to 16384 a side"):
        whole(*pack(np.zeros(shape, np.uint8), "UINT8"), image, DEFAULT_LIMITS, DEFAULT_ASK)
    cropped = image.model_copy(update={"preprocessing": image.preprocessing.model_copy(update={"resize": 7})})
    strip = np.zeros((1, 3, 8000, 1), np.uint8)
    assert whole(*pack(strip, "UINT8"), image, DEFAULT_LIMITS, DEFAULT_ASK).x.shape == (1, 1, 6, 6)
    with pytest.raises(Refusal, match="also when resized"):
        whole(*pack(strip, "UINT8"), cropped, DEFAULT_LIMITS, DEFAULT_ASK)
