"""Programs that a test starts: ended with all that they started, however the test ends."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a process group of its own; on leaving, kill whatever is left of it.

    Processes in sessions of their own, as torch's launcher starts workers, are known by a mark in their environment.
    """
    mark = f"ANYTIME_LCT_TEST={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    options["env"] = {**(options.get("env") or os.environ), name: value}
    words = [str(word) for word in command]
    with subprocess.Popen(words, text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for environment in Path("/proc").glob("[0-9]*/environ"):
                with suppress(OSError):
                    if mark.encode() in environment.read_bytes().split(b"\0"):
                        os.kill(int(environment.parent.name), signal.SIGKILL)


def run(command: Sequence[object], seconds: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; raises subprocess.TimeoutExpired, with all of it killed, after so many seconds."""
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
