"""An engine without a scheduler: one thread answers in order, by the real session; tests can hold and break it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from anytime_lct.exits.budget import Ask
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.serving.repository import Repository
from anytime_lct.serving.request import Overloaded, Reply


class FakeServed:
    """A session in service."""

    def __init__(self, session: AnytimeSession) -> None:
        self.session, self.manifest, self.profile = session, session.manifest, session.profile


class FakeEngine:
    """Answers by the exit that the budget names. `gate` holds answers back, `error` is raised instead of one."""

    def __init__(self, threads: int = 1) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.asked: list[Ask] = []
        self.left: list[Reply] = []
        self.closed = False
        self._waiting = 0
        self._pool = ThreadPoolExecutor(threads)

    def submit(self, served: FakeServed, x: np.ndarray, ask: Ask, arrived: float) -> Future[Reply]:
        self.asked.append(ask)
        if self.closed:
            raise Overloaded("Expected a request before the end, got one after it; ask another server.", 1.0)
        if self.error is not None:
            raise self.error
        chosen = served.session.choose(ask.budget)
        self._waiting += 1
        return self._pool.submit(self._run, served, x, ask, arrived, chosen)

    def answer_here(self, served: FakeServed, x: np.ndarray, ask: Ask, arrived: float) -> Reply | None:
        return None

    def _run(self, served: FakeServed, x: np.ndarray, ask: Ask, arrived: float, chosen: int) -> Reply:
        begun = time.monotonic()
        self._waiting -= 1
        self.gate.wait(30)
        answer = served.session.run_to(chosen, x)
        now = time.monotonic()
        return Reply(
            answer,
            queued=begun - arrived,
            computed=now - begun,
            on_time=None if ask.timeout is None else now - arrived <= ask.timeout,
        )

    def record_sent(self, reply: Reply) -> None:
        self.left.append(reply)

    def queue_length(self) -> int:
        return self._waiting

    def hanging(self) -> int:
        return 0

    def drain(self, seconds: float) -> bool:
        self.closed = True
        self._pool.shutdown(wait=True)
        return True

    def close(self) -> None:
        self._pool.shutdown(wait=False)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.gate.set()
        self.drain(1)


def open_repository(folder: Path) -> Repository:
    """Return a repository whose bundles are in service, with a FakeServed for each."""
    repository = Repository(folder, FakeServed)
    repository.start(repository.prepare())
    return repository
