"""Programs that a test starts: killed with all processes that they started, however the test ends."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Runs the command line in the process that tests (`conftest.program`): exit code, standard output, standard error.
Program = Callable[..., tuple[int, str, str]]


@contextmanager
def start(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a new process group; on leaving, kill all processes of it that still run.

    Processes in other sessions, such as the workers of torch's launcher, are found by a mark in their environment.
    """
    mark = f"ANYTIME_LCT_TEST={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    options["env"] = {**(options.get("env") or os.environ), name: value}
    arguments = [str(argument) for argument in command]
    with subprocess.Popen(arguments, text=True, start_new_session=True, **options) as process:
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
    """Run a program to its end; after `seconds`, kill all of it and raise subprocess.TimeoutExpired."""
    with start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
