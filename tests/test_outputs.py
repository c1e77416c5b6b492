"""The outputs of an answer: the same in JSON and in bytes, and the top classes of every sample."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bundles import SYMBOLS
from v2_requests import X, pack, read, reply, tensor, whole

from anytime_lct.exits.budget import DEFAULT_ASK
from anytime_lct.runtime.answer import Answer
from anytime_lct.serving.limits import DEFAULT_LIMITS
from anytime_lct.serving.request import Refusal, Reply
from anytime_lct.serving.v2.protocol import write_reply
from anytime_lct.serving.v2.tensors import elements_from_bytes


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
