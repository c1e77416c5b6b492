"""A connection: requests come in, one after another, each has its turn, and every state has an end.

state                              ends after                        how
no request yet, or a part of one   `header_seconds`                  408
between requests                   KEEP_ALIVE_SECONDS                closed
a request and its answer           the app's own times
an answer that is not taken        `read_seconds`                    cut off
answered, the rest is not read     DISCARD_SECONDS                   closed; the rest is read and dropped meanwhile
closed, not yet taken              `read_seconds`                    cut off
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from anytime_lct.errors import LCTError
from anytime_lct.serving.http.parser import Head, Malformed, RequestParser
from anytime_lct.serving.http.turn import App, Turn, refusal_bytes
from anytime_lct.serving.limits import Allowance, Limits

KEEP_ALIVE_SECONDS = 75.0
READ = 1 << 18  # bytes that are read at a time
EVENTS = 500  # parts of requests that are taken apart at a time: many small chunks must not keep others waiting
DISCARD_SECONDS = 2.0  # for a client that sends on: a connection that closes before would cost it the answer


class Open(Protocol):
    """What is open, with or without TLS."""

    def drain(self) -> None:
        """Close when there is no request to answer."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class Connections:
    """The open connections of an event loop, and the buffer into which each reads in its turn.

    To allocate a buffer each time, as asyncio does where it is offered none, takes longer than to read.
    """

    def __init__(self) -> None:
        self.open: set[Open] = set()
        self.buffer = memoryview(bytearray(READ))


class Connection(asyncio.BufferedProtocol):
    """Speaks HTTP/1.1 with one client; `connections` are those of its event loop.

    The bytes that wait, to be taken apart or for the app, count among those of all requests.
    """

    def __init__(self, app: App, limits: Limits, allowance: Allowance, connections: Connections) -> None:
        self._app, self._limits, self._connections = app, limits, connections
        self._waiting = allowance.hold()
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser(limits.header_bytes)
        self._turn: Turn | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._end_of_state: tuple[float, Callable[[], None]] | None = None  # when, by the loop's time, and what then
        self._untaken: asyncio.TimerHandle | None = None  # of an answer that is not taken
        self._writable = asyncio.Event()
        self._writable.set()
        self._is_held = self._is_broken = self._is_ending = self._has_eof = self._is_idle = False
        self.is_draining = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it where there are too many."""
        self._transport = transport
        self._constants: dict[str, Any] = {
            "scheme": "http" if transport.get_extra_info("ssl_object") is None else "https",
            "client": _address(transport.get_extra_info("peername")),
            "server": _address(transport.get_extra_info("sockname")),
        }
        self._connections.open.add(self)
        if len(self._connections.open) > self._limits.connections:
            self._refuse(503, f"Expected at most {self._limits.connections} connections, got more; try again later.")
        else:
            self._wait(self._limits.header_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the turn know that its client is gone."""
        self._connections.open.discard(self)
        self._is_ending = True
        self._stop_waiting()
        self._set_timer(None)
        self._waiting.give_back(self._waiting.used)
        self.resume_writing()
        if self._turn is not None:
            self._turn.leave()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer to read into."""
        return self._connections.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes apart that were read, as far as there is no turn before them."""
        if not (self._is_ending or self._is_broken):
            self._parser.feed(self._connections.buffer[:nbytes])
            self._go_on()

    def eof_received(self) -> bool:
        """Answer what has arrived whole, although nothing more comes."""
        self._has_eof = True
        if self._is_ending:
            self._close()
        self._go_on()
        return True  # the other direction stays open

    def pause_writing(self) -> None:
        """Start the time in which the client must take its answer."""
        self._writable.clear()
        self._untaken = self._loop.call_later(self._limits.read_seconds, self._transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has taken most of its answer."""
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None
        self._writable.set()

    def drain(self) -> None:
        """Close when the turn is over, at once if there is none."""
        self.is_draining = True
        if self._turn is None and not self._is_ending:
            self._close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # For the turn:

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if data and not self._transport.is_closing():
            self._transport.write(data)

    async def until_writable(self) -> None:
        """Wait until the client has taken most of what was sent, or is gone."""
        await self._writable.wait()

    def pace(self) -> None:
        """Count what waits, to be taken apart or for the app, and read from the client unless that is enough."""
        self._count_waiting()
        turn, is_large = self._turn, self._parser.size > self._limits.header_bytes
        is_held = not self._is_ending and (is_large or (turn is not None and turn.is_full))
        if is_held != self._is_held and not (self._has_eof or self._transport.is_closing()):
            self._is_held = is_held
            (self._transport.pause_reading if is_held else self._transport.resume_reading)()

    def end_turn(self, *, is_answered: bool, closes: bool) -> None:
        """Start the next turn, or close the connection."""
        turn, self._turn, self._task = self._turn, None, None
        if self._is_ending or turn is None:
            return
        if not is_answered:
            self._transport.abort()
        elif closes or self.is_draining or self._is_broken:
            self._end(is_read=turn.is_whole and not (self._parser.size or self._is_broken))
        else:
            self._advance()
            if self._turn is None and not self._is_ending:
                self._wait_for_next()

    def _go_on(self) -> None:
        if self._is_ending or self._is_broken:
            return
        self._advance()
        if self._is_idle and self._turn is None and self._parser.size and not self._is_ending:
            self._wait_for_head()

    def _advance(self) -> None:
        try:
            for _ in range(EVENTS):
                if self._turn is not None and self._turn.is_whole:
                    break  # requests behind it wait
                event = self._parser.next_event()
                if event is None:
                    self._check_eof()
                    break
                if isinstance(event, Head):
                    self._begin_turn(event)
                elif self._turn is not None and isinstance(event, bytes):
                    self._turn.add(event)
                elif self._turn is not None:
                    self._turn.complete()
            else:
                self._loop.call_soon(self._go_on)  # after others have had their turns
        except Malformed as error:
            self._is_broken = True
            if self._turn is None:
                self._refuse(error.status, str(error))
            else:
                self._turn.refuse(error)
        self.pace()

    def _count_waiting(self) -> None:
        """Count the bytes that wait, with the turn's head; where all requests hold too many, close the connection."""
        turn = self._turn
        more = self._parser.size + (0 if turn is None else turn.size) - self._waiting.used
        if more < 0:
            self._waiting.give_back(-more)
        elif more > 0 and not self._is_ending:
            try:
                self._waiting.take(more)
            except LCTError as error:
                self._is_broken = True
                self._parser.clear()
                if turn is None:
                    self._refuse(503, str(error))
                elif not turn.is_read:
                    turn.refuse(error)

    def _check_eof(self) -> None:
        """End what cannot become a whole request."""
        if self._has_eof and self._turn is None:
            self._close()
        elif self._has_eof and self._turn is not None:
            self._turn.leave()

    def _begin_turn(self, head: Head) -> None:
        self._stop_waiting()
        self._is_idle = False
        self._turn = Turn(self, head)
        self._task = self._loop.create_task(self._turn.run(self._app, self._constants))

    def _wait_for_head(self) -> None:
        self._is_idle = False
        self._wait(self._limits.header_seconds, self._too_slow)

    def _wait_for_next(self) -> None:
        if self._parser.size:
            self._wait_for_head()
        else:
            self._is_idle = True
            self._wait(KEEP_ALIVE_SECONDS, self._close)

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        """Do `then` in some seconds, unless the state ends before."""
        when = self._loop.time() + seconds
        self._end_of_state = (when, then)
        if self._timer is None or self._timer.when() > when:
            self._set_timer(when)

    def _stop_waiting(self) -> None:
        self._end_of_state = None  # the timer stays: to set it for every request would take longer

    def _set_timer(self, when: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if when is None else self._loop.call_at(when, self._look_at_time)

    def _look_at_time(self) -> None:
        self._timer = None
        if self._end_of_state is not None:
            when, then = self._end_of_state
            if when <= self._loop.time():
                self._end_of_state = None
                then()
            else:
                self._set_timer(when)

    def _too_slow(self) -> None:
        self._refuse(408, f"Expected whole headers within {self._limits.header_seconds:g} s; send them faster.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer bytes that are no request, and close."""
        self.write(refusal_bytes(status, message))
        self._end(is_read=False)

    def _end(self, *, is_read: bool) -> None:
        """Close after an answer: at once where the client has sent no more than was read."""
        if is_read or self._has_eof or self._transport.is_closing():
            self._close()
            return
        self._is_ending = True
        self.pace()
        self._transport.write_eof()
        self._wait(DISCARD_SECONDS, self._close)

    def _close(self) -> None:
        """Close when the client has taken what was written, and cut it off if it does not."""
        self._is_ending = True
        self._transport.close()
        self._wait(self._limits.read_seconds, self._transport.abort)


def _address(address: object) -> tuple[str, int] | None:
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) and len(address) >= 2 else None
