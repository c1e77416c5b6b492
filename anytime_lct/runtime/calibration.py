"""Measure what every group and critic of a bundle takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import onnxruntime as ort

from anytime_lct.errors import BundleError, LCTError
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.runtime.timings import Quantiles, Times, Timings, bundle_sum
from anytime_lct.stopwatch import machine

SIZES = (1, 4, 16)
STEPS = 32  # characters a sample, where a network on text is measured
WARMUP, LEAST, MOST = 2, 5, 200
WORTH = 0.05  # the share of time that more threads have to save


def calibrate(
    session: AnytimeSession,
    sizes: Sequence[int] = SIZES,
    seconds: float = 1.0,
    progress: Callable[[str], None] | None = None,
) -> Timings:
    """Measure every group and critic for batches of `sizes` samples, about `seconds` each size, as requests run them.

    Raises BundleError for a bundle of whole exits only, and LCTError for sizes below 1.
    """
    if not session.manifest.groups:
        raise BundleError(
            f"Expected a bundle with layer groups to calibrate, got '{session.bundle.path}', which has whole exits "
            f"only; export it again without --only exits."
        )
    if not sizes or min(sizes) < 1:
        raise LCTError(f"Expected sizes of batches from 1 on, got {list(sizes)}; name others.")
    measured: dict[int, Times] = {}
    for size in sorted(set(sizes)):
        if progress is not None:
            progress(f"measuring batches of {size}")
        try:
            x = _example(session, size)
        except MemoryError:
            raise LCTError(f"Expected sizes of batches that fit into memory, got {size}; name smaller ones.") from None
        measured[x.size if session.manifest.task == "language-model" else size] = _measure(session, x, seconds)
    return Timings(
        bundle=bundle_sum(session.bundle),
        machine=machine(),
        onnxruntime=ort.__version__,
        threads=session.threads,
        sizes=measured,
    )


def fastest_threads(sessions: Sequence[AnytimeSession], seconds: float = 1.0) -> int:
    """Measure one sample at full depth by sessions that differ in their threads, in turns; return the best number.

    That is the fewest whose median is within `WORTH` of the smallest: a thread that brings less is better left to
    another request.
    """
    calls = [partial(session.run_to, session.served[-1], _example(session, 1)) for session in sessions]
    taken: list[list[float]] = [[] for _ in calls]
    until = 0.0
    for turn in range(WARMUP + MOST):
        if turn == WARMUP:
            taken, until = [[] for _ in calls], time.perf_counter() + seconds * len(calls)
        if turn >= WARMUP + LEAST and time.perf_counter() > until:
            break
        for times, call in zip(taken, calls, strict=True):
            times.append(_timed(call))
    return fewest({session.threads: float(np.median(times)) for session, times in zip(sessions, taken, strict=True)})


def fewest(seconds: Mapping[int, float]) -> int:
    """Return the fewest threads that take at most `WORTH` more than the fastest, of seconds by number of threads.

    >>> fewest({1: 1.0, 2: 0.6, 4: 0.58})
    2
    """
    return min(threads for threads, taken in seconds.items() if taken <= (1 + WORTH) * min(seconds.values()))


def _example(session: AnytimeSession, size: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    if session.manifest.task == "language-model":
        return generator.integers(0, session.manifest.outputs, (size, STEPS), dtype=np.int64)
    shape = [int(side) for side in session.manifest.input_shape[1:]]
    return generator.standard_normal((size, *shape), dtype=np.float32)


def _measure(session: AnytimeSession, x: np.ndarray, seconds: float) -> Times:
    groups: dict[int, list[float]] = {}
    critics: dict[int, list[float]] = {}
    until = 0.0
    for turn in range(WARMUP + MOST):
        if turn == WARMUP:
            groups, critics, until = {}, {}, time.perf_counter() + seconds
        if turn >= WARMUP + LEAST and time.perf_counter() > until:
            break
        with session.walk(x) as walk:
            while walk.depth < session.served[-1]:
                groups.setdefault(walk.depth + 1, []).append(_timed(walk.advance))
                if walk.depth in session.manifest.critics:
                    critics.setdefault(walk.depth, []).append(_timed(walk.answer))
    return Times(
        groups=tuple(_quantiles(groups[i]) for i in sorted(groups)),
        critics={i: _quantiles(times) for i, times in critics.items()},
    )


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _quantiles(times: Sequence[float]) -> Quantiles:
    p50, p90, p99 = (float(q) for q in np.quantile(times, (0.5, 0.9, 0.99)))
    return Quantiles(p50=p50, p90=p90, p99=p99)
