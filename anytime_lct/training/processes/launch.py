"""Start the workers of a run on this machine by torch's elastic launcher, and report a failure in one sentence."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from anytime_lct.errors import LCTError, WorkerLostError

LAUNCHED_VARIABLE = "ANYTIME_LCT_LAUNCHED"  # set in processes started here: the launcher alone reports a lost worker


class ReportedError(LCTError):
    """A worker has already printed what went wrong on stderr."""


def launch(arguments: Sequence[str], workers: int, replicas: int, max_restarts: int = 0) -> None:
    """Run `python -m anytime_lct.cli.main ARGUMENTS` in workers x replicas processes, each with its rank.

    A run that lost a worker is started again up to `max_restarts` times, each time from the last checkpoint. Raises
    WorkerLostError naming the worker, ReportedError, or KeyboardInterrupt.
    """
    size = workers * replicas
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    os.environ[LAUNCHED_VARIABLE] = "1"
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id="anytime-lct",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=max_restarts,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "anytime_lct.cli.main", *arguments)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        raise _error_of(codes, workers) from None
    except SignalException:
        raise KeyboardInterrupt from None
    finally:
        del os.environ[LAUNCHED_VARIABLE]


def _error_of(codes: dict[int, int], workers: int) -> BaseException:
    """Return the error that the exit codes mean; of several failures, the one that caused the others."""
    if any(code == 130 for code in codes.values()):
        return KeyboardInterrupt()
    if any(code in (1, 2, 3) for code in codes.values()):
        return ReportedError("The run ended because of the worker above; fix the error and continue with --resume.")
    killed = [rank for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM]
    if killed:
        rank = killed[0]
        name = signal.Signals(-codes[rank]).name
        return WorkerLostError(
            f"{describe(rank, workers)} was ended by {name}; continue from the last checkpoint with --resume, or use "
            f"--max-restarts."
        )
    rank = next(iter(codes), 0)
    return WorkerLostError(
        f"{describe(rank, workers)} lost its connection to the others and ended; continue from the last checkpoint "
        f"with --resume."
    )


def describe(rank: int, workers: int) -> str:
    """Name a process by its rank.

    >>> describe(1, 2)
    'Worker 2 of 2'
    """
    replica, worker = divmod(rank, workers)
    return f"Worker {worker + 1} of {workers}" + (f" in replica {replica + 1}" if replica else "")
