"""Requests of the V2 protocol, packed and read, for tests of its parts."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from anytime_lct.exits.budget import DEFAULT_ASK
from anytime_lct.runtime.answer import Answer
from anytime_lct.serving.limits import DEFAULT_LIMITS
from anytime_lct.serving.request import Reply
from anytime_lct.serving.v2.protocol import InferRequest, read_request

X = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)


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
