"""A Python that starts at once: a server that has torch imported forks for every program that a test starts.

`python()` is a file to start in place of `sys.executable`, with `-m MODULE` or `-c CODE`; beside it lies `anytime-lct`.
Its process stands for the forked one: signals go on to that one, it ends as that one does, and when it is killed, so is
that one. The server imports nothing of this package: each program does that itself, as a new process would.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

VARIABLE = "ANYTIME_LCT_FORKED_PYTHON"
IMPORTED = (
    "fvcore.nn", "matplotlib.figure", "onnxscript", "pydantic.json_schema", "rich.progress", "safetensors.torch",
    "scipy.stats", "sklearn.datasets", "torch.distributed.launcher.api", "torch.distributed.pipelining", "torch.onnx",
    "torch.utils.tensorboard", "torchvision.transforms.v2", "typer",
)  # fmt: skip
STANDS_FOR_IT = """#!{python} -IS
import json, os, signal, socket, sys

SIGNALS = (signal.SIGINT, signal.SIGTERM)
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
line = socket.socket(socket.AF_UNIX)
line.connect({address!r})
program = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]) + "\\n"
socket.send_fds(line, [program.encode()], [0, 1, 2])
replies = line.makefile()
pid = int(replies.readline())
os.symlink(str(pid), {address!r} + "." + str(os.getpid()))

def forward(number, frame):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass

for number in SIGNALS:
    signal.signal(number, forward)
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
code = int(replies.readline())
if code < 0:
    if -code in SIGNALS:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def start() -> None:
    """Start the server, which ends with this process; the processes of pytest-xdist use it too."""
    folder = Path(tempfile.mkdtemp(prefix="forked-python-"))
    address, file = folder / "socket", folder / "python"
    file.write_text(STANDS_FOR_IT.format(python=sys.executable, address=str(address)), encoding="utf-8")
    file.with_name("anytime-lct").write_text(f'#!/bin/sh\nexec {file} -m anytime_lct.cli.main "$@"\n', encoding="utf-8")
    for program in folder.iterdir():
        program.chmod(0o700)
    os.environ[VARIABLE] = str(file)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        server = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())], stdin=subprocess.PIPE, start_new_session=True,
            pass_fds=[listener.fileno()], env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    @atexit.register
    def end() -> None:  # pyright: ignore[reportUnusedFunction]
        server.communicate()
        shutil.rmtree(folder)


def python() -> str:
    """Return the file to start."""
    return os.environ[VARIABLE]


def forked(pid: int) -> int | None:
    """Return the number of the forked process that another stands for; None before there is one."""
    try:
        return int(str(Path(python()).with_name(f"socket.{pid}").readlink()))
    except FileNotFoundError:
        return None


def serve(listener: socket.socket) -> tuple[list[str], Path]:
    """Fork for every program until stdin ends; return its arguments and its folder in the forked process alone."""
    programs: dict[int, tuple[int, socket.socket]] = {}  # process number and line, by the descriptor of the process
    while True:
        lines = {line: pid for pid, line in programs.values()}
        ready = select.select([sys.stdin, listener, *lines, *programs], [], [])[0]
        for line in lines.keys() & ready:  # what stands for it has ended
            os.kill(lines[line], signal.SIGKILL)
        for process in programs.keys() & ready:
            pid, line = programs.pop(process)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with line, suppress(BrokenPipeError):
                line.sendall(f"{code}\n".encode())
            os.close(process)
        if listener in ready:
            line = listener.accept()[0]
            pid, program = _fork(line)
            if program is not None:
                return program
            programs[os.pidfd_open(pid)] = (pid, line)
            line.sendall(f"{pid}\n".encode())
        if sys.stdin in ready:
            for pid, _ in programs.values():
                os.kill(pid, signal.SIGKILL)
            sys.exit()


def _fork(line: socket.socket) -> tuple[int, tuple[list[str], Path] | None]:
    """Return the number of the forked process, and in that process what it is to run."""
    content, files, _, _ = socket.recv_fds(line, 1 << 16, 3)
    while not content.endswith(b"\n"):
        content += line.recv(1 << 16)
    with warnings.catch_warnings(action="ignore"):
        for module in IMPORTED:  # at the first program
            import_module(module)
    gc.freeze()  # pages that no collection touches stay shared
    if pid := os.fork():
        for file in files:
            os.close(file)
        return pid, None
    arguments, folder, environment = json.loads(content)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    return 0, (arguments, Path(folder))


def run(arguments: list[str], folder: Path) -> None:
    """Run a program in this process as Python does, but end without taking every module down."""
    sys.executable, kind, program, *rest = arguments
    sys.argv = [kind, *rest]
    sys.path[0] = str(folder)
    code = 0
    try:
        if kind == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = main = ModuleType("__main__")
            exec(compile(program, "<string>", "exec"), main.__dict__)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run(*serve(socket.socket(fileno=int(sys.argv[1]))))
