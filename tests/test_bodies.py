"""Bodies of requests and answers over HTTP: packed, too large, too slow, or left in the middle."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import numpy as np
import pytest
from asgi import ask, binary, logits
from serving_apps import INFER, JSON, X, bounded, refused


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_bodies_are_the_same_bodies(app, name, pack):
    body, headers = binary(X)
    plain = ask(app, "POST", INFER, body, headers)
    packed = ask(app, "POST", INFER, pack(body), headers | {"Content-Encoding": name})
    assert np.array_equal(logits(packed), logits(plain))
    pieces = [pack(body)[:5], pack(body)[5:]]
    assert np.array_equal(logits(ask(app, "POST", INFER, pieces, headers | {"Content-Encoding": name})), logits(plain))


def test_packed_bodies_beyond_a_step_are_whole(app):
    text = json.dumps(JSON).encode()
    padded = text[:-1] + b" " * 3_000_000 + b"}"
    assert ask(app, "POST", INFER, gzip.compress(padded), {"Content-Encoding": "gzip"}).status == 200


@pytest.mark.parametrize(
    ("body", "name", "status"),
    [
        pytest.param(b"nonsense", "gzip", 400, id="not packed"),
        pytest.param(gzip.compress(b"{}")[:-4], "gzip", 400, id="cut short"),
        pytest.param(gzip.compress(b"{}") + b"more", "gzip", 400, id="more behind it"),
        pytest.param(b"", "gzip", 400, id="empty"),
        pytest.param(zlib.compress(b"{}"), "br", 415, id="unknown packing"),
        pytest.param(b"{}", "gzip, gzip", 415, id="packed twice"),
        pytest.param(b"{}", "", 400, id="an empty name is none"),
    ],
)
def test_badly_packed_bodies_are_refused(app, body, name, status):
    refused(ask(app, "POST", INFER, body, {"Content-Encoding": name}), status)


def test_bombs_are_put_out_at_the_limit(folder, engine):
    app = bounded(folder, engine, body=1 << 20)
    bomb = gzip.compress(bytes(50 << 20))
    refused(ask(app, "POST", INFER, bomb, {"Content-Encoding": "gzip"}), 413, "at most 1048576 bytes")
    assert app.state.service.allowance.used == 0


def test_answers_are_packed_where_that_is_wanted_and_worthwhile(app):
    many = np.zeros((200, 1, 6, 6), np.float32)
    sent = {"inputs": [{"name": "input", "datatype": "FP32", "shape": many.shape, "data": many.tolist()}]}
    plain = ask(app, "POST", INFER, sent)
    assert "content-encoding" not in plain.headers
    for accepted, unpack in (
        ("gzip", gzip.decompress),
        ("deflate", zlib.decompress),
        ("br, gzip;q=0.5", gzip.decompress),
    ):
        packed = ask(app, "POST", INFER, sent, {"Accept-Encoding": accepted})
        assert packed.headers["content-encoding"] == accepted.partition(";")[0].split()[-1]
        assert json.loads(unpack(packed.body))["outputs"] == plain.json()["outputs"]
        assert len(packed.body) < len(plain.body) / 2
    assert "content-encoding" not in ask(app, "POST", INFER, sent, {"Accept-Encoding": "gzip;q=0"}).headers
    assert "content-encoding" not in ask(app, "POST", INFER, JSON, {"Accept-Encoding": "gzip"}).headers


def test_large_answers_come_whole(folder, engine):
    app = bounded(folder, engine, characters=200_000)
    sent = {"inputs": [{"name": "input", "datatype": "INT64", "shape": [1, 50_000], "data": [1] * 50_000}]}
    response = ask(app, "POST", "/v2/models/text/infer", sent)
    assert len(response.json()["outputs"][0]["data"]) == 250_000
    assert int(response.headers["content-length"]) == len(response.body)


def test_bodies_that_are_too_large_are_refused_before_or_on_the_way(folder, engine):
    app = bounded(folder, engine, body=1000)
    response = refused(ask(app, "POST", INFER, b"", {"Content-Length": "1001"}), 413, "at most 1000 bytes")
    assert response.headers["connection"] == "close"
    refused(ask(app, "POST", INFER, [b"x" * 600] * 2), 413)
    refused(ask(app, "POST", "/v2/repository/models/tiny/load", [b"x" * 600] * 2), 413)
    assert app.state.service.allowance.used == 0


def test_slow_bodies_are_refused(folder, engine):
    app = bounded(folder, engine, read_seconds=0.05)
    refused(ask(app, "POST", INFER, [b"{"] * 10, then=0.2), 408, "within 0.05 s")
    assert app.state.service.allowance.used == 0


def test_a_client_that_goes_in_the_middle_of_its_body_leaves_nothing_behind(app, engine):
    async def leave():
        stream = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

        async def receive():
            return next(stream)

        async def send(message):
            raise AssertionError("nobody is there to be answered")

        await app({"type": "http", "method": "POST", "path": INFER, "headers": []}, receive, send)

    asyncio.run(leave())
    assert app.state.service.allowance.used == 0 and not engine.asked
