"""The server's log: one line an event on stderr, with its time, its level and the process."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anytime_lct.errors import LCTError

LOG = logging.getLogger("anytime_lct.serving")
ACCESS = logging.getLogger("anytime_lct.access")


def to_stderr() -> None:
    """Write the logs of this process to stderr; those of other packages from warnings on.

    2026-01-31T12:00:00.123Z WARNING [42] A worker ended (exit code -9); another replaces it.
    """
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s [%(process)d] %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for log in (LOG, ACCESS):
        log.setLevel(logging.INFO)


@contextmanager
def logged() -> Iterator[None]:
    """Log an error of the block, after which what is in service stays as it is."""
    try:
        yield
    except LCTError as error:
        LOG.error("%s", error)


def warn_if_open(path: Path) -> None:
    """Log a warning where other users of this machine may read a file with a secret, or its group change it."""
    if (mode := path.stat().st_mode) & 0o027:
        LOG.warning("'%s' holds a secret, and its mode is %o; others are kept out by: chmod 600", path, mode & 0o777)
