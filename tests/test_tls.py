"""TLS: what holds for connections holds inside of it too, and files that clients would refuse are not served."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import pickle
import shutil
import signal
import socket
import ssl
import time
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import numpy as np
import pytest
import uvloop
from asgi import binary
from bundles import write_image_bundle
from certificates import write_certificate
from fake_engine import FakeEngine
from serving_apps import INFER, service_of
from serving_process import Server

from anytime_lct.errors import InputError, WorkerLostError
from anytime_lct.serving.access import Access
from anytime_lct.serving.certificate import Certificate
from anytime_lct.serving.http.listener import HTTPListener
from anytime_lct.serving.keys import Keys
from anytime_lct.serving.limits import Limits
from anytime_lct.serving.member import Member
from anytime_lct.serving.metrics import Metrics
from anytime_lct.serving.sockets import bind
from anytime_lct.serving.workers import Workers

X = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
GET = b"GET /v2 HTTP/1.1\r\nHost: x\r\n"
LAST = GET + b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    write_image_bundle(folder / "tiny")
    return folder


class Client:
    """A client with TLS in memory, which can stop at any byte; used in a thread."""

    def __init__(self, port, trusted, version=None, **options):
        self.line = socket.socket()
        for name, value in options.items():
            self.line.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        self.line.settimeout(10)
        self.line.connect(("127.0.0.1", port))
        context = ssl.create_default_context(cafile=trusted)
        if version is not None:
            context.maximum_version = version
        self.received, self.sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.received, self.sent, server_hostname="127.0.0.1")
        self.do(self.tls.do_handshake)

    def do(self, step, *arguments):
        while True:
            try:
                return step(*arguments)
            except ssl.SSLWantReadError:
                self.flush()
                part = self.line.recv(65536)
                self.received.write(part) if part else self.received.write_eof()
            finally:
                self.flush()

    def flush(self):
        self.line.sendall(self.sent.read())

    def end(self):
        """Close the direction to the server alone."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.flush()

    def read(self):
        """Return what comes until the server ends or hangs up."""
        content = b""
        with self.line, suppress(ssl.SSLEOFError, ssl.SSLZeroReturnError):
            while part := self.do(self.tls.read, 65536):
                content += part
        return content

    def talk(self, *pieces):
        for piece in pieces:
            self.tls.write(piece)
            self.flush()
        return self.read()


@asynccontextmanager
async def serving(bundles, files, **limits):
    with FakeEngine() as engine:
        service = service_of(bundles, engine, Limits(**limits))
        socket_ = bind("127.0.0.1", 0)
        listener = HTTPListener(service, socket_, Access(certificate=Certificate(*files)))
        running, started = None, asyncio.Event()
        try:
            running = asyncio.create_task(listener.run(started.set))
            await started.wait()
            listener.port = socket_.getsockname()[1]
            yield listener
        finally:
            listener.stop(now=True)
            await running
            await service.close()


def play(test, bundles, files, loop=uvloop.new_event_loop, **limits):
    async def main():
        async with serving(bundles, files, **limits) as server:
            await test(server)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


def post(body, headers):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{lines}\r\n"
    return head.encode() + body


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_requests_are_answered_as_without_tls(bundles, files, loop, version):
    async def test(server):
        def talk(*pieces, ends=False):
            client = Client(server.port, files[0], version)
            if not ends:
                return client.talk(*pieces)
            client.tls.write(b"".join(pieces))
            client.end()
            return client.read()

        answers = await asyncio.to_thread(talk, GET + b"\r\n" + GET[:9], GET[9:] + b"\r\n", LAST)
        assert answers.count(b"HTTP/1.1 200 OK") == 3
        large = np.tile(X, (100, 1, 1, 1))  # more than a record of TLS
        one, many = [await asyncio.to_thread(talk, post(*binary(x))) for x in (X, large)]
        assert one.startswith(b"HTTP/1.1 200 OK") and many.startswith(b"HTTP/1.1 200 OK")
        # A client that ends its direction still gets its answers, and the server hangs up.
        answers = await asyncio.to_thread(talk, GET + b"\r\n", GET + b"\r\n", ends=True)
        assert answers.count(b"HTTP/1.1 200 OK") == 2
        assert not server._connections.open

    play(test, bundles, files, loop)


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_slow_clients_large_bodies_and_too_many_connections_end_as_without_tls(bundles, files, loop):
    async def test(server):
        talk = lambda *pieces: asyncio.to_thread(lambda: Client(server.port, files[0]).talk(*pieces))  # noqa: E731
        slow = await asyncio.gather(talk(b"GET /v2"), talk(b""), talk(post(b"{}", {})[:-1]))
        assert [int(answer.split()[1]) for answer in slow] == [408, 408, 408]
        assert b" 413 " in await talk(post(bytes(200_000), {}))
        lines = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(9)]  # that shake no hands
        await asyncio.sleep(0.05)
        assert len(server._connections.open) == 6
        begun = time.monotonic()
        with suppress(OSError):
            await asyncio.gather(*(reader.read() for reader, _ in lines), return_exceptions=True)
        assert time.monotonic() - begun < 5 and not server._connections.open
        for _, writer in lines:
            writer.close()
        assert b"200 OK" in await talk(LAST)

    play(test, bundles, files, loop, header_seconds=0.2, read_seconds=0.3, connections=6, body=100_000)


def test_a_client_that_does_not_take_its_answers_is_cut_off(bundles, files):
    async def test(server):
        client = await asyncio.to_thread(lambda: Client(server.port, files[0], SO_RCVBUF=4096))
        client.line.setblocking(False)
        with suppress(OSError):
            client.tls.write((b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n") * 1000)
            client.flush()
        while server._connections.open:
            await asyncio.sleep(0.02)
        client.line.close()

    play(test, bundles, files, read_seconds=0.2)


@pytest.mark.parametrize(
    ("sent", "words"),
    [(GET + b"\r\n", b"ask for https:// instead"), (b"nonsense\r\n\r\n", b""), (b"\x16\x03\x01" + bytes(300), b"")],
)
def test_what_is_no_tls_is_refused_at_once(bundles, files, sent, words):
    async def test(server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        answer = b""
        with suppress(ConnectionResetError):
            answer = await asyncio.wait_for(reader.read(), 5)
        assert words in answer and answer.startswith(b"HTTP/1.1 400" if words else b"\x15" if answer else b"")
        writer.close()
        while server._connections.open:
            await asyncio.sleep(0.01)

    play(test, bundles, files)


def test_an_end_of_the_server_waits_for_no_idle_client(bundles, files):
    async def test(server):
        client = await asyncio.to_thread(lambda: Client(server.port, files[0]))
        client.tls.write(GET + b"\r\n")
        await asyncio.to_thread(client.flush)
        await asyncio.sleep(0.05)
        server.stop(now=False)
        begun = time.monotonic()
        while server._connections.open:
            await asyncio.sleep(0.01)
        assert time.monotonic() - begun < 5
        assert b"200 OK" in await asyncio.to_thread(client.read)

    play(test, bundles, files)


def test_files_that_cannot_be_served_are_said_in_one_sentence(tmp_path, files):
    cert, key = files
    other, locked = write_certificate(tmp_path, "other"), write_certificate(tmp_path, "locked", password=b"x")
    late, text = write_certificate(tmp_path, "late", days=-1), tmp_path / "text"
    text.write_text("no PEM")
    for pair, words in (
        ((cert, other[1]), "the key of the certificate"), (late, "which has expired; renew it"),
        (locked, "without a password"), ((tmp_path / "none", key), "--tls-cert to be a file of PEM"),
        ((cert, tmp_path / "none"), "--tls-key to be a file of PEM"), ((key, cert), "which file is which"),
        ((text, key), "which file is which"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            Certificate(*pair).read()


def test_files_are_read_again_and_what_was_whole_stays(tmp_path, files):
    paths = [shutil.copy(file, tmp_path) for file in files]
    keys = tmp_path / "keys"
    keys.write_text("# clients\n\nthe-first-key-of-all\n")
    access = Access(certificate=Certificate(*map(type(tmp_path), paths)), keys=Keys(keys))
    access.certificate.read()
    first = access.certificate.context
    access.read_files()
    second = access.certificate.context
    assert second is not first
    shutil.copy(write_certificate(tmp_path, "late", days=-1)[0], paths[0])
    keys.write_text("the-second-key-of-all\n")
    with pytest.raises(InputError):
        access.read_files()
    assert access.certificate.context is second
    assert access.keys.allow(b"the-second-key-of-all") and not access.keys.allow(b"the-first-key-of-all")
    keys.write_text("short\n")
    with pytest.raises(InputError, match="line 1 in"):
        access.keys.read()
    assert pickle.loads(pickle.dumps(access.keys)).allow(b"the-second-key-of-all")
    assert b"of-all" not in pickle.dumps(access.keys)


def test_every_worker_reads_them_again(tmp_path):
    """The parent gets SIGHUP, and has all workers do so."""
    asked = []

    class Line:
        async def ask(self, *question):
            asked.append(question)
            raise WorkerLostError("This worker has just ended.")

    async def signalled():
        workers = Workers(None, None, 2)  # type: ignore[arg-type]
        workers._has_started, workers._lock = asyncio.Event(), asyncio.Lock()
        workers._has_started.set()
        future = asyncio.get_running_loop().create_future
        workers._workers = [SimpleNamespace(joined=future(), ended=future(), line=Line()) for _ in range(2)]
        for each in workers._workers:
            each.joined.set_result(None)
        await workers._read_again()

    async def told():
        keys = tmp_path / "keys"
        keys.write_text("the-first-key-of-all\n")
        access = Access(keys=Keys(keys))
        keys.write_text("the-second-key-of-all\n")
        ours, theirs = multiprocessing.Pipe()
        with ours, theirs:
            member = Member(ours, None, Metrics(), access)  # type: ignore[arg-type]
            await member._answer("files")
            member._beats.cancel()
        assert access.keys.allow(b"the-second-key-of-all")

    asyncio.run(signalled())
    assert [question[0] for question in asked] == ["files", "files", "prepare", "prepare"]
    asyncio.run(told())


def test_a_server_on_a_unix_socket_reads_a_new_certificate_on_sighup(bundles, files, tmp_path):
    cert, key = (shutil.copy(file, tmp_path) for file in files)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:  # by a server that was killed
        left.bind(str(path))

    def ask():
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(10)
            line.connect(str(path))
            context = ssl.create_default_context(cafile=cert)
            context.check_hostname = False
            with context.wrap_socket(line) as tls:
                tls.sendall(LAST)
                return json.loads(b"".join(iter(lambda: tls.recv(65536), b"")).partition(b"\r\n\r\n")[2])

    with Server(bundles, "--tls-cert", cert, "--tls-key", key, "--unix-socket", path) as server:
        assert server.address == f"unix:{path}" and ask()["name"] == "anytime-lct"
        for old, new in zip((cert, key), write_certificate(tmp_path, "new"), strict=True):
            shutil.copy(new, old)
        server.signal(signal.SIGHUP)
        while True:
            with suppress(ssl.SSLError):  # the old certificate is not trusted any more
                assert ask()["name"] == "anytime-lct"
                break
            time.sleep(0.02)
        assert server.stop() == 0
    assert not path.exists()
