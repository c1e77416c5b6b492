"""One process that serves: every protocol on its socket, until a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from anytime_lct.errors import BudgetError, InputError, LCTError
from anytime_lct.exits.budget import DEFAULT_ASK, Ask
from anytime_lct.serving.engine.engine import Engine
from anytime_lct.serving.engine.job import ServedBundle
from anytime_lct.serving.http.listener import BACKLOG, HTTPListener
from anytime_lct.serving.limits import DEFAULT_LIMITS, Limits
from anytime_lct.serving.metrics import Metrics
from anytime_lct.serving.repository import Repository
from anytime_lct.serving.service import Service

# How long a Python thread may make the others wait: a twentieth of the default, as answers take milliseconds.
SWITCH_SECONDS = 0.00025


class Listener(Protocol):
    """What a protocol provides: it runs until `stop` is called, and calls `started` when it answers."""

    async def run(self, started: Callable[[], None]) -> None: ...

    def stop(self, *, now: bool) -> None: ...


# A protocol is a folder beside this file and a line here.
PROTOCOLS: tuple[Callable[[Service, socket.socket, Callable[[], None]], Listener], ...] = (HTTPListener,)


@dataclass(frozen=True)
class Settings:
    """What a server serves. `threads` threads compute answers; `default` fills in what requests leave out."""

    bundle: Path
    threads: int = 1
    limits: Limits = DEFAULT_LIMITS
    default: Ask = DEFAULT_ASK


def listen(host: str, port: int) -> socket.socket:
    """Open the socket that clients connect to; port 0 takes a free port. Raises InputError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError, OverflowError) as error:
        raise InputError(
            f"Expected an address to listen at, got {host}:{port} ({getattr(error, 'strerror', None) or error}); "
            "choose another --host or --port."
        ) from None
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def address(listener: socket.socket) -> str:
    """Return the URL of a listening socket.

    >>> address(listen("127.0.0.1", 8000))  # doctest: +SKIP
    'http://127.0.0.1:8000'
    """
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    listener: socket.socket,
    settings: Settings,
    started: Callable[[], None],
    on_reload: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads the bundles. Raises BundleError before it starts.

    `started` is called when every protocol answers, `on_reload` when a client has reloaded bundles.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    repository = Repository(settings.bundle, ServedBundle)
    check_default(settings.default, {name: repository.find(name).bundle.manifest.served for name in repository.names()})
    service = Service(repository, Engine(settings.threads), Metrics(), settings.limits, settings.default)
    listeners = [make(service, listener, on_reload) for make in PROTOCOLS]
    waiting = list(listeners)

    def count_started() -> None:
        waiting.pop()
        if not waiting:
            started()

    async def run() -> None:
        async with signal_handlers(listeners, service):
            await asyncio.gather(*(each.run(count_started) for each in listeners))
        await service.close()

    freeze_loaded()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run())


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the function that makes the event loop: uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def freeze_loaded() -> None:
    """Exclude the loaded models and modules, which stay to the end, from garbage collection.

    Searching them would stop every thread for tens of milliseconds, about once a minute under load.
    """
    gc.collect()
    gc.freeze()


def check_default(default: Ask, served: dict[str, tuple[int, ...]]) -> None:
    """Raise BudgetError where a model lacks the fixed exit, and so would refuse every request."""
    for name, exits in served.items():
        if default.mode == "fixed" and default.budget.exit not in (None, *exits):
            served_exits = ", ".join(map(str, exits))
            raise BudgetError(
                f"Expected --fixed among the exits of '{name}', {served_exits}, got {default.budget.exit}; choose one "
                "of them."
            )


@asynccontextmanager
async def signal_handlers(listeners: Sequence[Listener], service: Service) -> AsyncIterator[None]:
    """Stop on SIGTERM and SIGINT, at once on the second; reload bundles on SIGHUP."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def stop() -> None:
        is_second, service.draining = service.draining, True
        for listener in listeners:
            listener.stop(now=is_second)

    def reload() -> None:
        tasks.add(task := loop.create_task(_reload(service)))
        task.add_done_callback(tasks.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


async def _reload(service: Service) -> None:
    try:
        await service.repository.reload()
    except LCTError as error:  # the bundles in service stay
        print(error, file=sys.stderr, flush=True)
