"""The V2 protocol in bytes: requests and their parameters, metadata, and what is refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from v2_requests import X, pack, read, reply, tensor, whole

from anytime_lct.errors import LCTError
from anytime_lct.exits.budget import DEFAULT_ASK, Ask, Budget, Share
from anytime_lct.serving.limits import DEFAULT_LIMITS, Limits
from anytime_lct.serving.request import Refusal
from anytime_lct.serving.v2.parameters import read_ask
from anytime_lct.serving.v2.protocol import describe_config, describe_model, read_request, write_reply


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


def test_metadata_tell_shapes_with_free_dimensions(image, text):
    assert describe_model("tiny", ["1"], image)["inputs"] == [
        {"name": "input", "datatype": "FP32", "shape": [-1, 1, 6, 6]}
    ]
    assert [each["shape"] for each in describe_model("tiny", ["1"], text)["outputs"]] == [
        [-1, -1, 5],
        [-1, -1, 5],
        [-1],
    ]


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
