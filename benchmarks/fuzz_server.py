"""The server under malformed requests: at least 10,000 are refused; none makes it fail, leak memory or hang.

1. Valid and invalid requests that schemathesis generates from the server's OpenAPI description; it checks the answers.
2. Binary requests, with numbers or image files, with random changes to bytes, sizes, shapes, compression or headers.
3. Sockets that send something other than HTTP, a part of a request, too much, trailers, upgrades or one request in
   two packets, hang up midway, close their sending side, or do not read.

    python benchmarks/fuzz_server.py [--binary 9500] [--schema 250] [--sockets 2000] [--readers 100] [--seed 0]

Then a valid request must be answered as before. The networks are tiny, from tests/bundles.py.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.client
import io
import json
import socket
import sys
import tempfile
import time
import zlib
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, write
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from bundles import write_image_bundle, write_text_bundle
from serving_process import Server

MEGA = 1 << 20
SIZE = 28
NUMBERS = (-1, 0, 1, 2, 3, 255, 2**31, 2**63, 2**64, 10**30, 1.5, True, None, "1", [], {}, "NaN", -(2**63))
KEYS = (
    "timeout",
    "max_flops",
    "max_params",
    "max_exit",
    "min_confidence",
    "mode",
    "sequence_id",
    "x",
    "binary_data_output",
)


class Fuzz:
    """Sends requests over one connection and counts answers by status."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.rng = server, np.random.default_rng(seed)
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Send a request; reopen a connection that the server closed."""
        for retry in (True, False):
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
            try:
                self._connection.request("POST", path, body, headers)
                answer = self._connection.getresponse()
                content = answer.read()
                if answer.getheader("connection") == "close":
                    self._connection = None
                return answer.status, content
            except (OSError, http.client.HTTPException):
                self._connection = None
                if not retry:
                    raise
        raise AssertionError("unreachable")

    def judge(self, kind: str, status: int, content: bytes) -> None:
        """Count an answer, and record it as a failure unless it is a success or a proper error."""
        self.statuses[status] += 1
        if status == 200:
            return
        try:
            message = json.loads(content)
            proper = list(message) == ["error"] and isinstance(message["error"], str) and len(message["error"]) < 2000
        except ValueError:
            proper = False
        if not proper or (status >= 500 and status != 503):
            self.failures.append(f"{kind}: {status} {content[:200]!r}")

    def choose(self, options: Any) -> Any:
        """Return one of `options` at random."""
        return options[int(self.rng.integers(len(options)))]


def valid_request(fuzz: Fuzz) -> tuple[str, dict[str, Any], bytes]:
    """Return the path of a valid request, its JSON, and the binary data after it."""
    kind, batch = fuzz.choose(("images", "files", "text")), int(fuzz.rng.integers(1, 4))
    shape, datatype = [batch], "BYTES"
    if kind == "files":
        files = [image_file(fuzz) for _ in range(batch)]
        raw = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    elif kind == "images":
        x = fuzz.rng.standard_normal((batch, 1, SIZE, SIZE)).astype("<f4")
        shape, datatype, raw = list(x.shape), "FP32", x.tobytes()
    else:
        x = fuzz.rng.integers(0, 5, (batch, int(fuzz.rng.integers(1, 9))))
        shape, datatype, raw = list(x.shape), "INT64", x.tobytes()
    tensor = {"name": "input", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    classes = {"classification": int(fuzz.rng.integers(0, 3)), "binary_data": bool(fuzz.rng.integers(2))}
    outputs = [{"name": fuzz.choose(("logits", "probabilities")), "parameters": classes}]
    path = f"/v2/models/{'words' if kind == 'text' else 'tiny'}/infer"
    return path, {"id": "7", "inputs": [tensor], "outputs": outputs, "parameters": {"timeout": 10**6}}, raw


def image_file(fuzz: Fuzz) -> bytes:
    """Return a small JPEG or PNG file, half of the time with random changes to its bytes."""
    sides = fuzz.rng.integers(1, 60, 2)
    file = io.BytesIO()
    Image.fromarray(fuzz.rng.integers(0, 256, (*sides, 3), np.uint8)).save(file, fuzz.choose(("JPEG", "PNG")))
    content = bytearray(file.getvalue())
    if fuzz.rng.random() < 0.5:
        for _ in range(fuzz.rng.integers(1, 6)):
            start = int(fuzz.rng.integers(min(len(content), 200)))  # most is said at the start
            content[start : start + int(fuzz.rng.integers(0, 5))] = fuzz.rng.bytes(int(fuzz.rng.integers(0, 5)))
    return bytes(content)


def changed_request(fuzz: Fuzz) -> tuple[str, bytes, dict[str, str]]:
    """Return the path, body and headers of a valid request after a few random changes, which may leave it valid."""
    path, request, raw = valid_request(fuzz)
    tensor, headers = request["inputs"][0], {}
    changes_bytes = False
    for _ in range(fuzz.rng.integers(1, 3)):
        change = int(fuzz.rng.integers(12))
        if change == 0:
            tensor["parameters"]["binary_data_size"] = fuzz.choose(NUMBERS)
        elif change == 1:
            tensor["shape"] = [fuzz.choose(NUMBERS) for _ in range(fuzz.rng.integers(0, 12))]
        elif change == 2:
            tensor["shape"][int(fuzz.rng.integers(len(tensor["shape"])))] = fuzz.choose(NUMBERS)
        elif change == 3:
            tensor["datatype"] = fuzz.choose(("FP64", "FP16", "BOOL", "BYTES", "UINT8", "INT32", "", None, 7))
        elif change == 4:
            request["parameters"] = {fuzz.choose(KEYS): fuzz.choose(NUMBERS) for _ in range(3)}
        elif change == 5:
            request[fuzz.choose(("inputs", "outputs", "id", "parameters", "x"))] = fuzz.choose(NUMBERS)
        elif change == 6:
            tensor[fuzz.choose(("name", "data", "x", "parameters"))] = fuzz.choose(NUMBERS)
        elif change == 7:
            request["inputs"] = [tensor] * int(fuzz.rng.integers(0, 4))
        elif change == 8:
            raw = raw[: int(fuzz.rng.integers(len(raw) + 1))]
        elif change == 9:
            raw += fuzz.rng.bytes(int(fuzz.rng.integers(1, 100)))
        elif change == 10 and tensor["datatype"] == "FP32":
            raw = np.full(len(raw) // 4, fuzz.choose((np.nan, np.inf, 3e38)), "<f4").tobytes()
        else:
            changes_bytes = True
        if not isinstance(tensor.get("shape"), list) or not tensor["shape"]:
            tensor["shape"] = [1]
        if not isinstance(tensor.get("parameters"), dict):
            break
    head = json.dumps(request).encode()
    length: object = len(head)
    if changes_bytes:
        changed = bytearray(head)
        for _ in range(fuzz.rng.integers(1, 6)):
            start = int(fuzz.rng.integers(len(changed)))
            changed[start : start + int(fuzz.rng.integers(0, 4))] = fuzz.rng.bytes(int(fuzz.rng.integers(0, 4)))
        head = bytes(changed)
    if fuzz.rng.random() < 0.15:
        length = fuzz.choose((0, -1, 1, len(head) + 1, len(head) - 1, 10**9, 10**30, "x", "", "1e3", "0x10"))
    headers["Inference-Header-Content-Length"] = str(length)
    body = head + raw
    if fuzz.rng.random() < 0.15:
        body, headers["Content-Encoding"] = compress(fuzz, body)
    return path, body, headers


def compress(fuzz: Fuzz, body: bytes) -> tuple[bytes, str]:
    """Return a body, compressed correctly or not, and its content encoding."""
    name = fuzz.choose(("gzip", "deflate", "br", "gzip, deflate", "zip"))
    content = fuzz.choose((gzip.compress, zlib.compress, bytes))(body)
    if fuzz.rng.random() < 0.5:
        content = content[: int(fuzz.rng.integers(len(content) + 1))]
    return content, name


def expensive_requests() -> list[tuple[str, bytes, dict[str, str]]]:
    """Return a few requests that are meant to take time and memory."""
    path = "/v2/models/tiny/infer"
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 1, SIZE, SIZE]}
    deep = b'{"inputs": ' + b"[" * 3 * MEGA
    wide = json.dumps({"inputs": [tensor | {"data": [[]] * MEGA}]}).encode()
    many = json.dumps({"inputs": [tensor | {"data": [0.5] * MEGA}]}).encode()
    digits = b'{"inputs": [' + b"9" * 5 * MEGA + b"]}"
    lying = json.dumps({"inputs": [tensor | {"shape": [2**40], "parameters": {"binary_data_size": 2**42}}]}).encode()
    bomb = gzip.compress(bytes(256 * MEGA))
    return [
        (path, deep, {}),
        (path, wide, {}),
        (path, many, {}),
        (path, digits, {}),
        (path, lying, {"Inference-Header-Content-Length": str(len(lying))}),
        (path, bomb, {"Content-Encoding": "gzip"}),
        (path, bytes(80 * MEGA), {}),
        (path, b"x", {"Content-Length": str(2**50)}),
        (path, b"{}", {"Inference-Header-Content-Length": "2" * 5000}),
        (path, b"{}", {"Content-Encoding": "z" * 5000}),
    ]


def nonsense(fuzz: Fuzz) -> bytes:
    """Return bytes for a socket: not HTTP, a part of a request, or too much."""
    start = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n"
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
    inner = b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQC\r\n"
    host = b"GET /v2 HTTP/1.1\r\nHost: x\r\n"
    many = int(fuzz.rng.integers(1, 20_000))
    return fuzz.choose(
        (
            lambda: fuzz.rng.bytes(int(fuzz.rng.integers(1, 3000))),
            lambda: start[: int(fuzz.rng.integers(len(start)))],
            lambda: start + b"Content-Length: 100000\r\n\r\n" + fuzz.rng.bytes(50),
            lambda: start + b"Content-Length: %d\r\n\r\n" % fuzz.choose((-1, 10**30, 0)) + b"{}",
            lambda: start + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
            lambda: chunked + fuzz.choose((b"zz\r\n", b"ffffffffffffffffff\r\n", b"-1\r\n", b"5\r\nab")),
            lambda: start + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            lambda: start + b"a: " + b"b" * 10 * many + b"\r\n",
            lambda: start + b"\x00\x01: \xff\r\n\r\n",
            lambda: b"GET /" + b"%ff%00/../" * int(fuzz.rng.integers(1, 300)) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            lambda: (host + b"\r\n") * int(fuzz.rng.integers(1, 50)) + b"nonsense\r\n\r\n",
            lambda: bytes([22, 3, 1]) + fuzz.rng.bytes(200),
            lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            lambda: chunked + b"1\r\n{\r\n0\r\n" + b"a: b\r\n" * many + b"\r\n",
            lambda: chunked + b"1;" + b"a" * 10 * many + b"\r\n{\r\n0\r\n\r\n",
            lambda: chunked + b"1;a\r\n{\r\n" * many + b"0\r\n\r\n",
            lambda: start + upgrade + b"Content-Length: %d\r\n\r\n" % len(inner) + inner,
            lambda: host + fuzz.choose((b"Host: y\r\n\r\n", b"a: b\r\n c\r\n\r\n", b"a\r\n\r\n", b"a : b\r\n\r\n")),
        )
    )()


def in_packets(fuzz: Fuzz, connection: socket.socket, sent: bytes) -> None:
    """Send bytes in one packet or two."""
    cut = int(fuzz.rng.integers(len(sent) + 1)) if fuzz.rng.random() < 0.3 else 0
    connection.sendall(sent[:cut])
    if cut:
        time.sleep(0.002)
    connection.sendall(sent[cut:])


def sockets(fuzz: Fuzz, number: int) -> int:
    """Send nonsense and hang up, sometimes without waiting; return the number of answers."""
    answered = 0
    for _ in range(number):
        with socket.create_connection(("127.0.0.1", fuzz.server.port), timeout=20) as connection:
            try:
                in_packets(fuzz, connection, nonsense(fuzz))
                if fuzz.rng.random() < 0.2:
                    continue
                connection.shutdown(socket.SHUT_WR)
                answers = b""
                while part := connection.recv(1 << 16):
                    answers += part
            except (BrokenPipeError, ConnectionResetError):
                continue
        for answer in answers.split(b"HTTP/1.1 ")[1:]:
            answered += 1
            head, _, body = answer.partition(b"\r\n\r\n")
            fuzz.judge("socket", int(head[:3]), body)
    return answered


def slow_readers(fuzz: Fuzz, number: int) -> list[socket.socket]:
    """Return connections that ask for much, in part or whole, and read nothing."""
    lines = []
    for _ in range(number):
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", fuzz.server.port))
        line.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(int(fuzz.rng.integers(200))):
                line.send(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        lines.append(line)
    return lines


def schema(fuzz: Fuzz, examples: int) -> tuple[int, list[str]]:
    """Let schemathesis try every operation with `examples` requests; return the number sent and the failures."""
    import hypothesis
    import requests
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.core.failures import FailureGroup
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    description = schemathesis.openapi.from_url(f"{fuzz.server.address}/openapi.json")
    session, failures, number_sent = requests.Session(), [], 0

    def run(operation: Any, mode: GenerationMode, number: int) -> None:
        @hypothesis.seed(0)
        @hypothesis.settings(
            max_examples=number, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def try_case(case: Any) -> None:
            nonlocal number_sent
            answer = case.call(session=session)
            number_sent += 1
            fuzz.statuses[answer.status_code] += 1
            try:
                case.validate_response(answer, checks=checks)
            except FailureGroup as group:
                failures.extend(f"{case.method} {case.formatted_path}: {each}"[:500] for each in group.exceptions)

        try_case()

    for each in description.get_all_operations():
        operation = each.ok()
        takes_body = bool(operation.body)
        for mode in GenerationMode:
            try:
                run(operation, mode, examples if takes_body else max(1, examples // 10))
            except (hypothesis.errors.Unsatisfiable, hypothesis.errors.InvalidArgument):
                continue  # a request without input has no invalid form
    return number_sent, failures


def memory(server: Server, field: str) -> int:
    """Return the bytes of the server's memory, resident now (VmRSS) or at the peak (VmHWM)."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) * 1024


def reference_answer(fuzz: Fuzz) -> bytes:
    """Return the outputs of a fixed valid request."""
    x = np.random.default_rng(0).standard_normal((1, 1, SIZE, SIZE)).astype("<f4")
    request = {"inputs": [{"name": "input", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}]}
    status, content = fuzz.post("/v2/models/tiny/infer", json.dumps(request).encode(), {})
    assert status == 200, content
    return json.dumps(json.loads(content)["outputs"]).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=int, default=9500)
    parser.add_argument("--schema", type=int, default=250)
    parser.add_argument("--sockets", type=int, default=2000)
    parser.add_argument("--readers", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_image_bundle(Path(folder) / "tiny", size=SIZE)
        write_text_bundle(Path(folder) / "words")
        with Server(Path(folder)) as server:
            fuzz = Fuzz(server, arguments.seed)
            start = time.monotonic()
            before = reference_answer(fuzz)
            for _ in range(500):
                fuzz.judge("binary", *fuzz.post(*changed_request(fuzz)))
            warm = memory(server, "VmRSS")
            for _ in range(arguments.binary - 500):
                fuzz.judge("binary", *fuzz.post(*changed_request(fuzz)))
            for request in expensive_requests():
                fuzz.judge("hard", *fuzz.post(*request))
            readers = slow_readers(fuzz, arguments.readers)
            answered = sockets(fuzz, arguments.sockets)
            number_sent, violations = schema(fuzz, arguments.schema)
            after = reference_answer(fuzz)
            for each in readers:
                each.close()
            result = {
                "command": (
                    f"python benchmarks/fuzz_server.py --binary {arguments.binary} --schema {arguments.schema} "
                    f"--sockets {arguments.sockets} --readers {arguments.readers}"
                ),
                "seed": arguments.seed,
                "sent": {
                    "binary": arguments.binary,
                    "hard": len(expensive_requests()),
                    "sockets": arguments.sockets,
                    "schemathesis": number_sent,
                },
                "answers_to_sockets": answered,
                "slow_readers": len(readers),
                "statuses": dict(sorted(fuzz.statuses.items())),
                "refused": sum(number for status, number in fuzz.statuses.items() if status >= 400),
                "failures": fuzz.failures + violations,
                "answers_as_before": after == before,
                "memory": {
                    "after_500_requests": warm,
                    "at_the_end": memory(server, "VmRSS"),
                    "at_most": memory(server, "VmHWM"),
                },
                "seconds": round(time.monotonic() - start, 1),
                "schemathesis": version("schemathesis"),
            }
            code = server.stop()
    result["exit_code"] = code
    print(json.dumps(result, indent=1))
    print(f"wrote {write('fuzz_server', result, arguments.out)}")
    assert not result["failures"] and result["answers_as_before"] and code == 0
    assert result["refused"] >= 10_000 or arguments.binary < 9500
    assert result["memory"]["at_the_end"] - warm < 128 * MEGA
    assert result["memory"]["at_most"] - warm < 512 * MEGA


if __name__ == "__main__":
    main()
