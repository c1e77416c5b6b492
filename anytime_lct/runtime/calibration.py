"""Measure how long every group and critic of a bundle takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import numpy as np

from anytime_lct.errors import BundleError, LCTError
from anytime_lct.exits.bundle import Manifest
from anytime_lct.runtime.providers import PROVIDERS
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.runtime.timings import Quantiles, Times, Timings, bundle_sum
from anytime_lct.stopwatch import machine

SIZES = (1, 4, 16)
CHARACTERS = 32  # characters a sample, where a network on text is times
WARMUP, MIN_ROUNDS, MAX_ROUNDS = 2, 5, 200
TOLERANCE = 0.05  # more threads must save at least this fraction of the time


def calibrate(
    session: AnytimeSession,
    sizes: Collection[int] = SIZES,
    seconds: float = 1.0,
    progress: Callable[[str], None] | None = None,
) -> Timings:
    """Measure every group and critic for batches of `sizes` samples, as requests run them, about `seconds` per size.

    Raises BundleError for a bundle of whole exits only, and LCTError for sizes below 1.
    """
    if not session.manifest.groups:
        raise BundleError(
            f"Expected a bundle with layer groups to calibrate, got '{session.bundle.path}', which has whole exits "
            f"only; export it again without --only exits."
        )
    if not sizes or min(sizes) < 1:
        raise LCTError(f"Expected sizes of batches from 1 on, got {list(sizes)}; choose others.")
    times: dict[int, Times] = {}
    for size in sorted(set(sizes)):
        if progress is not None:
            progress(f"measuring batches of {size}")
        try:
            x = _example(session, size)
        except MemoryError:
            raise LCTError(f"Expected sizes of batches that fit into memory, got {size}; choose smaller.") from None
        times[counted(session.manifest, size)] = _measure(session, x, seconds)
    return Timings(
        bundle=bundle_sum(session.bundle),
        machine=machine(),
        runtime=PROVIDERS[session.provider].version,
        provider=session.provider,
        threads=session.threads,
        sizes=times,
    )


def fastest_threads(sessions: Sequence[AnytimeSession], seconds: float = 1.0) -> int:
    """Measure one sample at full depth with sessions of different numbers of threads, in turns; return the best number.

    That is the smallest whose median is within `TOLERANCE` of the shortest: a thread that saves less is better used by
    another request.
    """
    calls = [partial(session.run_to, session.served[-1], _example(session, 1)) for session in sessions]
    times: list[list[float]] = [[] for _ in calls]
    end = 0.0
    for round_ in range(WARMUP + MAX_ROUNDS):
        if round_ == WARMUP:
            times, end = [[] for _ in calls], time.perf_counter() + seconds * len(calls)
        if round_ >= WARMUP + MIN_ROUNDS and time.perf_counter() > end:
            break
        for row, call in zip(times, calls, strict=True):
            row.append(_timed(call))
    medians = {session.threads: float(np.median(row)) for session, row in zip(sessions, times, strict=True)}
    return fewest_threads(medians)


def fewest_threads(seconds: Mapping[int, float]) -> int:
    """Return the smallest number of threads that takes at most `TOLERANCE` longer than the fastest.

    >>> fewest_threads({1: 1.0, 2: 0.6, 4: 0.58})
    2
    """
    return min(number for number, s in seconds.items() if s <= (1 + TOLERANCE) * min(seconds.values()))


def counted(manifest: Manifest, size: int) -> int:
    """Return the size of a batch of samples as timings count it: in samples, of text in characters."""
    return size * CHARACTERS if manifest.row.is_text else size


def _example(session: AnytimeSession, size: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    if session.manifest.row.is_text:
        return generator.integers(0, session.manifest.outputs, (size, CHARACTERS), dtype=np.int64)
    shape = [int(side) for side in session.manifest.input_shape[1:]]
    if session.manifest.symbols:
        return generator.integers(0, session.manifest.symbols, (size, *shape), dtype=np.int64)
    return generator.standard_normal((size, *shape), dtype=np.float32)


def _measure(session: AnytimeSession, x: np.ndarray, seconds: float) -> Times:
    groups: dict[int, list[float]] = {}
    critics: dict[int, list[float]] = {}
    end = 0.0
    for round_ in range(WARMUP + MAX_ROUNDS):
        if round_ == WARMUP:
            groups, critics, end = {}, {}, time.perf_counter() + seconds
        if round_ >= WARMUP + MIN_ROUNDS and time.perf_counter() > end:
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
