"""Several processes behind one port, with one set of metrics; one that dies is replaced.

            listening socket, made by the parent
             |            |            |
parent ->  worker 1    worker 2    worker 3        each with its own models and engine
             \\____________|____________/
                folder of counters, read by the worker that Prometheus asks

All workers accept connections from the same socket: those that a dying worker has not accepted go to the others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType

from prometheus_client.multiprocess import mark_process_dead

from anytime_lct.errors import LCTError, WorkerLostError
from anytime_lct.serving.metrics import FOLDER_VARIABLE
from anytime_lct.serving.server import Settings, serve

PAUSE = 1.0  # the least seconds between two starts of a worker
READY, RELOADED = "ready", "reloaded"


@dataclass(eq=False)
class ServerProcess:
    """A worker process, the parent's end of its pipe, and when it started."""

    process: BaseProcess
    pipe: Connection
    started: float
    is_ready: bool = False
    is_ending: bool = False  # it has got SIGTERM
    must_reload: bool = False  # it gets SIGHUP when it is ready


class Workers:
    """The parent of `number` processes: it replaces those that die, and passes signals on.

    >>> Workers(listen("127.0.0.1", 8000), Settings(Path("bundles")), number=2).run(lambda: None)  # doctest: +SKIP
    """

    def __init__(self, listener: socket.socket, settings: Settings, number: int) -> None:
        self._listener, self._settings, self._number = listener, settings, number
        self._workers: list[ServerProcess] = []
        self._has_started = self._is_stopping = False

    def run(self, started: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; `started` is called when all workers answer.

        Raises the error that keeps a worker from starting, and WorkerLostError for one that dies before it serves.
        """
        with self._signals(), tempfile.TemporaryDirectory(prefix="anytime-lct-metrics-") as counters:
            os.environ[FOLDER_VARIABLE] = counters
            try:
                # The first worker calibrates the bundles, where needed, undisturbed; the others use its timings.
                self._add(1)
                while self._workers:
                    self._watch(started)
            finally:
                self._stop()
                for worker in self._workers:
                    worker.process.join()
                del os.environ[FOLDER_VARIABLE]

    def _watch(self, started: Callable[[], None]) -> None:
        wait([end for worker in self._workers for end in (worker.pipe, worker.process.sentinel)], PAUSE)
        for worker in list(self._workers):
            self._read_messages(worker)
            if not worker.process.is_alive():
                self._replace(worker)
        if not self._has_started and self._workers and all(worker.is_ready for worker in self._workers):
            self._add(self._number - len(self._workers))
            if all(worker.is_ready for worker in self._workers):
                self._has_started = True
                started()

    def _read_messages(self, worker: ServerProcess) -> None:
        """Handle all messages that a worker has sent."""
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                if isinstance(message, LCTError):
                    if not self._has_started:
                        raise message
                    print(message, file=sys.stderr, flush=True)
                elif message == READY:
                    worker.is_ready = True
                    if worker.must_reload:
                        self._send(signal.SIGHUP, [worker])
                elif message == RELOADED:
                    self._send(signal.SIGHUP, [other for other in self._workers if other is not worker])
        except (EOFError, OSError):
            worker.process.join(PAUSE)

    def _replace(self, worker: ServerProcess) -> None:
        self._workers.remove(worker)
        mark_process_dead(worker.process.pid)
        if self._is_stopping:
            return
        if not self._has_started:
            raise WorkerLostError(
                f"Expected {self._number} processes that serve, but one ended (exit code {worker.process.exitcode}) "
                "before it could; look at its output, and at the free memory."
            )
        print(f"A worker ended (exit code {worker.process.exitcode}); another replaces it.", file=sys.stderr)
        time.sleep(max(0.0, worker.started + PAUSE - time.monotonic()))
        self._add(1)

    def _add(self, number: int) -> None:
        """Start workers, unless the parent stops; one that is started at that moment is stopped here."""
        for _ in range(number):
            if self._is_stopping:
                return
            worker = self._start()
            self._workers.append(worker)
            if self._is_stopping and not worker.is_ending:
                self._send(signal.SIGTERM, [worker])

    def _start(self) -> ServerProcess:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=run_worker, args=(self._listener, self._settings, theirs))
        process.start()
        theirs.close()
        return ServerProcess(process, ours, time.monotonic())

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self._stop()

        def reload(number: int, frame: FrameType | None) -> None:
            self._send(signal.SIGHUP, self._workers)

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, reload)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        self._is_stopping = True
        self._send(signal.SIGTERM, self._workers)

    def _send(self, number: signal.Signals, workers: list[ServerProcess]) -> None:
        for worker in workers:
            if number == signal.SIGTERM:
                worker.is_ending = True
            elif not worker.is_ready:  # without its handler the signal would end it
                worker.must_reload = True
                continue
            if worker.process.is_alive():
                os.kill(worker.process.pid or 0, number)


def run_worker(listener: socket.socket, settings: Settings, pipe: Connection) -> None:
    """Serve on the parent's socket in a worker process, and end with the parent."""
    os.setsid()  # Ctrl-C reaches the parent alone
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        serve(listener, settings, lambda: pipe.send(READY), lambda: pipe.send(RELOADED))
    except LCTError as error:
        pipe.send(error)
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
