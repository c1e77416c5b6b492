"""The watch: no worker waits for one that is gone.

Every process writes a heartbeat into the launcher's store once a second, and checks those of the others. A neighbour
whose connection closes is named at once by the first process that notices; a silent process (a machine without power,
a stopped process) is named after SILENCE seconds. A process that reads a name in the store ends.
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
RESUME = "continue with --resume from the last checkpoint."


class Watch:
    """Runs beside training in its own thread; `describe(rank)` names a process in the sentence that it ends with."""

    def __init__(self, store: Any, rank: int, size: int, describe: Callable[[int], str], quiet: bool) -> None:
        self._store, self._rank, self._size, self._describe, self._quiet = store, rank, size, describe, quiet
        self._store.set_timeout(timedelta(seconds=SILENCE))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def blame(self, rank: int | None, sentence: str = "") -> str:
        """Announce which process ended, unless another was named before; return the sentence about the first one.

        Without a rank, wait for a process that knows it: a neighbour of the lost one, or the watch after SILENCE.
        """
        if rank is not None:
            sentence = sentence or f"{self._describe(rank)} ended unexpectedly; {RESUME}"
            with suppress(Exception):
                return self._store.compare_set(LOST, "", sentence).decode()
            return sentence
        deadline = time.monotonic() + SILENCE + 5 * BEAT
        while time.monotonic() < deadline:
            if sentence := self._announced():
                return sentence
            time.sleep(BEAT / 4)
        return f"A worker ended unexpectedly; {RESUME}"

    def stop(self) -> None:
        self._done.set()
        self._thread.join(timeout=2 * BEAT)

    def _announced(self) -> str:
        """Return the sentence about the lost process, "" while there is none."""
        with suppress(Exception):
            if self._store.check([LOST]):
                return self._store.get(LOST).decode()
        return ""

    def _run(self) -> None:
        beats, number, last_contact = {}, 0, time.monotonic()
        others = [rank for rank in range(self._size) if rank != self._rank]
        last_beats = dict.fromkeys(others, last_contact)
        while not self._done.wait(BEAT):
            number += 1
            try:
                self._store.set(f"beat/{self._rank}", str(number))
                names = [f"beat/{rank}" for rank in others]
                known = [rank for rank, name in zip(others, names, strict=True) if self._store.check([name])]
                values = [self._store.get(f"beat/{rank}") for rank in known]
                last_contact = time.monotonic()
            except Exception:
                if time.monotonic() - last_contact > SILENCE:
                    self._end(f"The launcher of this run is gone; {RESUME}")
                continue
            now = time.monotonic()
            for rank, value in zip(known, values, strict=True):
                if beats.get(rank) != value:
                    beats[rank], last_beats[rank] = value, now
            if sentence := self._announced():
                time.sleep(BEAT)  # let the main thread report it, if it can
                self._end(sentence)
            for rank in others:
                if now - last_beats[rank] > SILENCE:
                    self._end(self.blame(rank))

    def _end(self, sentence: str) -> None:
        if self._done.is_set():
            return
        if not self._quiet:
            print(sentence, file=sys.stderr, flush=True)
        os._exit(4)
