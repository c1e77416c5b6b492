"""JSON as text and as values: long arrays of numbers are read in pieces, to the bit, and what is no JSON is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from v2_requests import read, tensor, whole

from anytime_lct.errors import InputError
from anytime_lct.exits.budget import DEFAULT_ASK
from anytime_lct.serving.limits import DEFAULT_LIMITS
from anytime_lct.serving.request import Refusal
from anytime_lct.serving.v2 import json_text
from anytime_lct.serving.v2.json_text import Numbers, read_json, write_json
from anytime_lct.serving.v2.tensors import from_list


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


def test_any_text_is_written_as_json():
    for value in ('é"\\\n', "names of files\udc80"):
        assert json.loads(write_json({"error": value})) == {"error": value}
