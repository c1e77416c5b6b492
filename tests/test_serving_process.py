"""`anytime-lct serve` as processes: existing clients, sockets that misbehave, signals, workers that die."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from asgi import binary
from bundles import rewrite, write_image_bundle, write_text_bundle
from PIL import Image
from serving_process import Server, workers_of

from anytime_lct.runtime.session import AnytimeSession

X = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
INFER = "/v2/models/tiny/infer"
# A server with bounds that a test can wait for.
IMPATIENT = """
import json, sys
from pathlib import Path
from anytime_lct.serving.limits import Limits
from anytime_lct.serving.server import Settings, serve
from anytime_lct.serving.sockets import address, bind
listener = bind("127.0.0.1", 0)
limits = Limits(header_seconds=0.3, read_seconds=0.5, connections=40)
announcement = json.dumps({"address": address(listener)})
serve(listener, Settings(Path(sys.argv[2]), limits=limits), lambda: print(announcement, flush=True))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    write_image_bundle(folder / "tiny")
    write_text_bundle(folder / "words")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with Server(folder, "--allow-admin") as server:
        yield server


def post(server, body, headers, path=INFER):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def talk(server, *pieces, seconds=10.0):
    """Send bytes as they are; returns all that comes back until the server hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as line:
        for piece in pieces:
            line.sendall(piece)
        received = b""
        while part := line.recv(65536):
            received += part
    return received


def status(response):
    return int(response.split(b" ", 2)[1])


def error(response):
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    return json.loads(body)["error"]


def listens(server):
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=10).close()
        return True
    except OSError:
        return False


def stats(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/v2/models/tiny/stats")
    counts = json.loads(connection.getresponse().read())["model_stats"][0]["anytime"]
    connection.close()
    return counts


def test_tritonclient_works_as_it_is(server, folder):
    session = AnytimeSession(folder / "tiny")
    with triton.InferenceServerClient(server.netloc) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny", "1")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "anytime-lct"
        assert client.get_model_metadata("words")["inputs"][0]["datatype"] == "INT64"
        assert client.get_model_config("tiny")["input"][0]["dims"] == [1, 6, 6]
        assert {row["name"] for row in client.get_model_repository_index()} == {"tiny", "words"}
        assert client.load_model("tiny") is None
        tensor = triton.InferInput("input", X.shape, "FP32")
        for inside in (True, False):
            tensor.set_data_from_numpy(X, binary_data=inside)
            wanted = [triton.InferRequestedOutput("logits", binary_data=inside), triton.InferRequestedOutput("exit")]
            for outputs in (None, wanted):
                for packing in (None, "gzip", "deflate"):
                    answer = client.infer(
                        "tiny", [tensor], outputs=outputs, request_id="7", timeout=5_000_000, priority=1,
                        parameters={"max_exit": 2, "max_flops": "20M"},
                        request_compression_algorithm=packing, response_compression_algorithm=packing,
                    )  # fmt: skip
                    assert np.array_equal(answer.as_numpy("logits"), session.run_to(2, X).logits)
                    assert answer.as_numpy("exit").tolist() == [2, 2]
                    response = answer.get_response()
                    assert response["id"] == "7" and response["parameters"]["on_time"] is True
        for inside in (True, False):
            wanted = [triton.InferRequestedOutput("probabilities", binary_data=inside, class_count=2)]
            classes = client.infer("tiny", [tensor], outputs=wanted).as_numpy("probabilities")
            odds = session.run_to(3, X).probabilities
            names = session.manifest.classes
            assert classes.astype(str).tolist() == [
                [f"{row[k]:f}:{k}:{names[k]}" for k in np.argsort(-row)[:2].tolist()] for row in odds
            ]
        with pytest.raises(triton.InferenceServerException, match="'depth'"):
            client.infer("tiny", [tensor], parameters={"depth": 1})
        words = triton.InferInput("input", [1, 3], "INT64").set_data_from_numpy(np.array([[0, 1, 3]]))
        expected = AnytimeSession(folder / "words").run_to(3, np.array([[0, 1, 3]])).logits
        assert np.array_equal(client.infer("words", [words]).as_numpy("logits"), expected)
        assert client.get_inference_statistics("words")["model_stats"][0]["inference_count"] == 1


def test_many_requests_share_a_connection_and_come_in_order(server):
    body, headers = binary(X)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    length = f"Inference-Header-Content-Length: {headers['Inference-Header-Content-Length']}\r\n"
    one = (head + length + "\r\n").encode() + body
    last = (head + length + "Connection: close\r\n\r\n").encode() + body
    assert talk(server, one * 5 + last).count(b"HTTP/1.1 200 OK") == 6


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(b"nonsense\r\n\r\n", 400, id="no HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400, id="TLS"),
        pytest.param(b"POST /v2 HTTP/9.9\r\n\r\n", 400, id="HTTP/9.9"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, id="negative length"),
        pytest.param(
            b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
            400,
            id="length beyond numbers",
        ),
        pytest.param(
            b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, id="two lengths"
        ),
        pytest.param(b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="path of no text"),
        pytest.param(b"GET /" + b"a" * 200_000, 431, id="endless path"),
        pytest.param(b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 50_000, 431, id="endless headers"),
        pytest.param(
            b"GET /v2 HTTP/1.0\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            200,
            id="upgrade",
        ),
        pytest.param(b"GET /v2 HTTP/1.0\r\n\r\n", 200, id="HTTP/1.0"),
        pytest.param(b"BREW /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="unknown method"),
        pytest.param(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404, id="unknown path"),
    ],
)
def test_bytes_that_are_no_request_are_answered_in_the_protocols_words(server, sent, code):
    response = talk(server, sent)
    assert status(response) == code
    if code != 200:
        assert error(response)


def test_a_body_that_is_too_large_is_refused_though_it_is_sent_on(folder):
    with Server(folder, "--max-body", "1M") as server:
        code, content = post(server, bytes(3 << 20), {})
        assert code == 413 and "at most 1000000 bytes" in json.loads(content)["error"]
        chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        assert status(talk(server, start, chunk, chunk, b"0\r\n\r\n")) == 413
        waiting = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\nExpect: 100-continue\r\n\r\n"
        assert status(talk(server, waiting.encode())) == 413
        assert post(server, *binary(X))[0] == 200


def test_clients_that_are_slow_are_let_go_and_too_many_turned_away(folder):
    with Server(folder, program=IMPATIENT) as server:
        assert error(talk(server, b"")).startswith("Expected whole headers within 0.3 s")
        assert status(talk(server, b"POST /v2 HTTP/1.1\r\nHost:")) == 408
        half = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
        response = talk(server, half)
        assert status(response) == 408 and "whole body within 0.5 s" in error(response)
        lines = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(60)]
        codes = [status(line.recv(65536)) for line in lines]
        for line in lines:
            line.close()
        assert codes.count(503) == 20 and codes.count(408) == 40
        assert post(server, *binary(X))[0] == 200


def test_the_garbage_collector_leaves_alone_what_is_loaded(folder):
    says = "[print(gc.get_freeze_count(), len(gc.get_objects()), file=sys.stderr), print(announcement, flush=True)]"
    with Server(folder, program="import gc" + IMPATIENT.replace("print(announcement, flush=True)", says)) as server:
        assert post(server, *binary(X))[0] == 200
        assert server.stop() == 0
        frozen, searched = map(int, server.errors.split())
        assert frozen > 10 * searched


def test_sigterm_lets_a_request_finish_that_has_begun(folder):
    body, headers = binary(X)
    with Server(folder) as server:
        line = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        length = headers["Inference-Header-Content-Length"]
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        line.sendall(f"{head}Inference-Header-Content-Length: {length}\r\n\r\n".encode() + body[:50])
        while stats(server)["in_flight"] == 0:
            time.sleep(0.01)
        server.signal(signal.SIGTERM)
        while listens(server):
            time.sleep(0.02)
        line.sendall(body[50:])
        assert status(line.recv(65536)) == 200
        line.close()
        assert server.process.wait(30) == 0
        assert server.process.stderr.read() == ""


def test_a_second_sigterm_ends_the_server_at_once(folder):
    with Server(folder) as server:
        line = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        line.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode())
        while stats(server)["in_flight"] == 0:
            time.sleep(0.01)
        server.signal(signal.SIGTERM)
        while listens(server):
            time.sleep(0.02)
        assert server.stop() == 0 and server.errors == ""
        line.close()


def test_sigterm_under_load_loses_no_answer(folder):
    body, headers = binary(X)
    with Server(folder) as server:
        codes, stopped = [], threading.Event()

        def client():
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            with contextlib.closing(connection) as line:
                while not stopped.is_set():
                    try:
                        line.request("POST", INFER, body, headers)
                    except OSError:  # it has stopped listening
                        return
                    try:
                        answer = line.getresponse()
                        codes.append(answer.status)
                        answer.read()
                    except OSError:  # also RemoteDisconnected: an idle connection was closed before it was read
                        return

        clients = [threading.Thread(target=client) for _ in range(4)]
        for each in clients:
            each.start()
        while len(codes) < 50:
            time.sleep(0.01)
        counted = stats(server)["requests"]
        server.signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        stopped.set()
        for each in clients:
            each.join()
        assert set(codes) == {200} and len(codes) >= counted["answered"]


def test_sighup_reads_bundles_again_and_keeps_what_is_whole(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "in")
    with Server(tmp_path / "in") as server, triton.InferenceServerClient(server.netloc) as client:
        shutil.copytree(folder / "tiny", tmp_path / "in" / "twin")
        server.signal(signal.SIGHUP)
        while not client.is_model_ready("twin"):
            time.sleep(0.02)
        rewrite(tmp_path / "in" / "twin", classes=["too few"])
        assert "INFO" in (line := server.process.stderr.readline()) and "twin" in line
        server.signal(signal.SIGHUP)
        assert "damaged" in (line := server.process.stderr.readline()) and "ERROR" in line
        assert client.is_model_ready("twin")


def test_workers_share_a_port_and_a_set_of_metrics_and_are_replaced(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "in")
    with Server(tmp_path / "in", "--workers", "2", "--cores", "2", "--allow-admin") as server:
        for _ in range(20):
            assert post(server, *binary(X))[0] == 200
        while stats(server)["requests"]["answered"] < 20:  # the other may still be counting its last one
            time.sleep(0.01)
        assert {stats(server)["requests"]["answered"] for _ in range(10)} == {20}
        children = workers_of(server)
        assert len(children) == 2
        os.kill(children[0], signal.SIGKILL)
        while set(workers_of(server)) in (set(children), {children[1]}):
            time.sleep(0.05)
        assert "another replaces it" in server.process.stderr.readline()
        for _ in range(20):
            assert post(server, *binary(X))[0] == 200
        while stats(server)["requests"]["answered"] < 40:
            time.sleep(0.01)
        assert stats(server)["requests"]["answered"] == 40

        # A bundle that one worker is asked to load, all have loaded when it answers.
        shutil.copytree(folder / "tiny", tmp_path / "in" / "twin")
        assert post(server, b"", {}, "/v2/repository/models/twin/load")[0] == 200
        assert {post(server, *binary(X), "/v2/models/twin/infer")[0] for _ in range(20)} == {200}
        assert server.stop() == 0
    assert all(not alive(each) for each in children)


def test_sigterm_reaches_a_worker_that_just_takes_anothers_place(folder):
    with Server(folder, "--workers", "2") as server:
        os.kill(workers_of(server)[0], signal.SIGKILL)
        assert "another replaces it" in server.process.stderr.readline()
        assert server.stop() == 0


def test_workers_end_with_their_parent(folder):
    with Server(folder, "--workers", "2") as server:
        children = workers_of(server)
        server.process.kill()
        server.process.communicate(timeout=30)
        server.code = -9
        while any(map(alive, children)):
            time.sleep(0.05)


def alive(process):
    try:
        with open(f"/proc/{process}/stat", encoding="ascii") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_examples_of_the_docs_run_as_they_stand(tmp_path):
    """`console`, `py` and `yaml` blocks show other programs and are not run; `bash` and `python` blocks are."""
    write_image_bundle(tmp_path / "bundles" / "digits", size=8)
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "digit.png")
    docs = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", docs, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    outputs = []
    with Server(tmp_path / "bundles") as server:
        for kind, block in blocks:
            block = block.replace("127.0.0.1:8000", server.netloc)
            program = ["bash", "-euo", "pipefail", "-c"] if kind == "bash" else [sys.executable, "-c"]
            done = subprocess.run([*program, block], cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
            outputs.append(done.stdout)
    assert "'exit': 3" in outputs[0] and '"exit":2' in outputs[1] and "'stopped': " in outputs[3]
    assert any(f':{name}"' in outputs[2] for name in ("0:zero", "1:one", "2:two"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{folder}/absent"], "which has none"),
        (["{folder}", "--port", "{taken}"], "choose another --host or --port"),
        (["{folder}", "--host", "no.such.host.invalid"], "choose another --host or --port"),
        (["{folder}", "--deadline", "20"], "a time like 800us"),
        (["{folder}", "--max-body", "lots"], "a count like 20M"),
        (["{folder}", "--fixed", "7"], "among the exits of 'tiny', 1, 2, 3"),
        (["{broken}"], "altered"),
        (["{broken}", "--workers", "2"], "altered"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(folder, tmp_path, arguments, words):
    shutil.copytree(folder / "tiny", tmp_path / "broken")
    graph = tmp_path / "broken" / "group_1.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        known = {"folder": folder, "broken": tmp_path / "broken", "taken": taken.getsockname()[1]}
        options = [argument.format(**known) for argument in arguments]
        command = [sys.executable, "-m", "anytime_lct.cli.main", "serve", "--port", "0", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1
