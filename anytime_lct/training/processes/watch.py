"""The watch: no worker waits for one that is gone.

Every process tells the launcher's store once a second that it lives, and looks whether the others do. A neighbour whose
connection closes is named at once by whoever notices first; a process that falls silent (a machine without power, a
stopped process) is named after SILENCE seconds. Whoever reads a name in the store ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

SILENCE, BEAT = 20.0, 1.0
LOST = "lost"


class Watch:
    """Runs beside training in a thread of its own; `describe(rank)` names a process in the sentence it ends with."""

    def __init__(self, store: Any, rank: int, size: int, describe: Callable[[int], str], quiet: bool) -> None:
        self._store, self._rank, self._size, self._describe, self._quiet = store, rank, size, describe, quiet
        self._store.set_timeout(timedelta(seconds=SILENCE))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def blame(self, rank: int | None, sentence: str = "") -> str:
        """Tell everybody who ended, unless another was named before; return the sentence that counts.

        Without a rank, wait for somebody who knows: a neighbour of the one that is gone, or silence.
        """
        if rank is not None:
            said = (
                sentence or f"{self._describe(rank)} ended unexpectedly; go on with --resume from the last checkpoint."
            )
            with suppress(Exception):
                return self._store.compare_set(LOST, "", said).decode()
            return said
        until = time.monotonic() + SILENCE + 5 * BEAT
        while time.monotonic() < until:
            if found := self._named():
                return found
            time.sleep(BEAT / 4)
        return "A worker ended unexpectedly; go on with --resume from the last checkpoint."

    def stop(self) -> None:
        self._done.set()
        self._thread.join(timeout=2 * BEAT)

    def _named(self) -> str:
        with suppress(Exception):
            if self._store.check([LOST]):
                return self._store.get(LOST).decode()
        return ""

    def _run(self) -> None:
        heard, beats, number, reached = time.monotonic(), {}, 0, time.monotonic()
        others = [rank for rank in range(self._size) if rank != self._rank]
        seen = dict.fromkeys(others, heard)
        while not self._done.wait(BEAT):
            number += 1
            try:
                self._store.set(f"beat/{self._rank}", str(number))
                names = [f"beat/{rank}" for rank in others]
                known = [rank for rank, name in zip(others, names, strict=True) if self._store.check([name])]
                values = [self._store.get(f"beat/{rank}") for rank in known]
                reached = time.monotonic()
            except Exception:
                if time.monotonic() - reached > SILENCE:
                    self._end("The launcher of this run is gone; go on with --resume from the last checkpoint.")
                continue
            now = time.monotonic()
            for rank, value in zip(known, values, strict=True):
                if beats.get(rank) != value:
                    beats[rank], seen[rank] = value, now
            if found := self._named():
                time.sleep(BEAT)  # let the main thread say it, if it can
                self._end(found)
            for rank in others:
                if now - seen[rank] > SILENCE:
                    self._end(self.blame(rank))

    def _end(self, sentence: str) -> None:
        if self._done.is_set():
            return
        if not self._quiet:
            print(sentence, file=sys.stderr, flush=True)
        os._exit(4)
