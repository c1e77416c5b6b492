"""What stands between the socket and the app: who may ask, cross-origin requests, request ids and the access log.

request -> id, log -> Host, Origin -> CORS -> app
"""

from __future__ import annotations

import random
import re
import time
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from anytime_lct.serving.access import Access
from anytime_lct.serving.http.body import Message, Receive, Scope
from anytime_lct.serving.http.infer import Send, send_refusal
from anytime_lct.serving.logs import ACCESS
from anytime_lct.serving.request import Refusal

REQUEST_ID = b"x-request-id"
PLAIN_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
HEADERS = ("content-type", "content-encoding", "inference-header-content-length", "x-request-id")


def guarded(app: Any, access: Access) -> Any:
    """Return the ASGI app behind all of these."""
    if access.origins:
        app = CORSMiddleware(
            app,
            allow_origins=access.origins,
            allow_methods=("GET", "POST"),
            allow_headers=HEADERS,
            expose_headers=(*HEADERS, "retry-after"),
        )
    return Guard(app, access)


class Guard:
    """Gives each request an id, refuses those that name a host of others or come from other sites, and logs them.

    The id is the request's X-Request-Id or a new one.
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
        status, size = 0, 0

        async def send_on(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID, number)]
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
                _log(scope, status, size, time.monotonic() - start, number.decode())

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


def _log(scope: Scope, status: int, size: int, seconds: float, number: str) -> None:
    client, path = (scope.get("client") or ("-",))[0], scope["path"].encode("unicode_escape").decode()[:500]
    text = '%s "%s %s" %d %d bytes %.1f ms id=%s'
    ACCESS.info(text, client, scope["method"], path, status, size, 1000 * seconds, number)
