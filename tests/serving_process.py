"""A real `anytime-lct serve` on a free port, for tests that need its sockets, signals and processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from programs import start

PROGRAM = "from anytime_lct.cli.main import run; run()"


class Server:
    """Starts on entering, waits until it answers, and is stopped by SIGTERM on leaving, or killed with its workers."""

    def __init__(self, bundle: Path, *options: object, program: str = PROGRAM) -> None:
        self._command = [
            sys.executable,
            "-c",
            program,
            "serve",
            str(bundle),
            "--port",
            "0",
            "--json",
            *map(str, options),
        ]
        self.code: int | None = None
        self.errors = ""

    def __enter__(self) -> Server:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with contextlib.ExitStack() as stack:
            program = start(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
            self.process = stack.enter_context(program)
            assert self.process.stdout is not None and self.process.stderr is not None
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(self.process.stderr.read())
            self._killed_at_the_end = stack.pop_all()
        self.address: str = json.loads(line)["address"]
        self.netloc = self.address.partition("://")[2]
        self.port = int(self.netloc.rpartition(":")[2] or 0)  # 0: a Unix socket
        return self

    def __exit__(self, *error: object) -> None:
        with self._killed_at_the_end:
            self.stop()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Stop the server if it still runs; return its exit code."""
        if self.code is None:
            self.signal(signal.SIGTERM)
            _, self.errors = self.process.communicate(timeout=60)
            self.code = self.process.returncode
        return self.code


def workers_of(server: Server) -> list[int]:
    """The parent's children that serve, not multiprocessing's own helper."""
    parent = server.process.pid
    workers = []
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(OSError):  # one that has ended meanwhile
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                workers.append(int(child))
    return workers
