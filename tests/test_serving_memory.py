"""Memory and time of requests: what all hold is bounded, and what takes long runs beside the event loop."""

from __future__ import annotations

import asyncio
import io
import json
import threading

import numpy as np
import pytest
from asgi import ask, binary, request
from PIL import Image
from serving_apps import ADMIN, ANSWER, INFER, JSON, X, bounded, refused, service_of

from anytime_lct.exits.budget import Ask
from anytime_lct.pixels import fitting_bytes
from anytime_lct.runtime import preprocess
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.serving.http import infer
from anytime_lct.serving.http.app import create_app
from anytime_lct.serving.limits import Allowance, Limits
from anytime_lct.serving.request import Overloaded, Refusal
from anytime_lct.serving.v2 import protocol


def image_file(height, width):
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_bytes_of_all_requests_together_are_bounded(folder, engine):
    body, headers = binary(X)
    session = AnytimeSession(folder / "tiny.bundle")
    session.warm()
    hidden = session.buffer_bytes(X)
    assert hidden > 2 * 4 * (36 + 4 * 36 + 4 * 36)  # the input, and behind both cuts
    app = bounded(folder, engine, in_flight=len(body) + ANSWER + hidden + 100)

    async def two():
        engine.gate.clear()
        first = asyncio.create_task(request(app, "POST", INFER, body, headers))
        while not engine.asked:
            await asyncio.sleep(0.001)
        second = await request(app, "POST", INFER, body, headers)
        engine.gate.set()
        return await first, second

    first, second = asyncio.run(two())
    assert first.status == 200
    assert refused(second, 503).headers["retry-after"] == "1"
    assert ask(app, "POST", INFER, body, headers).status == 200


def test_an_answer_that_would_take_too_many_bytes_is_not_begun(folder, engine):
    sent = {"inputs": [{"name": "input", "datatype": "INT64", "shape": [1, 5000], "data": [1] * 5000}]}
    app = bounded(folder, engine, in_flight=150_000)  # the body and its array take 55 thousand, 25,000 numbers more
    refused(ask(app, "POST", "/v2/models/text/infer", sent), 413, "at most 112500 bytes")
    assert not engine.asked
    assert app.state.service.allowance.used == 0
    sent["outputs"] = [{"name": "logits", "parameters": {"binary_data": True}}]
    app = bounded(folder, engine, in_flight=1_200_000)  # the hidden tensors and logits of the walk take 600 thousand
    assert ask(app, "POST", "/v2/models/text/infer", sent).status == 200
    assert app.state.service.allowance.used == 0


def test_large_requests_leave_bytes_to_small_ones():
    allowance = Allowance(1 << 28)
    with allowance.hold() as one, allowance.hold() as other, allowance.hold() as middle, allowance.hold() as small:
        one.take(128 << 20)
        with pytest.raises(Overloaded):
            other.take(65 << 20)
        other.take(64 << 20)
        with pytest.raises(Overloaded):
            one.take(1)
        with pytest.raises(Refusal, match="at most 201326592 bytes"):  # it would not fit alone: 413
            one.take(65 << 20)
        while True:
            try:
                middle.take(1 << 16)
            except Overloaded:
                break
        for _ in range(100):
            with pytest.raises(Overloaded):
                middle.take(1 << 16)
            small.take(100)
    assert allowance.used == 0


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [("FP32", [1, 1, 6, 6], [0.5] * 20_000), ("UINT8", [1, 150, 150, 1], [7] * 22_500)],
)
def test_what_takes_time_to_read_is_read_beside_the_event_loop(app, monkeypatch, datatype, shape, data):
    threads = []

    def record(function):
        def recorded(*arguments):
            threads.append(threading.current_thread())
            return function(*arguments)

        return recorded

    monkeypatch.setattr(infer, "read_request", record(infer.read_request))
    monkeypatch.setattr(protocol, "read_input", record(protocol.read_input))
    ask(app, "POST", INFER, {"inputs": [{"name": "input", "datatype": datatype, "shape": shape, "data": data}]})
    assert len(threads) == 2 and threading.main_thread() not in threads
    threads.clear()
    ask(app, "POST", INFER, JSON)
    assert threads == [threading.main_thread()] * 2


def test_image_files_are_measured_and_decoded_beside_the_event_loop_within_the_allowance(folder, engine, monkeypatch):
    """Their memory is held while they are decoded, one request at a time, and given back when they are."""
    service = service_of(folder, engine)
    app, content = create_app(service, access=ADMIN), image_file(200, 300)
    calls = []

    def record(function):
        def recorded(*arguments):
            calls.append((threading.current_thread(), service.allowance.used))
            return function(*arguments)

        return recorded

    monkeypatch.setattr(protocol, "decoding_size", record(protocol.decoding_size))
    monkeypatch.setattr(protocol, "decode", record(protocol.decode))

    async def go():
        raw = {"Inference-Header-Content-Length": "0"}
        return await asyncio.gather(*(request(app, "POST", INFER, content, raw) for _ in range(3)))

    assert [response.status for response in asyncio.run(go())] == [200] * 3
    assert threading.main_thread() not in {thread for thread, _ in calls}
    waiting, decoding = [used for _, used in calls[::2]], [used for _, used in calls[1::2]]
    assert len(decoding) == 3 and all(used < 200 * 300 for used in waiting)
    assert all(200 * 300 * 14 < used < 2 * 200 * 300 * 14 for used in decoding)
    assert service.allowance.used == 0


def test_pixels_hold_memory_while_they_are_resized(folder, engine, monkeypatch):
    service, pixels = service_of(folder, engine), np.zeros((2, 300, 400, 1), np.uint8)
    used = []

    def check_batch(x, manifest):
        used.append(service.allowance.used)
        return checked(x, manifest)

    checked = preprocess.check_batch
    monkeypatch.setattr(preprocess, "check_batch", check_batch)
    entry = {"name": "input", "datatype": "UINT8", "shape": pixels.shape}
    head = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": pixels.nbytes}}]}).encode()
    body, headers = head + pixels.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
    assert ask(create_app(service), "POST", INFER, body, headers).status == 200
    one = fitting_bytes((300, 400, 1), 6, 6)
    assert 300 * 400 < one < 300 * 500 and used[0] > one + pixels.nbytes and service.allowance.used == 0
    few = create_app(service_of(folder, engine, limits=Limits(in_flight=400_000)))
    refused(ask(few, "POST", INFER, body, headers), 413)


def test_image_files_that_come_too_late_or_have_no_memory_are_shed_undecoded(folder, engine, monkeypatch):
    content, raw = image_file(200, 300), {"Inference-Header-Content-Length": "0"}
    late = create_app(service_of(folder, engine, default=Ask(timeout=1e-6)), access=ADMIN)
    monkeypatch.setattr(protocol, "decode", lambda *_: pytest.fail("decoded"))
    assert "before the deadline" in ask(late, "POST", INFER, content, raw).json()["error"]
    service = service_of(folder, engine, limits=Limits(in_flight=2_000_000))
    with service.allowance.hold() as other:
        other.take(1_000_000)
        response = refused(ask(create_app(service), "POST", INFER, content, raw), 503, "bytes of requests at a time")
    assert response.headers["retry-after"] == "1"
