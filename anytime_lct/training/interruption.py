"""Signals that stop a run, turned into a flag."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into a flag, so that the minibatch in progress ends; the second one kills."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    old_handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def set_flag(number: int, frame: object) -> None:
        if flag.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        flag.set()

    for number in old_handlers:
        signal.signal(number, set_flag)
    try:
        yield flag
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
