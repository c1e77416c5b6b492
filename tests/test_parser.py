"""Requests are taken apart strictly and within bounds, in any pieces, as h11 does."""

from __future__ import annotations

import h11
import pytest

from anytime_lct.serving.http.parser import MAX_CHUNKS, MAX_FIELDS, Head, Malformed, RequestParser

GET = b"GET /v2 HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def take_apart(*pieces, header_bytes=1000):
    """The heads of all requests in these bytes, each with its body, and what is left."""
    parser, requests, body = RequestParser(header_bytes), [], b""
    for piece in pieces:
        parser.feed(piece)
        while (event := parser.next_event()) is not None:
            if isinstance(event, Head):
                requests.append([event, None])
                body = b""
            elif event == "end":
                requests[-1][1] = body
            else:
                body += event
    return requests, parser.size


def by_h11(raw):
    """The same by h11: method, target, headers and body of each request."""
    line, requests = h11.Connection(h11.SERVER), []
    line.receive_data(raw)
    while (event := line.next_event()) is not h11.NEED_DATA:
        if isinstance(event, h11.Request):
            requests.append([event.method.decode(), event.target, list(event.headers), b""])
        elif isinstance(event, h11.Data):
            requests[-1][3] += event.data
        elif event is h11.PAUSED:
            line.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            line.send(h11.EndOfMessage())
            line.start_next_cycle()
    return requests


GOOD = [
    GET + b"\r\n",
    b"PUT /a%20b?c=/d HTTP/1.1\r\nhOst:\tx:80 \r\nX-Empty:\r\nx: \xe9\r\nContent-Length: 3\r\n\r\nabc",
    CHUNKED + b"3;a=b\r\nabc\r\n00A\r\n0123456789\r\n0\r\nx: y\r\n\r\n",
    CHUNKED + b"0\r\n\r\n",
    POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nGET ",
]


@pytest.mark.parametrize("raw", [*GOOD, b"".join(GOOD)], ids=range(len(GOOD) + 1))
def test_requests_are_what_h11_reads_in_any_pieces(raw):
    expected = by_h11(raw)
    for size in (1, 2, 3, 7, len(raw)):
        requests, left = take_apart(*(raw[k : k + size] for k in range(0, len(raw), size)))
        assert [[head.method, head.target, head.headers, body] for head, body in requests] == expected
        assert left == 0


def test_empty_lines_before_a_request_are_skipped():
    requests, left = take_apart(b"\r\n" + GET + b"\r\n\r\n\r\n" + GET + b"\r\n")
    assert len(requests) == 2 and left == 0


def test_the_request_line_may_name_the_host_too():
    [(head, _)], _ = take_apart(b"GET http://X:80/v2?a HTTP/1.1\r\nHost: x:80\r\n\r\n")
    assert head.target == b"/v2?a"


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"x, CLOSE", False),
        (b"1.0", None, False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_connections_are_kept_as_the_client_asks(version, connection, kept):
    fields = b"" if connection is None else b"Connection: " + connection + b"\r\n"
    [(head, _)], _ = take_apart(b"GET / HTTP/" + version + b"\r\nHost: x\r\n" + fields + b"\r\n")
    assert head.keep_alive is kept


BAD = {
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: x\r\n\r\n",
    "hosts that differ": b"GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "hosts in one": b"GET / HTTP/1.1\r\nHost: x, y\r\n\r\n",
    "folded line": GET + b"a: b\r\n c\r\n\r\n",
    "folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "no colon": GET + b"nonsense\r\n\r\n",
    "no name": GET + b": x\r\n\r\n",
    "NUL": GET + b"a: \0\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: x\n\n\r\n\r\n",
    "LF in a line": GET + b"a: b\nc: d\r\n\r\n",
    "bare CR": GET + b"a: b\rc\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "lengths in one": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "no length": POST + b"Content-Length:\r\n\r\n",
    "long length": POST + b"Content-Length: " + b"0" * 20 + b"\r\n\r\n",
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "size of a chunk": CHUNKED + b"x\r\n",
    "signed size": CHUNKED + b"-1\r\n",
    "prefixed size": CHUNKED + b"0x1\r\n",
    "space behind the size": CHUNKED + b"1 \r\n",
    "size in 16 digits": CHUNKED + b"f" * 16 + b"\r\n",
    "LF behind the size": CHUNKED + b"1\na\r\n",
    "long chunk": CHUNKED + b"1\r\nab\r\n",
    "trailer that is no field": CHUNKED + b"0\r\nnonsense\r\n\r\n",
    "folded trailer": CHUNKED + b"0\r\na: b\r\n c\r\n\r\n",
    "method": b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
    "version": b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
    "spaces": b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: x\r\n\r\n",
    "fragment": b"GET /#a HTTP/1.1\r\nHost: x\r\n\r\n",
    "tunnel": b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
    "TLS": b"\x16\x03\x01",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD)
def test_what_two_programs_may_read_in_two_ways_is_refused(raw):
    for size in (1, len(raw)):
        with pytest.raises(Malformed) as caught:
            take_apart(*(raw[k : k + size] for k in range(0, len(raw), size)))
        assert caught.value.status == 400 and str(caught.value).endswith(".")


ENDLESS = {
    "empty lines": (b"", b"\r\n"),
    "path": (b"GET /", b"a" * 10),
    "field": (GET + b"a: ", b"a" * 10),
    "fields": (GET, b"a: b\r\n"),
    "size of a chunk": (CHUNKED, b"0" * 10),
    "extension": (CHUNKED + b"1;", b"a" * 10),
    "extensions": (CHUNKED, b"1;aaaaa\r\na\r\n"),
    "trailer": (CHUNKED + b"0\r\na: ", b"a" * 10),
    "trailers": (CHUNKED + b"0\r\n", b"a: b\r\n"),
}


@pytest.mark.parametrize(("start", "more"), ENDLESS.values(), ids=ENDLESS)
def test_all_that_is_no_body_is_bounded(start, more):
    parser, sent = RequestParser(1000), 0
    parser.feed(start)
    with pytest.raises(Malformed) as caught:
        while sent < 10_000:
            while parser.next_event() is not None:
                pass
            parser.feed(more)
            sent += len(more)
            assert parser.size < 1100
    assert caught.value.status == 431
    assert sent < 3200


def test_the_numbers_of_fields_and_chunks_are_bounded():
    take_apart(GET + b"a: b\r\n" * (MAX_FIELDS - 1) + b"\r\n")
    with pytest.raises(Malformed, match=f"at most {MAX_FIELDS} headers"):
        take_apart(GET + b"a: b\r\n" * MAX_FIELDS + b"\r\n")
    with pytest.raises(Malformed, match=f"at most {MAX_CHUNKS} chunks"):
        take_apart(CHUNKED, b"1\r\na\r\n" * (MAX_CHUNKS + 1))
