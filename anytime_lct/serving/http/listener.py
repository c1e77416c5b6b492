"""HTTP on a listening socket, until `stop`; the requests that have started are then finished."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from anytime_lct.serving.access import Access
from anytime_lct.serving.http.app import create_app
from anytime_lct.serving.http.connection import Connection, Connections
from anytime_lct.serving.http.guard import guarded
from anytime_lct.serving.service import DRAIN_SECONDS, Service

BACKLOG = 2048
POLL_SECONDS = 0.02  # while the last connections close


class HTTPListener:
    """Serves HTTP on a socket, to clients that `access` allows."""

    def __init__(self, service: Service, listener: socket.socket, access: Access) -> None:
        self._app = guarded(create_app(service, access=access), access)
        self._service, self._listener = service, listener
        self._connections = Connections()
        self._stopped = asyncio.Event()
        self._is_cut = False

    async def run(self, started: Callable[[], None]) -> None:
        """Serve until `stop`; `started` is called when requests are answered."""
        server = await asyncio.get_running_loop().create_server(self._connect, sock=self._listener, backlog=BACKLOG)
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

    def _connect(self) -> Connection:
        return Connection(self._app, self._service.limits, self._service.allowance, self._connections)
