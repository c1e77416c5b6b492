"""What stands between the socket and the app: who may ask, cross-origin requests, request ids and the access log.

request -> id, log -> Host, Origin -> CORS -> root path, key -> app
"""

from __future__ import annotations

import random
import re
import time
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from anytime_lct.serving.access import KEYLESS, Access
from anytime_lct.serving.http.body import Message, Receive, Scope
from anytime_lct.serving.http.infer import Send, send_refusal
from anytime_lct.serving.keys import Keys
from anytime_lct.serving.logs import ACCESS
from anytime_lct.serving.request import Refusal

REQUEST_ID = b"x-request-id"
PLAIN_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
TRACE = b"traceparent"  # of W3C's Trace Context: version, trace, span, flags
PLAIN_TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
HEADERS = ("content-type", "content-encoding", "inference-header-content-length", "x-request-id", "traceparent")
KEY_HEADERS = ("authorization", "x-api-key")
PAGE = "/"  # it holds nothing of the models, and asks for the key


def guarded(app: Any, access: Access) -> Any:
    """Return the ASGI app behind all of these."""
    if access.keys is not None:
        app = KeyCheck(app, access.keys, [path for name in access.keyless for path in KEYLESS[name]])
    if access.root_path:
        app = Below(app, access.root_path)
    if access.origins:
        app = CORSMiddleware(
            app,
            allow_origins=access.origins,
            allow_methods=("GET", "POST"),
            allow_headers=(*HEADERS, *KEY_HEADERS),
            expose_headers=(*HEADERS, "retry-after"),
        )
    return Guard(app, access)


class Guard:
    """Gives each request an id, refuses those that name a host of others or come from other sites, and logs them.

    The id is the request's X-Request-Id or a new one; a traceparent is repeated in the response and the log.
    """

    def __init__(self, app: Any, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with status 403; the response has the request's id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        headers = dict(scope["headers"])
        own = headers.get(REQUEST_ID, b"")
        number = own if PLAIN_ID.fullmatch(own) else b"%016x" % random.getrandbits(64)
        trace = headers.get(TRACE)
        if trace is not None and not PLAIN_TRACE.fullmatch(trace):
            trace = None
        status, size = 0, 0

        async def send_on(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID, number)]
                if trace is not None:
                    message["headers"].append((TRACE, trace))
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            if (error := self._error(headers)) is None:
                await self._app(scope, receive, send_on)
            else:
                await send_refusal(send_on, error)
        finally:
            if self._access.log:
                ids = number.decode() if trace is None else f"{number.decode()} traceparent={trace.decode()}"
                _log(scope, status, size, time.monotonic() - start, ids)

    def _error(self, headers: dict[bytes, bytes]) -> Refusal | None:
        host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin")
        if not self._access.allows_host(host):
            return Refusal(
                f"Expected a Host that this server knows, got '{host[:200]}'; start it with --allow-host and that "
                "name.",
                "forbidden",
            )
        if origin is not None and not self._access.allows_origin(origin.decode("latin-1"), host):
            return Refusal(
                f"Expected a page of this server, got one of '{origin[:200].decode('latin-1')}'; start the server with "
                "--cors-origin and that site to let its pages ask.",
                "forbidden",
            )
        return None


class KeyCheck:
    """Passes on the requests that have one of `keys`, or ask for one of `keyless` paths; the others get status 401."""

    def __init__(self, app: Any, keys: Keys, keyless: list[str]) -> None:
        self._app, self._keys, self._keyless = app, keys, frozenset((PAGE, *keyless))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with status 401."""
        if scope["type"] == "http" and scope["path"] not in self._keyless:
            headers = dict(scope["headers"])
            kind, _, words = headers.get(b"authorization", b"").partition(b" ")
            offered = [headers.get(b"x-api-key"), words.strip() if kind.lower() == b"bearer" else None]
            if not any([self._keys.allow(key) for key in offered if key is not None]):
                await send_refusal(send, _no_key(any(key is not None for key in offered)))
                return
        await self._app(scope, receive, send)


class Below:
    """Takes the path away below which a proxy shows the server, whether or not the proxy has done so."""

    def __init__(self, app: Any, root_path: str) -> None:
        self._app, self._root = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; the root path itself leads to the page, whose links are relative."""
        if scope["type"] == "http" and scope["path"] == self._root:
            location = [(b"location", f"{self._root}/".encode()), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 308, "headers": location})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["type"] == "http" and scope["path"].startswith(f"{self._root}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._root)}
        await self._app(scope, receive, send)


def _no_key(is_wrong: bool) -> Refusal:
    return Refusal(
        "Expected one of the server's keys, as 'Authorization: Bearer KEY' or 'X-API-Key: KEY', got "
        f"{'another' if is_wrong else 'none'}; ask for one where the server is run.",
        "unidentified",
    )


def _log(scope: Scope, status: int, size: int, seconds: float, ids: str) -> None:
    client, path = (scope.get("client") or ("-",))[0], scope["path"].encode("unicode_escape").decode()[:500]
    text = '%s "%s %s" %d %d bytes %.1f ms id=%s'
    ACCESS.info(text, client, scope["method"], path, status, size, 1000 * seconds, ids)
