"""A worker process: it serves on the parent's socket, and does what the parent asks of all workers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from anytime_lct.errors import LCTError
from anytime_lct.serving.access import Access
from anytime_lct.serving.line import Line
from anytime_lct.serving.logs import to_stderr
from anytime_lct.serving.metrics import Metrics, Values
from anytime_lct.serving.repository import Change, Repository
from anytime_lct.serving.scan import Problems
from anytime_lct.serving.server import Server, Settings, run

BEAT = 1.0  # seconds between two signs of life


@dataclass(frozen=True)
class Post:
    """What a worker starts with: `early`, it answers that it is alive while it reads its bundles."""

    listener: socket.socket
    settings: Settings
    early: bool
    unloaded: Problems


class Member:
    """A crew of several processes, as one of its workers knows it: the parent orders what all do."""

    def __init__(self, pipe: Connection, repository: Repository[Any], metrics: Metrics, access: Access) -> None:
        self._repository, self._metrics, self._access = repository, metrics, access
        self._change: Change[Any] | None = None
        # A worker ends with its parent.
        self._line = Line(pipe, self._answer, lambda: os.kill(os.getpid(), signal.SIGTERM))
        self._beats = asyncio.get_running_loop().create_task(self._beat())

    async def join(self) -> None:
        """Return when the worker serves what the others do."""
        await self._line.ask("join", self._repository.sums)

    async def load(self, name: str | None = None) -> None:
        """Read the folder again, or one model of it, in all workers; raises BundleError and Refusal."""
        await self._line.ask("load", name)

    async def unload(self, name: str) -> None:
        """Take a model out of service in all workers; raises Refusal."""
        self._repository.versions(name)
        await self._line.ask("unload", name)

    async def values(self) -> Values:
        """Return the metrics of all workers."""
        return await self._line.ask("values")

    async def _answer(self, verb: str, *arguments: Any) -> object:
        """Do what the parent asks of every worker."""
        if verb == "prepare":
            self._change = await asyncio.to_thread(self._repository.prepare, *arguments)
            return self._change.report
        if verb == "commit" and self._change is not None:
            self._repository.commit(self._change, *arguments)
            self._change = None
        if verb == "abort":
            self._repository.note(*arguments)
            self._change = None
        if verb == "unload":
            return self._repository.unload(*arguments)
        if verb == "files":
            self._access.read_files()
        return self._repository.sums if verb == "sums" else self._metrics.values()

    async def _beat(self) -> None:
        while True:
            self._line.tell("beat", self._metrics.values())
            await asyncio.sleep(BEAT)


def run_worker(post: Post, pipe: Connection) -> None:
    """Serve in a worker process, until a signal or the end of the parent."""

    async def main() -> None:
        def crew(repository: Repository[Any], metrics: Metrics) -> Member:
            return Member(pipe, repository, metrics, post.settings.access)

        server = Server(post.listener, post.settings, crew, early=post.early, unloaded=post.unloaded)
        await server.run(lambda: None)

    os.setsid()  # Ctrl-C reaches the parent alone
    to_stderr()
    try:
        run(main())
    except LCTError as error:
        pipe.send(("failed", None, (error,)))
        sys.exit(error.exit_code)
