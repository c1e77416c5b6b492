"""One process that serves: every protocol on its socket, until a signal ends it.

socket bound -> event loop, signals -> listening: "live" is answered -> bundles read -> all is answered -> signal, end
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from anytime_lct.errors import BudgetError
from anytime_lct.exits.budget import DEFAULT_ASK, Ask
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.serving.access import CLOSED, Access
from anytime_lct.serving.crew import Alone, Crew
from anytime_lct.serving.engine.engine import Engine
from anytime_lct.serving.engine.job import ServedBundle
from anytime_lct.serving.engine.joining import sizes_to
from anytime_lct.serving.http.listener import BACKLOG, HTTPListener
from anytime_lct.serving.limits import DEFAULT_LIMITS, Limits
from anytime_lct.serving.logs import LOG, logged, to_stderr
from anytime_lct.serving.metrics import Metrics
from anytime_lct.serving.repository import Repository
from anytime_lct.serving.scan import Problems
from anytime_lct.serving.service import Service
from anytime_lct.serving.signals import STOPPING, released
from anytime_lct.serving.sockets import address, no_address

# How long a Python thread may make the others wait: a twentieth of the default, as answers take milliseconds.
SWITCH_SECONDS = 0.00025


class Listener(Protocol):
    """What a protocol provides: it runs until `stop` is called, and calls `started` when it answers."""

    async def run(self, started: Callable[[], None]) -> None: ...

    def stop(self, *, now: bool) -> None: ...


# A protocol is a folder beside this file and a line here.
PROTOCOLS: tuple[Callable[[Service, socket.socket, Access], Listener], ...] = (HTTPListener,)


@dataclass(frozen=True)
class Settings:
    """What a server serves, to whom `access` allows.

    `threads` threads compute answers, on a `provider` as AnytimeSession takes it; `default` fills in what requests
    leave out. Requests join into batches of up to `batch` samples where that pays.
    """

    bundle: Path
    threads: int = 1
    limits: Limits = DEFAULT_LIMITS
    default: Ask = DEFAULT_ASK
    access: Access = CLOSED
    provider: str | Sequence[str] = "cpu"
    batch: int = 1


def serve(listener: socket.socket, settings: Settings, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads bundles, certificate and keys again.

    `started` is called when requests are answered. Before that it answers that it is alive, and refuses all else.
    Raises BundleError where no bundle can be served, and InputError where the socket cannot listen.
    """

    async def main() -> None:
        await Server(listener, settings, Alone).run(started)

    to_stderr()
    run(main())


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a process that answers."""
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main)


class Server:
    """One process that serves, in the crew that `make_crew` makes of its bundles and counters; it runs once.

    With `early`, it listens while it reads its bundles, else when it has read them and its crew lets it join.
    """

    def __init__(
        self,
        listener: socket.socket,
        settings: Settings,
        make_crew: Callable[[Repository[Any], Metrics], Crew],
        *,
        early: bool = True,
        unloaded: Problems | None = None,
    ) -> None:
        self._listener, self._settings, self._early = listener, settings, early
        self._loop = asyncio.get_running_loop()
        self._listens, self._joined, self._ends = (self._loop.create_future() for _ in range(3))
        self._tasks: set[asyncio.Task[None]] = set()
        metrics = Metrics()
        repository = Repository(settings.bundle, self._open, unloaded, settings.provider)
        self._crew = make_crew(repository, metrics)
        engine = Engine(settings.threads)
        self._service = Service(repository, engine, metrics, settings.limits, settings.default, self._crew)
        self._protocols = [make(self._service, listener, settings.access) for make in PROTOCOLS]

    async def run(self, started: Callable[[], None]) -> None:
        """Serve until a signal ends it; raises BundleError, BudgetError and InputError."""
        with self._signal_handlers():
            answering = self._loop.create_task(self._answer()) if self._early else None
            try:
                if await self._start():
                    answering = answering or self._loop.create_task(self._answer())
                    await asyncio.wait([answering, self._listens], return_when=asyncio.FIRST_COMPLETED)
                    if self._listens.done():
                        started()
                        await answering
            finally:
                if answering is not None and not answering.done():
                    self._stop()
                    await answering
                await self._service.close()
            if answering is not None:
                await answering  # raises why it could not listen

    async def _start(self) -> bool:
        """Read the bundles and join the crew; return whether to answer then."""
        repository = self._service.repository
        try:
            change = await asyncio.to_thread(repository.prepare)
        except InterruptedError:
            return False
        repository.start(change)
        for error in change.report.problems.values():
            LOG.error("%s", error)
        check_default(self._settings.default, {name: _served(repository, name) for name in repository.names()})
        freeze_loaded()
        joining = self._loop.create_task(self._crew.join())
        await asyncio.wait([joining, self._ends], return_when=asyncio.FIRST_COMPLETED)
        if not joining.done():
            joining.cancel()
            return False
        await joining
        self._joined.set_result(None)
        return not self._ends.done()

    async def _answer(self) -> None:
        """Listen, and answer until the end."""
        try:
            self._listener.listen(BACKLOG)
        except OSError as error:
            self._stop()
            raise no_address(address(self._listener), error) from None
        waiting = list(self._protocols)

        def count_started() -> None:
            waiting.pop()
            if not waiting:
                self._listens.set_result(None)

        await asyncio.gather(*(each.run(count_started) for each in self._protocols))

    def _open(self, session: AnytimeSession) -> ServedBundle:
        """Return the bundle that the engine serves; raises InterruptedError where a signal ends the start."""

        def go_on(step: str = "") -> None:
            if self._ends.done() and not self._service.repository.is_open:
                raise InterruptedError

        go_on()
        return ServedBundle(session, go_on, sizes_to(self._settings.batch))

    def _stop(self) -> None:
        """Accept no more requests, answer those that are admitted, and end; the second time, end at once."""
        is_second, self._service.draining = self._ends.done(), True
        if not is_second:
            self._ends.set_result(None)
        for protocol in self._protocols:
            protocol.stop(now=is_second)

    def _read_again(self) -> None:
        self._tasks.add(task := self._loop.create_task(self._reload()))
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        await asyncio.wait([self._joined, self._ends], return_when=asyncio.FIRST_COMPLETED)
        if self._ends.done():
            return
        with logged():
            self._settings.access.read_files()
        with logged():
            await self._crew.load()

    @contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, at once on the second; read all files again on SIGHUP."""
        for number in STOPPING:
            self._loop.add_signal_handler(number, self._stop)
        self._loop.add_signal_handler(signal.SIGHUP, self._read_again)
        with released():
            yield


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


def _served(repository: Repository[Any], name: str) -> tuple[int, ...]:
    return repository.find(name).bundle.manifest.served
