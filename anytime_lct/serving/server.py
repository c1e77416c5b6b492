"""One process that serves: every protocol on its socket, until a signal has it finish what it began."""

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
from anytime_lct.exits.budget import FREELY, Ask
from anytime_lct.serving.engine.engine import Engine
from anytime_lct.serving.engine.job import Served
from anytime_lct.serving.http.listener import BACKLOG, HTTPListener
from anytime_lct.serving.limits import USUAL, Limits
from anytime_lct.serving.metrics import Metrics
from anytime_lct.serving.repository import Repository
from anytime_lct.serving.service import Service

# How long a thread of Python may keep the others waiting: a twentieth of what is usual, as answers have milliseconds.
SWITCH_SECONDS = 0.00025


class Listener(Protocol):
    """What a protocol brings: it runs until it is told to stop, and calls `started` when it answers."""

    async def run(self, started: Callable[[], None]) -> None: ...

    def stop(self, *, now: bool) -> None: ...


# A protocol is a folder beside this file and a line here.
PROTOCOLS: tuple[Callable[[Service, socket.socket, Callable[[], None]], Listener], ...] = (HTTPListener,)


@dataclass(frozen=True)
class Settings:
    """What a server serves. `threads` compute answers in one process; `default` is what requests ask for."""

    bundle: Path
    threads: int = 1
    limits: Limits = USUAL
    default: Ask = FREELY


def listen(host: str, port: int) -> socket.socket:
    """Open the socket that clients find; port 0 takes a free one. Raises InputError."""
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
    """Write where a socket is found.

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
    """Serve until SIGTERM or SIGINT; SIGHUP has the bundles read again. Raises BundleError before it begins.

    `started` is called when every protocol answers, `on_reload` when a client had bundles read again.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    repository = Repository(settings.bundle, Served)
    check_default(settings.default, {name: repository.find(name).served.manifest.served for name in repository.names()})
    service = Service(repository, Engine(settings.threads), Metrics(), settings.limits, settings.default)
    listeners = [make(service, listener, on_reload) for make in PROTOCOLS]
    waiting = list(listeners)

    def one_started() -> None:
        waiting.pop()
        if not waiting:
            started()

    async def run() -> None:
        async with signals(listeners, service):
            await asyncio.gather(*(each.run(one_started) for each in listeners))
        await service.close()

    keep_loaded()
    with asyncio.Runner(loop_factory=new_loop()) as runner:
        runner.run(run())


def new_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop: uvloop's, where the system has it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def keep_loaded() -> None:
    """Have the garbage collector leave alone what is loaded by now: models and modules, which stay to the end.

    To search them stops every thread for tens of milliseconds, which would come once a minute under load.
    """
    gc.collect()
    gc.freeze()


def check_default(default: Ask, served: dict[str, tuple[int, ...]]) -> None:
    """Raise BudgetError where every request would be refused, as a model lacks the fixed exit."""
    for name, exits in served.items():
        if default.mode == "fixed" and default.budget.exit not in (None, *exits):
            known = ", ".join(map(str, exits))
            raise BudgetError(
                f"Expected --fixed among the exits of '{name}', {known}, got {default.budget.exit}; name another."
            )


@asynccontextmanager
async def signals(listeners: Sequence[Listener], service: Service) -> AsyncIterator[None]:
    """Stop on SIGTERM and SIGINT, at once on the second; read bundles again on SIGHUP."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def stop() -> None:
        again, service.draining = service.draining, True
        for listener in listeners:
            listener.stop(now=again)

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
    except LCTError as error:  # what was in service stays there
        print(error, file=sys.stderr, flush=True)
