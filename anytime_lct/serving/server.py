"""One process that serves: the app on a listening socket, until a signal has it finish what it began."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from anytime_lct.errors import BudgetError, InputError, LCTError
from anytime_lct.serving.http.app import DRAIN_SECONDS, Service, create_app
from anytime_lct.serving.http.connection import bounded
from anytime_lct.serving.limits import USUAL, Limits
from anytime_lct.serving.request import Ask
from anytime_lct.serving.v2.parameters import FREELY

KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
# How long a thread of Python may keep the others waiting: a twentieth of what is usual, as answers have milliseconds.
SWITCH_SECONDS = 0.00025


@dataclass(frozen=True)
class Settings:
    """What a server is told. `threads` compute answers in one process; `default` is what requests ask for."""

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

    `started` is called when requests are answered, `on_reload` when a client had bundles read again.
    """
    from anytime_lct.serving.engine.engine import Engine
    from anytime_lct.serving.engine.job import Served
    from anytime_lct.serving.repository import Repository

    sys.setswitchinterval(SWITCH_SECONDS)
    repository = Repository(settings.bundle, Served)
    check_default(settings.default, {name: repository.find(name).served.manifest.served for name in repository.names()})
    engine = Engine(settings.threads)
    app = create_app(repository, engine, limits=settings.limits, default=settings.default, on_reload=on_reload)
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        http=bounded(settings.limits),
        ws="none",
        lifespan="on",
        loop="uvloop",
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=round(DRAIN_SECONDS),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        backlog=BACKLOG,
    )
    server = Quiet(config)

    async def run() -> None:
        async with signals(server, service):
            watch = asyncio.create_task(_when_started(server, started))
            await server.serve([listener])
            watch.cancel()

    keep_loaded()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(run())


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


class Quiet(uvicorn.Server):
    """uvicorn's server, without the signal handlers that end the process by the signal it has just obeyed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `signals`."""
        yield


@asynccontextmanager
async def signals(server: uvicorn.Server, service: Service) -> AsyncIterator[None]:
    """Stop on SIGTERM and SIGINT, at once on the second; read bundles again on SIGHUP."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def stop() -> None:
        server.force_exit = server.should_exit
        logging.getLogger("uvicorn.error").disabled = server.force_exit  # what is cut short was meant to be
        server.should_exit = service.draining = True

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


async def _when_started(server: uvicorn.Server, started: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    started()
