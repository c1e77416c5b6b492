"""HTTP on a listening socket: uvicorn runs the app until `stop`, and finishes the requests that it has started."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from anytime_lct.serving.http.app import create_app
from anytime_lct.serving.http.connection import bounded
from anytime_lct.serving.service import DRAIN_SECONDS, Service

KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048


class HTTPListener:
    """Serves HTTP on a socket; `on_reload` is called when a client has reloaded bundles."""

    def __init__(self, service: Service, listener: socket.socket, on_reload: Callable[[], None]) -> None:
        self._listener = listener
        config = uvicorn.Config(
            create_app(service, on_reload=on_reload),
            http=bounded(service.limits),
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=round(DRAIN_SECONDS),
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            backlog=BACKLOG,
        )
        self._server = _SignalFreeServer(config)

    async def run(self, started: Callable[[], None]) -> None:
        """Serve until `stop`; `started` is called when requests are answered."""
        watch = asyncio.create_task(self._when_started(started))
        await self._server.serve([self._listener])
        watch.cancel()

    def stop(self, *, now: bool) -> None:
        """Accept no more connections, and end when all answers are written, or at once if `now`."""
        logging.getLogger("uvicorn.error").disabled = now  # cutting requests short is no error here
        self._server.force_exit = now
        self._server.should_exit = True

    async def _when_started(self, started: Callable[[], None]) -> None:
        while not self._server.started:
            await asyncio.sleep(0.01)
        started()


class _SignalFreeServer(uvicorn.Server):
    """uvicorn's server without its signal handlers, which would raise the signal again at the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the caller."""
        yield
