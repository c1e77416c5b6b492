"""The V2 protocol in bytes: what is read equals what was sent, and what lies is refused in one sentence."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import pytest
from bundles import SYMBOLS, write_image_bundle, write_text_bundle
from PIL import Image

from anytime_lct.errors import InputError, LCTError
from anytime_lct.exits.budget import DEFAULT_ASK, Ask, Budget, Share
from anytime_lct.runtime import preprocess
from anytime_lct.runtime.answer import Answer
from anytime_lct.serving.limits import DEFAULT_LIMITS, Limits
from anytime_lct.serving.request import Refusal, Reply
from anytime_lct.serving.v2 import json_text
from anytime_lct.serving.v2.json_text import Numbers, read_json, write_json
from anytime_lct.serving.v2.parameters import read_ask
from anytime_lct.serving.v2.protocol import InferRequest, describe_config, describe_model, read_request, write_reply
from anytime_lct.serving.v2.tensors import elements_from_bytes, from_bytes, from_list

X = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_image_bundle(tmp_path_factory.mktemp("image") / "tiny").manifest


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text_bundle(tmp_path_factory.mktemp("text") / "tiny").manifest


def tensor(data=None, datatype="FP32", shape=(2, 1, 6, 6), **more):
    values = {} if data is None else {"data": data}
    return {"name": "input", "datatype": datatype, "shape": list(shape), **values, **more}


@dataclass
class Whole:
    """A request with its input."""

    request: InferRequest

    def __post_init__(self) -> None:
        self.x = self.request.read_input()
        self.id, self.outputs, self.ask = self.request.id, self.request.outputs, self.request.ask


def whole(*arguments) -> Whole:
    """Read a request and its input."""
    return Whole(read_request(*arguments))


def read(manifest, request, *, limits=DEFAULT_LIMITS, default=DEFAULT_ASK):
    return whole(json.dumps(request).encode(), None, manifest, limits, default)


def pack(array, datatype, **request):
    """A binary request and the length of its JSON."""
    raw = array.tobytes()
    entry = tensor(None, datatype, array.shape, parameters={"binary_data_size": len(raw)})
    head = json.dumps({"inputs": [entry], **request}).encode()
    return head + raw, str(len(head)).encode()


def reply(logits, exits):
    return Reply(Answer(int(exits.max()), logits, 35.0, exits, 2, "load"), queued=0.0, computed=0.0, on_time=None)


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


@pytest.mark.parametrize("is_binary", [False, True])
def test_classes_are_tritons_with_the_largest_value_first(image, text, is_binary):
    values = np.array([[0.5, 2.0, 2.0], [-1.0, 0.25, 0.0]], np.float32)
    two, all_ = ({"binary_data": is_binary, "classification": count} for count in (2, 9))
    wanted = [{"name": "logits", "parameters": two}, {"name": "probabilities", "parameters": all_}, {"name": "exit"}]
    request = read(image, {"inputs": [tensor(X.tolist())], "outputs": wanted})
    answer = Answer(2, values, 1.0, np.array([1, 2]), temperatures=np.array([0.5, 2.0]))
    raw, size = write_reply(request, "tiny", "1", Reply(answer, 0.0, 0.0, None), 0.0)
    logits, odds, exits = json.loads(raw[:size])["outputs"]
    assert exits["data"] == [1, 2] and [logits["shape"], odds["shape"]] == [[2, 2], [2, 3]]
    assert (logits["datatype"], odds["datatype"]) == ("BYTES", "BYTES")
    p = answer.probabilities.tolist()
    expected = [
        ["2.000000:1:one", "2.000000:2:two", "0.250000:1:one", "0.000000:2:two"],
        [f"{p[row][k]:f}:{k}:{image.classes[k]}" for row, k in [(0, 1), (0, 2), (0, 0), (1, 1), (1, 2), (1, 0)]],
    ]
    if is_binary:
        split = size + logits["parameters"]["binary_data_size"]
        parts = raw[size:split], raw[split:]
        read_back = [[bytes(e).decode() for e in elements_from_bytes((count,), memoryview(part))]
                     for part, count in zip(parts, (4, 6), strict=True)]  # fmt: skip
        assert read_back == expected
    else:
        assert [logits["data"], odds["data"]] == expected
    assert request.outputs.size(2, 6) >= sum(len(each) for row in expected for each in row)


def test_classes_of_a_text_are_what_comes_next(text):
    logits = np.random.default_rng(5).standard_normal((1, 3, 5)).astype(np.float32)
    wanted = [{"name": "logits", "parameters": {"classification": 1}}, {"name": "probabilities"}]
    request = read(text, {"inputs": [tensor(["abé"], "BYTES", (1,))], "outputs": wanted})
    best = int(logits[0, -1].argmax())
    answer = Answer(1, logits, 1.0, np.array([1]), temperatures=3.0)
    outputs = json.loads(write_reply(request, "t", "1", Reply(answer, 0.0, 0.0, None), 0.0)[0])["outputs"]
    assert outputs[0]["data"] == [f"{logits[0, -1, best]:f}:{best}:{SYMBOLS[best]}"] and outputs[0]["shape"] == [1, 1]
    assert np.array_equal(np.float32(outputs[1]["data"]).reshape(1, 3, 5), answer.probabilities)


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
    ("request_", "words"),
    [
        *(
            (
                {"inputs": [tensor([0.0] * 72)], "outputs": [{"name": "logits", "parameters": {"classification": n}}]},
                words,
            )
            for n, words in ((-1, "number of top classes, got -1"), (True, "got True"), ("3", "got '3'"))
        ),
        ([], "a request as a JSON object"),
        ({}, "'inputs' as a list"),
        ({"inputs": []}, "'inputs' as a list"),
        ({"inputs": [1]}, "an input as a JSON object"),
        ({"inputs": [tensor(), tensor()]}, "once, got it 2 times"),
        ({"inputs": [tensor()]}, "Expected 'data' or 'binary_data_size'"),
        ({"inputs": [tensor([0.0] * 72)], "id": 7}, "'id' as a text"),
        ({"inputs": [tensor([0.0] * 72)], "id": "7" * 1001}, "'id' as a text"),
        ({"inputs": [tensor([0.0] * 72)], "outputs": {}}, "'outputs' as a list"),
        (
            {"inputs": [tensor([0.0] * 72)], "outputs": [{"name": "classes"}]},
            "an output of logits, probabilities, exit",
        ),
        ({"inputs": [tensor([0.0] * 72)], "outputs": [{"name": "exit"}] * 2}, "'exit' again"),
        (
            {"inputs": [tensor([0.0] * 72)], "outputs": [{"name": "exit", "parameters": {"classification": 3}}]},
            "'classification' of logits or probabilities, got it of 'exit'",
        ),
        (
            {"inputs": [tensor([0.0] * 72)], "outputs": [{"name": "exit", "parameters": {"binary_data": 1}}]},
            "'binary_data' as true or false",
        ),
        ({"inputs": [tensor([0.0] * 72)], "parameters": [1]}, "'parameters' as a JSON object"),
    ],
)
def test_wrong_requests_are_named(image, request_, words):
    with pytest.raises(Refusal) as caught:
        read(image, request_)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"nonsense",
        b'{"inputs": [NaN]}',
        b'{"inputs": [-Infinity]}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"1" * 5000,
        b"\xef\xbb\xbf{}",
        b'"\\ud800"',
    ],
)
def test_what_is_no_json_is_refused(image, raw):
    with pytest.raises(Refusal):
        whole(raw, None, image, DEFAULT_LIMITS, DEFAULT_ASK)


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


def test_too_many_samples_and_too_much_json_are_refused(image):
    one = {"inputs": [tensor([0.0] * 72)]}
    with pytest.raises(Refusal, match="at most 1 images"):
        read(image, one, limits=Limits(images=1))
    with pytest.raises(Refusal) as caught:
        read(image, one, limits=Limits(json=100))
    assert caught.value.kind == "large"


def test_parameters_say_what_a_request_may_cost():
    sent = {"timeout": 20_000, "max_flops": "20M", "max_params": 1e6, "max_exit": 2, "min_confidence": 1}
    assert read_ask(sent, DEFAULT_ASK) == Ask(Budget(flops=2e7, params=1e6, exit=2), 0.02, 1.0)
    sure = read_ask({"min_confidence": 0.5, "measure": "margin", "max_latency": "2ms"}, DEFAULT_ASK)
    assert sure == Ask(Budget(latency=0.002), min_confidence=0.5, measure="margin")
    assert read_ask({"mean_flops": "20M", "max_latency": 0.5}, DEFAULT_ASK) == Ask(Budget(latency=0.5), mean_flops=2e7)
    assert read_ask({"timeout": "5ms", "mode": "fixed"}, DEFAULT_ASK) == Ask(timeout=0.005, mode="fixed")


def test_what_a_request_leaves_out_is_the_servers_default():
    default = Ask(Budget(exit=3), timeout=0.1)
    assert read_ask({}, default) is default
    assert read_ask({"binary_data_output": True, "priority": 3}, default) is default
    assert read_ask({"max_flops": "70%"}, default).budget.flops == Share(0.7)
    assert read_ask({"max_flops": 10}, default) == Ask(Budget(flops=10.0, exit=3), timeout=0.1)
    assert read_ask({"sequence_id": 0, "sequence_start": False}, default) == default
    assert read_ask({"timeout": 0}, default) == default


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"timeout": 0.0}, "'timeout'"),
        ({"timeout": False}, "'timeout'"),
        ({"timeout": -5}, "'timeout'"),
        ({"timeout": 2.5}, "'timeout'"),
        ({"timeout": True}, "'timeout'"),
        ({"timeout": 10**400}, "'timeout'"),
        ({"timeout": "20"}, "'timeout'"),
        ({"timeout": "5" * 1000 + "ms"}, "'timeout'"),
        ({"max_flops": 0}, "'max_flops'"),
        ({"max_flops": "-1M"}, "'max_flops'"),
        ({"max_flops": "1e999"}, "'max_flops'"),
        ({"max_flops": None}, "'max_flops'"),
        ({"max_flops": [1]}, "'max_flops'"),
        ({"max_params": True}, "'max_params'"),
        ({"max_params": 10**400}, "'max_params'"),
        ({"max_exit": 1.0}, "'max_exit'"),
        ({"max_exit": 0}, "'max_exit'"),
        ({"max_exit": 10**400}, "'max_exit'"),
        ({"min_confidence": 10**400}, "'min_confidence'"),
        ({"min_confidence": 0}, "'min_confidence'"),
        ({"min_confidence": 1.01}, "'min_confidence'"),
        ({"min_confidence": 0.5, "measure": "mood"}, "'measure'"),
        ({"measure": "margin"}, "beside 'min_confidence'"),
        ({"mean_flops": 0}, "'mean_flops'"),
        ({"mean_flops": "20M", "min_confidence": 0.9}, "'min_confidence' and 'mean_flops'"),
        ({"mean_flops": "20M", "mode": "fixed"}, "'mean_flops' and the mode"),
        ({"max_latency": "5"}, "'max_latency'"),
        ({"max_latency": float("inf")}, "'max_latency'"),
        ({"min_confidence": "0.9"}, "'min_confidence'"),
        ({"mode": "Fixed"}, "'mode'"),
        ({"mode": ["fixed"]}, "'mode'"),
        ({"mode": "fixed", "min_confidence": 0.9}, "'min_confidence' and the mode"),
        ({"sequence_id": 7}, "'sequence_id'"),
        ({"max_flop": 1}, "got 'max_flop'"),
        ({"": 1}, "got ''"),
    ],
)
def test_parameters_that_are_wrong_unknown_or_contradictory_are_named(parameters, words):
    with pytest.raises(Refusal) as caught:
        read_ask(parameters, DEFAULT_ASK)
    assert words in str(caught.value) and len(str(caught.value)) < 500


def test_answers_say_the_same_in_json_and_in_bytes(image):
    logits = np.random.default_rng(2).standard_normal((2, 3)).astype(np.float32)
    exits = np.array([1, 2])
    result = reply(logits, exits)
    body, length = pack(X, "FP32", id="é", parameters={"binary_data_output": True, "timeout": 1600})
    request = whole(body, length, image, DEFAULT_LIMITS, DEFAULT_ASK)
    raw, size = write_reply(request, "tiny", "1", result, 0.0015)
    head = json.loads(raw[:size])
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    assert sizes == [24, 16] and len(raw) == size + 40
    assert np.array_equal(np.frombuffer(raw, "<f4", 6, size).reshape(2, 3), logits)
    assert np.frombuffer(raw, "<i8", 2, size + 24).tolist() == [1, 2]
    assert head["parameters"] == {
        "exit": 2, "exits_run": 2, "stopped": "load", "flops": 35.0, "server_us": 1500, "on_time": True,
    }  # fmt: skip
    assert (head["id"], head["model_name"], head["model_version"]) == ("é", "tiny", "1")

    plain, size = write_reply(read(image, {"inputs": [tensor(X.tolist())]}), "tiny", "1", result, 0.0015)
    content = json.loads(plain)
    assert size is None and "id" not in content
    assert np.array_equal(np.array(content["outputs"][0]["data"], np.float32).reshape(2, 3), logits)
    assert content["outputs"][1] == {"name": "exit", "datatype": "INT64", "shape": [2], "data": [1, 2]}


def test_only_the_outputs_that_were_asked_for_come_each_in_its_way(image):
    wanted = [{"name": "exit", "parameters": {"binary_data": True}}, {"name": "logits"}]
    request = read(image, {"inputs": [tensor(X.tolist())], "outputs": wanted})
    raw, size = write_reply(request, "tiny", "1", reply(np.zeros((2, 3), np.float32), np.array([3, 3])), 0.0)
    outputs = json.loads(raw[:size])["outputs"]
    assert [output["name"] for output in outputs] == ["exit", "logits"]
    assert outputs[1]["data"] == [0.0] * 6 and raw[size:] == np.array([3, 3], "<i8").tobytes()
    assert read(image, {"inputs": [tensor(X.tolist())], "outputs": wanted[:1]}).outputs.binary == {"exit": True}


def test_logits_that_are_no_numbers_are_no_answer(image):
    request = read(image, {"inputs": [tensor(X.tolist())]})
    with pytest.raises(Refusal, match="finite logits"):
        write_reply(request, "tiny", "1", reply(np.array([[np.inf, 0, 0]], np.float32), np.array([1])), 0.0)


def test_metadata_tell_shapes_with_free_dimensions(image, text):
    assert describe_model("tiny", ["1"], image)["inputs"] == [
        {"name": "input", "datatype": "FP32", "shape": [-1, 1, 6, 6]}
    ]
    assert [each["shape"] for each in describe_model("tiny", ["1"], text)["outputs"]] == [
        [-1, -1, 5],
        [-1, -1, 5],
        [-1],
    ]


def test_tensors_cross_the_wire_without_a_copy_where_they_can():
    raw = np.arange(4, dtype="<f4").tobytes()
    assert np.shares_memory(from_bytes("FP32", (4,), memoryview(raw)), np.frombuffer(raw, "u1"))
    assert np.array_equal(from_list("INT64", (2, 1), [[1], [2]]), [[1], [2]])


def test_nonsense_of_any_kind_is_refused_and_nothing_else(image):
    """Bytes of a good request changed at random: an answer or one of our errors, never another."""
    rng = np.random.default_rng(3)
    body, length = pack(X, "FP32", parameters={"timeout": 20_000, "max_flops": "20M"}, id="7")
    for _ in range(3000):
        bad = bytearray(body)
        for _ in range(rng.integers(1, 4)):
            place = rng.integers(0, int(length) + 8)
            bad[place : place + rng.integers(0, 3)] = rng.bytes(int(rng.integers(0, 3)))
        try:
            whole(bytes(bad), length, image, DEFAULT_LIMITS, DEFAULT_ASK)
        except LCTError as error:
            assert str(error).endswith(".") and len(str(error)) < 700


def test_whether_it_was_on_time_is_told_when_it_is_written(image):
    asked = read(image, {"inputs": [tensor(X.tolist())], "parameters": {"timeout": 2000}})
    for seconds, on_time in ((0.0019, True), (0.0021, False)):
        result = reply(np.zeros((2, 3), np.float32), np.array([3, 3]))
        raw, _ = write_reply(asked, "tiny", "1", result, seconds)
        assert json.loads(raw)["parameters"]["on_time"] is on_time


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


def test_fields_that_other_clients_add_are_ignored(image):
    sent = tensor(X.tolist(), extra=1, parameters={"content_type": "np"})
    wanted = [{"name": "exit", "datatype": "INT64", "parameters": {"x": 1}}]
    request = read(image, {"model_name": "tiny", "raw": [], "inputs": [sent], "outputs": wanted})
    assert np.array_equal(request.x, X) and request.outputs.binary == {"exit": False}


def test_a_body_that_is_the_input_alone_is_a_request(image, text):
    request = whole(X.tobytes(), b"0", image, DEFAULT_LIMITS, DEFAULT_ASK)
    assert np.array_equal(request.x, X) and request.outputs.binary == {"logits": True, "exit": True}
    request = whole(np.array([0, 1, 3]).astype("<i8").tobytes(), b"0", text, DEFAULT_LIMITS, DEFAULT_ASK)
    assert request.x.tolist() == [[0, 1, 3]]
    for size, manifest in ((0, image), (287, image), (9, text)):
        with pytest.raises(Refusal, match="as Inference-Header-Content-Length is 0"):
            read_request(bytes(size), b"0", manifest, DEFAULT_LIMITS, DEFAULT_ASK)


def test_the_configuration_gives_the_sizes_that_are_answered(image, text):
    config = describe_config("tiny", image, DEFAULT_LIMITS)
    assert config["max_batch_size"] == 256 and config["input"][0]["dims"] == [1, 6, 6]
    assert config["output"] == [
        {"name": "logits", "data_type": "TYPE_FP32", "dims": [3]},
        {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [3]},
        {"name": "exit", "data_type": "TYPE_INT64", "dims": [1], "reshape": {"shape": []}},
    ]
    few = describe_config("tiny", image, replace(DEFAULT_LIMITS, body=5 * 4 * 36))["max_batch_size"]
    assert few == 5 and describe_config("words", text, DEFAULT_LIMITS)["max_batch_size"] == 16_384


@pytest.mark.parametrize("shape", [(72,), (2, 36), (3, 2, 1, 12), (2, 3, 1, 3, 2, 1, 1, 2)])
@pytest.mark.parametrize("indent", [None, 1])
def test_long_arrays_are_read_in_pieces_to_the_bit(monkeypatch, shape, indent):
    monkeypatch.setattr(json_text, "LONG", 64)
    monkeypatch.setattr(json_text, "_RUN", b"0" * 64)
    monkeypatch.setattr(json_text, "PIECE", 40)
    x = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    for data in (x.tolist(), x.ravel().tolist()):
        sent = {"a": "é\\" * 9, "data": data, "more": [{"data": data}], "shape": [1], "b": " " * 99 + "1" * 99}
        value = read_json(json.dumps(sent, indent=indent).encode())
        assert [value[key] for key in ("a", "shape", "b")] == [sent[key] for key in ("a", "shape", "b")]
        for numbers in (value["data"], value["more"][0]["data"]):
            assert isinstance(numbers, Numbers) and np.array_equal(from_list("FP32", shape, numbers), x)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1" + ",1" * 70 + "]", "Expected 72 values in 'data' for shape [2, 36], got 71"),
        ("[[1" + ",1" * 70 + "],[1]]", "flat or nested"),
        ("[[1" + ",1" * 34 + "],[1" + ",1" * 36 + "]]", "flat or nested"),
        ("[[1" + ",1" * 35 + "],[1" + ",1" * 35 + "]", "flat or nested"),
        ("[1[2]" + ",1" * 71 + "]", "flat or nested"),
        ("[[1" + ",1" * 35 + "],1[" + ",1" * 35 + "]]", "flat or nested"),
        ("[[1" + ",1" * 34 + ",1]1,[1" + ",1" * 35 + "]]", "flat or nested"),
        ("[1 2" + ",1" * 71 + "]", "in JSON"),
        ("[1" + ",1" * 70 + ",]", "in JSON"),
        ("[1,," + ",1" * 69 + "]", "in JSON"),
        ("[01" + ",1" * 71 + "]", "in JSON"),
        ("[1e999" + ",1" * 71 + "]", "finite"),
        ("[" + "1" * 5000 + ",1" * 71 + "]", "in JSON"),
        ('"[' + "1" + ",1" * 71 + ']"', "a text that is an array"),
        ("[-Infinity" + ",1" * 71 + "]", "-Infinity"),
        ("[NaN" + ",1" * 71 + "]", "in JSON"),
        ("[1" + ",1" * 71 + "] 1", "in JSON"),
    ],
)
def test_long_arrays_that_are_wrong_are_named(monkeypatch, text, words):
    monkeypatch.setattr(json_text, "LONG", 64)
    monkeypatch.setattr(json_text, "_RUN", b"0" * 64)
    monkeypatch.setattr(json_text, "PIECE", 40)
    with pytest.raises(Refusal) as caught:
        x = from_list("FP32", (2, 36), read_json(b'{"data": %b}' % text.encode())["data"])
        raise Refusal("finite" if not np.isfinite(x).all() else "nothing is wrong")
    assert words in str(caught.value)


def test_many_numbers_are_refused_by_their_shape_before_they_are_read(image, monkeypatch):
    monkeypatch.setattr(Numbers, "pieces", lambda self: pytest.fail("they are read"))
    many = [0] * 40_000
    with pytest.raises(Refusal, match="got 40000"):
        read(image, {"inputs": [tensor(many)]})
    with pytest.raises(InputError, match="Expected an input of shape"):
        read(image, {"inputs": [tensor(many, shape=(1, 1, 200, 200))]})
    with pytest.raises(Refusal, match="values beside 'data'"):
        read(image, {"inputs": [tensor(many)], "more": ["a"] * 140_000})


@pytest.mark.parametrize("shape", [(1, 20_000, 1, 1), (1, 1, 20_000, 1)])
def test_pixels_of_no_shape_that_pictures_have_are_refused(image, shape):
    with pytest.raises(Refusal, match="up to 16384 a side"):
        whole(*pack(np.zeros(shape, np.uint8), "UINT8"), image, DEFAULT_LIMITS, DEFAULT_ASK)
    cropped = image.model_copy(update={"preprocessing": image.preprocessing.model_copy(update={"resize": 7})})
    strip = np.zeros((1, 3, 8000, 1), np.uint8)
    assert whole(*pack(strip, "UINT8"), image, DEFAULT_LIMITS, DEFAULT_ASK).x.shape == (1, 1, 6, 6)
    with pytest.raises(Refusal, match="also when resized"):
        whole(*pack(strip, "UINT8"), cropped, DEFAULT_LIMITS, DEFAULT_ASK)


def test_any_text_is_written_as_json():
    for value in ('é"\\\n', "names of files\udc80"):
        assert json.loads(write_json({"error": value})) == {"error": value}
