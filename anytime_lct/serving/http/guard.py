"""What stands between the socket and the app: who may ask, cross-origin requests, request ids and the access log.

request -> id, log -> Host, Origin -> CORS -> app
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from anytime_lct.serving.access import Access
from anytime_lct.serving.http.body import Message, Receive
from anytime_lct.serving.http.infer import Scope, Send, refusal
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
    return Identified(Guard(app, access), log=access.log)


class Guard:
    """Refuses requests that name a host of others, and those of pages of other sites, as `access` says."""

    def __init__(self, app: Any, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with status 403."""
        error = None if scope["type"] != "http" else self._error(dict(scope["headers"]))
        if error is None:
            await self._app(scope, receive, send)
            return
        status, headers, body = refusal(error)
        headers["content-length"] = str(len(body))
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

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


class Identified:
    """Gives each request an id, its own X-Request-Id or a new one, and logs how it ends if `log`."""

    def __init__(self, app: Any, *, log: bool) -> None:
        self._app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its id in the response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        own = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
        number = own if PLAIN_ID.fullmatch(own) else os.urandom(8).hex().encode()
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
            await self._app(scope, receive, send_on)
        finally:
            if self._log:
                client = (scope.get("client") or ("-",))[0]
                path = scope["path"].encode("unicode_escape").decode()[:500]
                ms = 1000 * (time.monotonic() - start)
                ACCESS.info(
                    '%s "%s %s" %d %d bytes %.1f ms id=%s',
                    client,
                    scope["method"],
                    path,
                    status,
                    size,
                    ms,
                    number.decode(),
                )
