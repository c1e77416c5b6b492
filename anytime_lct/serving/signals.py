"""Signals that arrive while the server starts: they wait until something handles them.

    held()       blocked, also for the first process of a container, which would lose them
    released()   their handlers are set: those that waited arrive now

A blocked signal stays with the process, and the processes that it starts inherit the block.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

STOPPING = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*STOPPING, signal.SIGHUP)


def held() -> AbstractContextManager[None]:
    """Let SIGTERM, SIGINT and SIGHUP wait inside the block."""
    return _masked(signal.SIG_BLOCK)


def released() -> AbstractContextManager[None]:
    """Let them arrive inside the block, those that have waited at once."""
    return _masked(signal.SIG_UNBLOCK)


@contextmanager
def held_to_the_end() -> Iterator[None]:
    """Let them wait inside the block, and to the end of the process, whose exit code they then leave alone.

    After an error they arrive again.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        raise


@contextmanager
def _masked(how: int) -> Iterator[None]:
    previous = signal.pthread_sigmask(how, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
