"""Several processes behind one port, which serve the same; one that ends or hangs is replaced.

            socket, bound by the parent
             |            |            |
parent <-> worker 1    worker 2    worker 3        each with its own models, engine and counters

All workers accept connections from the same socket: those that a dying worker has not accepted go to the others. What
one is asked to load, the parent has all of them prepare; then all commit, or none. Each sends its counters with its
signs of life, so that those of a worker that has ended still count.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from anytime_lct.errors import LCTError, WorkerLostError
from anytime_lct.serving.crew import agree, log_change
from anytime_lct.serving.line import Line
from anytime_lct.serving.logs import LOG, logged, to_stderr
from anytime_lct.serving.member import Post, run_worker
from anytime_lct.serving.metrics import Metrics, Values, add, is_hanging, lasting
from anytime_lct.serving.repository import Report, refuse
from anytime_lct.serving.scan import Key, Problems
from anytime_lct.serving.server import Settings
from anytime_lct.serving.service import DRAIN_SECONDS
from anytime_lct.serving.signals import STOPPING, held, released

PAUSE = 1.0  # the least seconds between two starts of a worker
START_SECONDS = 60.0  # in which a new process gives its first sign of life
PATIENCE = 20.0  # seconds without a sign of life, or with a computation that hangs
ANSWER_SECONDS = 1.0  # in which a worker answers with its counters
RETRY_SECONDS = 5.0


class ServerProcess:
    """A worker process: its line, whether it has joined the others, when it was last heard, and its last counters."""

    def __init__(self, post: Post, answer: Callable[..., Any]) -> None:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        self.process = spawn.Process(target=run_worker, args=(post, theirs))
        with held():  # a signal for the worker waits until it can handle it
            self.process.start()
        theirs.close()
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = loop.create_future()
        self.joined: asyncio.Future[None] = loop.create_future()
        self.started = time.monotonic()
        self.heard = self.started + START_SECONDS - PATIENCE
        self.error: LCTError | None = None
        self.values: Values = {}
        self.line = Line(ours, lambda verb, *arguments: answer(self, verb, *arguments), lambda: None)
        loop.add_reader(self.process.sentinel, self._end)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        if self.process.is_alive():
            os.kill(self.process.pid or 0, number)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self.process.sentinel)
        self.process.join()
        self.line.receive()  # its last words
        self.line.close()
        self.ended.set_result(self.process.exitcode or 0)


class Workers:
    """The parent of `number` processes; one that shows no sign of life, or hangs, for `patience` seconds is replaced.

    >>> Workers(bind("127.0.0.1", 8000), Settings(Path("bundles")), number=2).run(lambda: None)  # doctest: +SKIP
    """

    def __init__(self, listener: socket.socket, settings: Settings, number: int, patience: float = PATIENCE) -> None:
        self._listener, self._settings, self._number, self._patience = listener, settings, number, patience
        self._workers: list[ServerProcess] = []
        self._metrics = Metrics()
        self._lost: Values = {}  # of workers that have ended
        self._sums: dict[Key, str] = {}  # what all serve
        self._unloaded: Problems = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_stopping = False

    def run(self, started: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; `started` is called when all workers answer.

        Raises the error that keeps a worker from starting, and WorkerLostError for one that ends before it serves.
        """
        to_stderr()
        asyncio.run(self._run(started))

    async def _run(self, started: Callable[[], None]) -> None:
        self._lock, self._has_started = asyncio.Lock(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._do(self._read_again()))
        self._do(self._watch())
        with released():
            try:
                # The first worker calibrates the bundles, where needed, undisturbed; the others use its timings.
                first = await self._start(early=True)
                others = await asyncio.gather(*(self._start() for _ in range(self._number - 1)))
                if not self._is_stopping:
                    self._has_started.set()
                    started()
                await asyncio.gather(*(self._keep(worker) for worker in (first, *others) if worker is not None))
            finally:
                await self._end()

    async def _start(self, *, early: bool = False) -> ServerProcess | None:
        """Start a worker and return it when it has joined, or None when all are to stop; raises why it cannot start."""
        if self._is_stopping:
            return None
        try:
            worker = ServerProcess(Post(self._listener, self._settings, early, self._unloaded), self.answer)
        except OSError as error:
            raise WorkerLostError(
                f"Expected a process more, got: {error.strerror or error}; free memory, or start fewer --workers."
            ) from None
        self._workers.append(worker)
        await asyncio.wait([worker.joined, worker.ended], return_when=asyncio.FIRST_COMPLETED)
        if worker.joined.done() or self._is_stopping:
            return worker
        self._forget(worker)
        raise worker.error or WorkerLostError(
            f"Expected {self._number} processes that serve, but one ended (exit code {worker.ended.result()}) "
            "before it could; look at its output, and at the free memory."
        )

    async def _keep(self, worker: ServerProcess | None) -> None:
        """Replace a worker, and each that replaces it, when it ends."""
        while worker is not None:
            code = await worker.ended
            self._forget(worker)
            if self._is_stopping:
                return
            LOG.warning("A worker ended (exit code %d); another replaces it.", code)
            self._metrics.restarts.inc()
            await asyncio.sleep(max(0.0, worker.started + PAUSE - time.monotonic()))
            worker = await self._replace()

    async def _replace(self) -> ServerProcess | None:
        """Start a worker that replaces another, again until one joins."""
        while True:
            try:
                return await self._start(early=not self._serving())
            except LCTError as error:
                LOG.error("%s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def answer(self, worker: ServerProcess, verb: str, *arguments: Any) -> object:
        """Answer a worker, or take what it tells."""
        if verb == "beat":
            (worker.values,) = arguments
        if not is_hanging(worker.values):
            worker.heard = time.monotonic()
        if verb == "beat":
            return None
        if verb == "failed":
            (worker.error,) = arguments
        elif verb == "join":
            await self._join(worker, *arguments)
        elif verb == "values":
            return await self._values()
        else:
            async with self._lock:
                await (self._load(*arguments) if verb == "load" else self._unload(*arguments))
        return None

    async def _join(self, worker: ServerProcess, sums: dict[Key, str]) -> None:
        """Return when a worker serves what the others do: until then it does not listen."""
        while not self._is_stopping:
            async with self._lock:
                others = self._serving()
                if others and sums != self._sums:  # the folder has changed since the others read it
                    await self._load(None, worker)
                    sums, self._sums = await worker.line.ask("sums"), await others[0].line.ask("sums")
                if not others or sums == self._sums:
                    self._sums = sums
                    worker.joined.set_result(None)
                    return
            LOG.error("A worker waits to join the others, as it cannot read all that they serve.")
            await asyncio.sleep(RETRY_SECONDS)

    async def _load(self, name: str | None, *joining: ServerProcess) -> None:
        """Have all workers read the folder, or one model of it; raises BundleError and Refusal."""
        with self._metrics.count_reload():
            workers = [*self._serving(), *joining]
            reports: list[Report] = await _ask(workers, "prepare", name)
            accepted, problems = agree(reports)
            if name is not None and problems:
                await _ask(workers, "abort", problems)
                refuse(problems)
            await _ask(workers, "commit", accepted, problems)
            self._sums = (await _ask(self._serving(), "sums"))[0]
            self._unloaded = {key: error for key, error in self._unloaded.items() if key[0] != name}
            log_change(accepted, problems)

    async def _unload(self, name: str) -> None:
        self._unloaded = self._unloaded | (await _ask(self._serving(), "unload", name))[0]
        self._sums = {key: content for key, content in self._sums.items() if key[0] != name}

    async def _read_again(self) -> None:
        await self._has_started.wait()
        with logged():
            await _ask(self._serving(), "files")
        with logged():
            async with self._lock:
                await self._load(None)

    async def _values(self) -> Values:
        """Return the metrics of all processes together; of a worker that does not answer, the last that it has sent."""

        async def latest(worker: ServerProcess) -> Values:
            with suppress(TimeoutError, LCTError):
                worker.values = await asyncio.wait_for(worker.line.ask("values"), ANSWER_SECONDS)
            return worker.values

        return add([self._metrics.values(), self._lost, *await asyncio.gather(*map(latest, self._workers))])

    async def _watch(self) -> None:
        """End the workers that show no sign of life."""
        while True:
            await asyncio.sleep(min(1.0, self._patience / 4))
            for worker in self._workers:
                if time.monotonic() - worker.heard > self._patience:
                    LOG.error("A worker shows no sign of life, or hangs, for %g s; it is ended.", self._patience)
                    worker.send(signal.SIGKILL)

    def _serving(self) -> list[ServerProcess]:
        return [worker for worker in self._workers if worker.joined.done() and not worker.ended.done()]

    def _forget(self, worker: ServerProcess) -> None:
        self._workers.remove(worker)
        self._lost = add([self._lost, lasting(worker.values)])

    def _do(self, main: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(task := asyncio.get_running_loop().create_task(main))
        task.add_done_callback(self._tasks.discard)

    def _stop(self) -> None:
        """Refuse new connections, and have the workers answer what they have admitted; the second time, end at once."""
        self._is_stopping = True
        self._listener.close()
        for worker in self._workers:
            # One that has shown no life yet has nothing to lose.
            worker.send(signal.SIGTERM if worker.values else signal.SIGKILL)

    async def _end(self) -> None:
        """Wait for the workers, and end those that hang."""
        if not self._is_stopping:
            self._stop()
        ended = [worker.ended for worker in self._workers]
        for seconds in (DRAIN_SECONDS + self._patience, None):
            _, running = await asyncio.wait(ended, timeout=seconds) if ended else (ended, ())
            if not running:
                break
            for worker in self._workers:
                worker.send(signal.SIGKILL)


async def _ask(workers: list[ServerProcess], verb: str, *arguments: object) -> list[Any]:
    """Return the answers of the workers that live to give one; raises the error of one that refuses."""
    answers = await asyncio.gather(*(each.line.ask(verb, *arguments) for each in workers), return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in errors:
        if not isinstance(error, WorkerLostError):
            raise error
    if len(errors) == len(answers):
        raise WorkerLostError("Expected a worker process that serves, but none does; try again later.")
    return [answer for answer in answers if not isinstance(answer, BaseException)]
