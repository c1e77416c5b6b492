"""Start the workers of a run on this machine by torch's elastic launcher, and say in a sentence how it ended."""

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

QUIET = "ANYTIME_LCT_LAUNCHED"  # set in processes started here: the launcher says who was lost, once


class ToldError(LCTError):
    """A worker has said on stderr what went wrong; there is nothing to add."""


def launch(arguments: Sequence[str], workers: int, replicas: int, max_restarts: int = 0) -> None:
    """Run `python -m anytime_lct.cli.main ARGUMENTS` in workers x replicas processes that know their place.

    With `max_restarts`, a run that lost a worker is started again so often; each start goes on from the last
    checkpoint. Raises WorkerLostError naming the worker, ToldError, or KeyboardInterrupt.
    """
    size = workers * replicas
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    os.environ[QUIET] = "1"
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
        raise _ended(codes, workers) from None
    except SignalException:
        raise KeyboardInterrupt from None
    finally:
        del os.environ[QUIET]


def _ended(codes: dict[int, int], workers: int) -> BaseException:
    """Say what the exit codes mean; of several failures, the one that caused the others."""
    if any(code == 130 for code in codes.values()):
        return KeyboardInterrupt()
    if any(code in (1, 2, 3) for code in codes.values()):
        return ToldError("The run ended because of the worker above; fix it and go on with --resume.")
    killed = [rank for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM]
    if killed:
        rank = killed[0]
        name = signal.Signals(-codes[rank]).name
        return WorkerLostError(
            f"{describe(rank, workers)} was ended by {name}; go on from the last checkpoint with --resume, or let "
            f"--max-restarts do it."
        )
    rank = next(iter(codes), 0)
    return WorkerLostError(
        f"{describe(rank, workers)} lost touch with the others and ended; go on from the last checkpoint with --resume."
    )


def describe(rank: int, workers: int) -> str:
    """Name a process by its place.

    >>> describe(1, 2)
    'Worker 2 of 2'
    """
    replica, worker = divmod(rank, workers)
    return f"Worker {worker + 1} of {workers}" + (f" in replica {replica + 1}" if replica else "")
