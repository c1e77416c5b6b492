"""Several workers behind one port serve the same, and none that dies, hangs or cannot write takes the others along."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from asgi import binary
from bundles import rewrite, spoil, write_image_bundle
from serving_process import PROGRAM, Server, workers_of

from anytime_lct.serving.metrics import Metrics
from anytime_lct.serving.workers import Workers

X = np.zeros((1, 1, 6, 6), np.float32)
JSON = "application/json"
# Two workers that are replaced when they hang for two seconds.
IMPATIENT = """
import json, sys
from pathlib import Path
from anytime_lct.serving.access import Access
from anytime_lct.serving.server import Settings
from anytime_lct.serving.sockets import address, bind
from anytime_lct.serving.workers import Workers
if __name__ == "__main__":
    listener = bind("127.0.0.1", 0)
    announcement = json.dumps({"address": address(listener)})
    settings = Settings(Path(sys.argv[2]), access=Access(allow_admin=True))
    Workers(listener, settings, 2, patience=2.0).run(lambda: print(announcement, flush=True))
"""


@pytest.fixture
def folder(tmp_path, ready):
    shutil.copytree(ready, tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """Two bundles with their timings, so that servers start at once."""
    folder = tmp_path_factory.mktemp("ready")
    write_image_bundle(folder / "one")
    shutil.copytree(folder / "one", folder / "two")
    with Server(folder):
        pass
    return folder


def ask(port, path, method="GET", body=b"", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if response.getheader("content-type") == JSON else content


def census(server, model, times=16):
    """The answers to the same question, by any worker: the first class, or the status."""
    answers = [ask(server.port, f"/v2/models/{model}/exits") for _ in range(times)]
    return Counter(content["classes"][0] if status == 200 else status for status, content in answers)


def infer(server, model="one"):
    body, headers = binary(X)
    return ask(server.port, f"/v2/models/{model}/infer", "POST", body, headers)[0]


def test_workers_serve_the_same_after_every_load(folder):
    with Server(folder, "--workers", "2", "--cores", "2", "--allow-admin") as server:
        # One is loaded; the other changed too, and a third is broken.
        rewrite(folder / "one", classes=["new", "b", "c"])
        rewrite(folder / "two", classes=["not loaded", "b", "c"])
        shutil.copytree(folder / "one", folder / "three")
        spoil(folder / "three")
        assert ask(server.port, "/v2/repository/models/one/load", "POST")[0] == 200
        assert set(census(server, "one")) == {"new"} and "not loaded" not in census(server, "two")
        # One that cannot be loaded changes nowhere.
        assert ask(server.port, "/v2/repository/models/three/load", "POST")[0] == 500
        assert set(census(server, "three")) == {500}
        index = {row["name"]: row for row in ask(server.port, "/v2/repository/index", "POST")[1]}
        assert index["three"]["state"] == "UNAVAILABLE" and "altered" in index["three"]["reason"]
        assert index["two"]["state"] == "READY"
        assert ask(server.port, "/v2/repository/models/nobody/load", "POST")[0] == 404
        # A worker that replaces another joins when the others serve what it has read.
        os.kill(workers_of(server)[0], signal.SIGKILL)
        while set(census(server, "two")) != {"not loaded"}:
            time.sleep(0.05)
        assert ask(server.port, "/v2/repository/models/two/unload", "POST")[0] == 200
        assert set(census(server, "two")) == {404} and set(census(server, "one")) == {"new"}
        shutil.rmtree(folder / "three")
        server.signal(signal.SIGHUP)
        shutil.copytree(folder / "one", folder / "four")
        server.signal(signal.SIGHUP)
        while set(census(server, "four")) != {"new"}:
            time.sleep(0.05)
        assert set(census(server, "two")) == {404}
        assert server.stop() == 0


def test_a_worker_joins_only_when_it_serves_what_the_others_do(folder):
    with Server(folder, program=IMPATIENT) as server:
        before = workers_of(server)
        good = (folder / "two" / "group_1.onnx").read_bytes()
        spoil(folder / "two")
        os.kill(before[0], signal.SIGKILL)
        while "waits to join" not in server.process.stderr.readline():
            pass
        assert {infer(server, "two") for _ in range(10)} == {200}
        (folder / "two" / "group_1.onnx").write_bytes(good)
        while "Serving one" not in server.process.stderr.readline():
            pass
        assert {infer(server, "two") for _ in range(10)} == {200}
        assert server.stop() == 0


def test_a_worker_that_hangs_is_replaced(folder):
    with Server(folder, program=IMPATIENT) as server:
        hanging = workers_of(server)[0]
        os.kill(hanging, signal.SIGSTOP)
        assert "no sign of life" in server.process.stderr.readline()
        assert "another replaces it" in server.process.stderr.readline()
        while len(workers_of(server)) < 2:
            time.sleep(0.05)
        assert {infer(server) for _ in range(10)} == {200}
        assert server.stop() == 0


def test_a_worker_whose_computation_hangs_shows_no_sign_of_life():
    async def go():
        workers, metrics = Workers(None, None, 1), Metrics()
        worker = SimpleNamespace(values={}, heard=0.0)
        await workers.answer(worker, "beat", metrics.values())
        assert (heard := worker.heard) > 0.0
        metrics.hanging.set(1)
        await workers.answer(worker, "beat", metrics.values())
        assert worker.heard == heard
        metrics.hanging.set(0)
        await workers.answer(worker, "beat", metrics.values())
        assert worker.heard > heard

    asyncio.run(go())


def test_sigterm_refuses_new_connections_while_requests_are_finished(folder):
    body, headers = binary(X)
    with Server(folder, "--workers", "2", "--cores", "2") as server:
        line = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        length = headers["Inference-Header-Content-Length"]
        head = f"POST /v2/models/one/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        line.sendall(f"{head}Inference-Header-Content-Length: {length}\r\n\r\n".encode() + body[:50])
        while ask(server.port, "/v2/models/one/stats")[1]["model_stats"][0]["anytime"]["in_flight"] == 0:
            time.sleep(0.01)
        server.signal(signal.SIGTERM)
        with pytest.raises(ConnectionRefusedError):
            while True:
                socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
                time.sleep(0.02)
        line.sendall(body[50:])
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
        line.close()
        assert server.process.wait(30) == 0


def test_workers_need_no_folder_to_write(folder, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/proc")
    with Server(folder, "--workers", "2", "--cores", "2") as server:
        assert {infer(server) for _ in range(10)} == {200}
        assert server.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_starts_lives_is_not_ready_and_obeys(tmp_path, workers):
    """Without timings, a bundle takes seconds to start."""
    write_image_bundle(tmp_path / "in" / "one")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM, "serve", str(tmp_path / "in"), "--port", str(port), "--workers", workers]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                assert ask(port, "/v2/health/live") == (200, {"live": True})
                break
            assert process.poll() is None
            time.sleep(0.01)
        assert ask(port, "/v2/health/ready")[0] == 503
        process.send_signal(signal.SIGHUP)
        assert ask(port, "/v2/models/one")[0] == 503
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()


def test_a_signal_before_anything_is_imported_is_obeyed(tmp_path, ready):
    """It waits until it can be handled, also in the first process of a container."""
    hold = """
import os, signal
from contextlib import contextmanager
from anytime_lct.serving import signals
original = signals.held_to_the_end
@contextmanager
def held_to_the_end():
    with original():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        yield
signals.held_to_the_end = held_to_the_end
"""
    command = [sys.executable, "-c", hold + PROGRAM, "serve", str(ready), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
