"""A line between two processes: each may ask the other, and answers while its own questions are open.

worker -- ask("load", "digits") --> parent -- ask("prepare", "digits") --> every worker, that one too
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

from anytime_lct.errors import LCTError, WorkerLostError
from anytime_lct.serving.logs import LOG

ANSWER, ERROR = "answer", "error"


class Line:
    """One end of a pipe, in the event loop that runs; `answer(verb, *arguments)` answers the other end's questions.

    `on_close` is called when the other end is gone; open questions then raise WorkerLostError.

    >>> line = Line(pipe, answer, on_close)       # doctest: +SKIP
    >>> await line.ask("prepare", "digits")       # doctest: +SKIP
    """

    def __init__(
        self, pipe: Connection, answer: Callable[..., Awaitable[object]], on_close: Callable[[], None]
    ) -> None:
        self._pipe, self._answer, self._on_close = pipe, answer, on_close
        self._numbers = itertools.count()
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pipe.fileno(), self.receive)

    async def ask(self, verb: str, *arguments: object) -> Any:
        """Return the other end's answer; raises the LCTError that it raises, and WorkerLostError if it goes."""
        if self._pipe.closed:
            raise _lost()
        number = next(self._numbers)
        future = self._questions[number] = self._loop.create_future()
        try:
            self._send(verb, number, arguments)
            return await future
        finally:
            self._questions.pop(number, None)

    def tell(self, verb: str, *arguments: object) -> None:
        """Send what needs no answer; nothing happens where the other end is gone."""
        if not self._pipe.closed:
            self._send(verb, None, arguments)

    def close(self) -> None:
        """Close this end; open questions raise WorkerLostError."""
        if self._pipe.closed:
            return
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        for future in self._questions.values():
            if not future.done():
                future.set_exception(_lost())
        self._on_close()

    def receive(self) -> None:
        """Take all that the other end has sent."""
        try:
            while not self._pipe.closed and self._pipe.poll():
                self._take(*self._pipe.recv())
        except (EOFError, OSError):
            self.close()

    def _send(self, verb: str, number: int | None, content: object) -> None:
        try:
            self._pipe.send((verb, number, content))
        except OSError:
            self.close()

    def _take(self, verb: str, number: int | None, content: Any) -> None:
        if verb not in (ANSWER, ERROR):
            self._tasks.add(task := self._loop.create_task(self._reply(verb, number, content)))
            task.add_done_callback(self._tasks.discard)
        elif (future := self._questions.get(number or 0)) is not None and not future.done():
            future.set_exception(content) if verb == ERROR else future.set_result(content)

    async def _reply(self, verb: str, number: int | None, arguments: tuple[Any, ...]) -> None:
        try:
            answer, content = ANSWER, await self._answer(verb, *arguments)
        except LCTError as error:
            answer, content = ERROR, error
        except Exception as error:
            LOG.exception("The question '%s' of another process failed.", verb)
            answer, content = ERROR, LCTError(f"Another process of the server failed ({type(error).__name__}).")
        if number is not None and not self._pipe.closed:
            self._send(answer, number, content)


def _lost() -> WorkerLostError:
    return WorkerLostError("Expected an answer of another process of the server, which has ended; try again.")
