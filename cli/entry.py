"""The program's first lines: Ctrl-C never tears an import apart, whose pieces would fail in strange ways."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

IMPORTING = "<frozen importlib"


def run() -> None:
    """Run the program; an interrupt that comes while a module is imported waits until it is."""
    let_imports_end()
    try:
        from anytime_lct.cli import main

        main.run()
    except KeyboardInterrupt:  # before the program could say so itself
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


def let_imports_end() -> None:
    """From now on, raise KeyboardInterrupt on SIGINT as Python does, but not while a module is imported."""
    signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    importing = None  # the frame that the outermost import was asked for in
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORTING):
            importing = frame.f_back
        frame = frame.f_back
    if importing is None:
        raise KeyboardInterrupt

    def go_on(frame: FrameType, event: str, argument: Any) -> None:
        sys.settrace(None)
        raise KeyboardInterrupt

    importing.f_trace = go_on  # called at the next line of that frame, behind the import
    sys.settrace(lambda *_: None)  # no other frame is traced
