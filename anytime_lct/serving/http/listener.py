"""HTTP on a listening socket, until `stop`; the requests that have started are then finished."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from anytime_lct.serving.access import Access
from anytime_lct.serving.http.app import create_app
from anytime_lct.serving.http.connection import Connection, Connections
from anytime_lct.serving.http.guard import guarded
from anytime_lct.serving.http.tls import Tunnel
from anytime_lct.serving.service import DRAIN_SECONDS, Service
from anytime_lct.serving.sockets import UNIX

BACKLOG = 2048
POLL_SECONDS = 0.02  # while the last connections close


class HTTPListener:
    """Serves HTTP on a socket, under TLS where there is a certificate, to clients that `access` allows."""

    def __init__(self, service: Service, listener: socket.socket, access: Access) -> None:
        self._app = guarded(create_app(service, access=access), access)
        self._service, self._listener, self._certificate = service, listener, access.certificate
        self._connections = Connections()
        self._stopped = asyncio.Event()
        self._is_cut = False

    async def run(self, started: Callable[[], None]) -> None:
        """Serve until `stop`; `started` is called when requests are answered."""
        server = await self._create_server()
        started()
        await self._stopped.wait()
        server.close()
        self._listener.close()
        for connection in tuple(self._connections.open):
            connection.drain()
        end = time.monotonic() + DRAIN_SECONDS
        while self._connections.open and not self._is_cut and time.monotonic() < end:
            await asyncio.sleep(POLL_SECONDS)
        for connection in tuple(self._connections.open):
            connection.abort()

    def stop(self, *, now: bool) -> None:
        """Accept no more connections, and end when all answers are written, or at once if `now`."""
        self._is_cut = now
        self._stopped.set()

    async def _create_server(self) -> asyncio.Server:
        loop, connect = asyncio.get_running_loop(), self._connect if self._certificate is None else self._connect_tls
        if self._listener.family != UNIX:
            return await loop.create_server(connect, sock=self._listener, backlog=BACKLOG)
        # Other processes may share the socket: its file stays until the one that bound it ends.
        options: Any = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        return await loop.create_unix_server(connect, sock=self._listener, backlog=BACKLOG, **options)

    def _connect_tls(self) -> Tunnel:
        assert self._certificate is not None
        return Tunnel(self._certificate.context, self._connect, self._service.limits, self._connections)

    def _connect(self) -> Connection:
        return Connection(self._app, self._service.limits, self._service.allowance, self._connections)
