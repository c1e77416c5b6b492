"""Requests on sockets, with a model that waits until it may answer: every connection has an end."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager

import numpy as np
import pytest
from asgi import binary
from bundles import write_image_bundle
from fake_engine import FakeEngine, open_repository

from anytime_lct.exits.budget import DEFAULT_ASK
from anytime_lct.serving.http import connection as connections
from anytime_lct.serving.http.app import create_app
from anytime_lct.serving.http.connection import Connection, Connections
from anytime_lct.serving.limits import Limits
from anytime_lct.serving.metrics import Metrics
from anytime_lct.serving.service import Service

X = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
INFER = "/v2/models/tiny/infer"
GET = b"GET /v2 HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def engine():
    with FakeEngine() as engine:
        yield engine


@pytest.fixture
def folder(tmp_path):
    write_image_bundle(tmp_path / "tiny")
    return tmp_path


class Server:
    """Connections of an app on a free port."""

    def __init__(self, service):
        self.service, self.connections, self.writers = service, Connections(), []
        self.app = create_app(service)

    def connection(self):
        return Connection(self.app, self.service.limits, self.service.allowance, self.connections)

    async def connect(self, **options):
        line = socket.socket()
        for name, value in options.items():
            line.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        line.setblocking(False)
        await asyncio.get_running_loop().sock_connect(line, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=line)
        self.writers.append(writer)
        return reader, writer

    async def talk(self, *pieces, half_close=False):
        """Send pieces, each when the one before has been read; returns all that comes until the server hangs up."""
        reader, writer = await self.connect()
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
        if half_close:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 20)


@asynccontextmanager
async def serving(folder, engine, **limits):
    server = Server(Service(open_repository(folder), engine, Metrics(), Limits(**limits), DEFAULT_ASK))
    listener = await asyncio.get_running_loop().create_server(server.connection, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for each in (*server.connections.open, *(writer.transport for writer in server.writers)):
            each.abort()
        await until(lambda: not server.connections.open)
        await asyncio.sleep(0)


def post(body, headers=(), path=INFER):
    lines = "".join(f"{name}: {value}\r\n" for name, value in dict(headers).items())
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode(), body


def infer(**more):
    body, headers = binary(X)
    return post(body, headers | more)


def statuses(received):
    return [int(answer[:3]) for answer in received.split(b"HTTP/1.1 ")[1:]]


def error(received):
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head and b"connection: close" in head
    assert list(json.loads(body)) == ["error"]
    return json.loads(body)["error"]


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


H2C = {"Connection": "Upgrade, HTTP2-Settings, close", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQC"}


def test_an_offer_to_upgrade_is_answered_as_if_there_was_none(folder, engine):
    inner = b"".join(post(b"", path="/v2/repository/index"))

    async def go():
        async with serving(folder, engine) as server:
            head, body = infer(**H2C)
            assert statuses(await server.talk(head + body)) == statuses(await server.talk(head, body)) == [200]
            # A body that looks like a request stays a body.
            assert statuses(await server.talk(*post(inner, H2C))) == [400]

    asyncio.run(go())


def test_heads_that_wait_count_among_the_bytes_of_all_requests(folder, engine):
    head, body = infer(Connection="close")
    part = head[:-4] + b"\r\nX: " + b"x" * 3000

    async def go():
        async with serving(folder, engine, in_flight=10_000) as server:
            allowance, writers = server.service.allowance, []
            for number in range(1, 4):
                writers.append((await server.connect())[1])
                writers[-1].write(part)
                await until(lambda number=number: allowance.used == number * len(part))
            received = await server.talk(part)
            assert statuses(received) == [503] and b"retry-after: 1" in received and "try again" in error(received)
            assert allowance.used == 3 * len(part)
            writers[0].write(b"\r\n\r\n" + body)
            await until(lambda: allowance.used == 2 * len(part))
            for writer in writers[1:]:
                writer.close()
            await until(lambda: allowance.used == 0)
            assert statuses(await server.talk(head + body)) == [200]

    asyncio.run(go())


def test_what_the_app_has_not_read_counts_too(folder, engine):
    (head, body), go_on = post(b"x" * 5000, {"X": "x" * 2000}), asyncio.Event()

    async def go():
        async with serving(folder, engine, in_flight=20_000) as server:
            used = server.service.allowance

            async def app(scope, receive, send):
                await go_on.wait()
                await create_app(server.service)(scope, receive, send)

            server.app = app
            first, second = [asyncio.create_task(server.talk(head, body, half_close=True)) for _ in range(2)]
            await until(lambda: used.used == 2 * (len(head) - 4 + len(body)))
            third = asyncio.create_task(server.talk(head, body))
            await asyncio.sleep(0.1)
            go_on.set()
            assert "try again later" in error(await third)
            assert statuses(await first) == statuses(await second) == [400]  # the body is no request
            await until(lambda: used.used == 0)

    asyncio.run(go())


def test_malformed_chunks_are_refused_in_json_and_the_connection_is_closed(folder, engine):
    start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

    async def go():
        async with serving(folder, engine) as server:
            for rest in (b"x\r\n", b"1\r\n{}\r\n", b"1\r\n{\r\n0\r\nno field\r\n\r\n"):
                assert error(await server.talk(start, rest + GET + b"\r\n"))
            trailers = b"1\r\n{\r\n0\r\n" + b"a: b\r\n" * 20_000
            assert "bytes of headers or trailers" in error(await server.talk(start, trailers))
            assert error(await server.talk(GET + b"Host: y\r\n\r\n"))
        counts = server.service.metrics.counters("tiny", "1", (1, 2, 3)).outcomes
        assert counts["refused"] == 4 and server.service.allowance.used == 0

    asyncio.run(go())


def test_many_small_chunks_leave_turns_to_others(folder, engine):
    head, body = infer()
    chunks = b"".join(b"1\r\n%b\r\n" % body[k : k + 1] for k in range(len(body)))
    head = head.replace(b"Content-Length: %d\r\n" % len(body), b"", 1)
    sent = head[:-2] + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    async def go():
        async with serving(folder, engine, header_bytes=1000) as server:
            assert len(body) > 3 * connections.EVENTS / 4
            assert statuses(await server.talk(sent * 20, half_close=True)) == [200] * 20

    asyncio.run(go())


def test_a_client_that_sends_no_more_gets_all_its_answers(folder, engine):
    async def go():
        async with serving(folder, engine) as server:
            one = b"".join(infer())
            assert statuses(await server.talk(one * 3, half_close=True)) == [200] * 3
            assert statuses(await server.talk(one + one[:-1], half_close=True)) == [200]
            assert await server.talk(b"", half_close=True) == await server.talk(GET, half_close=True) == b""
            await until(lambda: not server.connections.open)

    asyncio.run(go())


def test_answers_have_a_date_and_keep_old_clients(folder, engine):
    async def go():
        async with serving(folder, engine) as server:
            old = b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
            received = await server.talk(old * 2 + old.replace(b"keep-alive", b"x"))
            assert statuses(received) == [200] * 3 and received.count(b"\r\ndate: ") == 3
            assert received.count(b"connection: keep-alive") == 2 and received.count(b"connection: close") == 1
            head = await server.talk(b"HEAD /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert head.endswith(b"\r\n\r\n") and b"content-length: " in head

    asyncio.run(go())


def test_every_state_of_a_connection_has_an_end(folder, engine, monkeypatch):
    monkeypatch.setattr(connections, "KEEP_ALIVE_SECONDS", 0.1)
    monkeypatch.setattr(connections, "DISCARD_SECONDS", 0.1)

    async def go():
        async with serving(folder, engine, header_seconds=0.2, read_seconds=0.3) as server:
            received = await asyncio.gather(
                server.talk(),
                server.talk(GET),
                server.talk(GET + b"\r\n"),
                server.talk(GET + b"\r\n", b"\r\n"),
                server.talk(GET + b"\r\n", GET),
                server.talk(GET + b"Content-Length: 10\r\n\r\n", b"a"),
                server.talk(*post(b"a" * 10, path="/v2/models/no/infer")[:1], b"a"),
                server.talk(infer()[0], b"a"),
            )
            assert list(map(statuses, received)) == [
                [408], [408], [200], [200], [200, 408], [200], [404], [408],
            ]  # fmt: skip
            await until(lambda: not server.connections.open)

    asyncio.run(go())


def test_an_answer_that_is_not_taken_ends_the_connection(folder, engine):
    async def go():
        async with serving(folder, engine, read_seconds=0.3) as server:
            _, writer = await server.connect(SO_RCVBUF=4096)
            writer.transport.pause_reading()
            get = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
            writer.write(get * 2000)
            await until(lambda: server.connections.open)
            await until(lambda: not server.connections.open)

    asyncio.run(go())


def test_requests_behind_one_that_is_answered_wait_in_the_clients_socket(folder, engine):
    async def go():
        async with serving(folder, engine, header_bytes=4096) as server:
            engine.gate.clear()
            reader, writer = await server.connect()
            writer.write(b"".join(infer()) + (GET + b"\r\n") * 100_000)
            await until(lambda: engine.asked)
            await asyncio.sleep(0.1)
            [line] = server.connections.open
            assert line._parser.size < 1 << 19
            engine.gate.set()
            await reader.readexactly(1 << 20)

    asyncio.run(go())


def test_bodies_come_with_a_continue_where_it_is_expected(folder, engine):
    async def go():
        async with serving(folder, engine, body=1000) as server:
            head, body = infer(Expect="100-continue", Connection="close")
            assert statuses(await server.talk(head, body)) == [100, 200]
            head, _ = post(bytes(2000), {"Expect": "100-continue"})
            assert statuses(await server.talk(head)) == [413]

    asyncio.run(go())
