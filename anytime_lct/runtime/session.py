"""Answers from a bundle: the best exit a budget allows, or every exit in turn, computing nothing twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import BudgetError, BundleError, InputError
from anytime_lct.exits.budget import Budget, check_positive
from anytime_lct.exits.bundle import Bundle
from anytime_lct.exits.profile import Latency, Profile
from anytime_lct.exits.selector import select
from anytime_lct.exits.thresholds import Measure, Thresholds
from anytime_lct.runtime import deadline
from anytime_lct.runtime import timings as calibrations
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.chain import Chain
from anytime_lct.runtime.graphs import Graphs
from anytime_lct.runtime.preprocess import check_batch, show_shape
from anytime_lct.runtime.timing import Timing
from anytime_lct.runtime.timings import Calibration
from anytime_lct.runtime.walk import Order, Stopped, Stopping, Walk, steps

# Buffers kept for the next request: one chain serves one request at a time, for one input shape.
SPARE_CHAINS, SPARE_BYTES = 16, 1 << 28
KNOWN_BUDGETS = 256
MOST_THREADS = 256


class AnytimeSession:
    """A bundle ready to answer; safe to use from many threads, and by many streams at once.

    `threads` are those that onnxruntime uses inside one request: with one worker thread a core, 1 is best. None takes
    as many as the timings that `anytime-lct calibrate` left beside the bundle, and 1 where there are none.
    `calibrated` False leaves those timings alone. Graphs are loaded when first needed, or by `warm`. Raises BundleError
    for a bundle that is not whole.

    >>> session = AnytimeSession("bundle")                                              # doctest: +SKIP
    >>> session.run(x, Budget(flops=20e6)).classes                                      # doctest: +SKIP
    >>> for answer in session.stream(x):                                                # doctest: +SKIP
    ...     if answer.probabilities.max() > 0.9: break
    """

    def __init__(self, bundle: Bundle | Path | str, threads: int | None = 1, *, calibrated: bool = True) -> None:
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
            raise InputError(
                f"Expected a positive number of threads up to {MOST_THREADS}, got {threads!r}; 1 suits overlapping "
                f"requests."
            )
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.manifest, self.profile = self.bundle.manifest, self.bundle.profile
        self.served = self.manifest.served
        found = calibrations.load(self.bundle, threads) if calibrated else None
        self.threads = threads or (found.threads if found else 1)
        self.timing: Timing | None = None
        self._graphs = Graphs(self.bundle.path, self.threads)
        self._spare: list[tuple[tuple[int, ...], Chain, int]] = []  # shape, chain, bytes
        self._spare_lock = threading.RLock()
        self._chosen: dict[Budget, int] = {}
        self._flops = {exit: self.profile.cost(exit).flops for exit in self.served}
        if found is not None:
            self.use(found)

    def use(self, calibration: Calibration) -> None:
        """Take timings of this machine, for budgets of latency and for timeouts.

        A session finds the ones that `anytime-lct calibrate` left beside the bundle by itself.
        """
        self.timing = Timing(calibration)
        self._chosen.clear()

    def warm(self) -> None:
        """Load all graphs, by running every exit once: no timed answer waits for one, or gets one written since."""
        shape = [size if isinstance(size, int) else 1 for size in self.manifest.input_shape]
        for exit in self.served:
            self.run_to(exit, np.zeros(shape, self.manifest.input_dtype))

    def choose(self, budget: Budget | None = None) -> int:
        """Return the exit that `run` answers with: the most accurate served one that fits the budget.

        A latency is held against this machine's timings where there are any, and else against the profile's.
        Raises NothingFitsError, and BudgetError for a latency budget where neither has latencies.
        """
        budget = budget or Budget()
        if (exit := self._chosen.get(budget)) is None:
            profile = self.profile if budget.latency is None else self._profile_here()
            exit = select(profile, budget, exits=self.served).exit
            if len(self._chosen) >= KNOWN_BUDGETS:
                self._chosen.clear()
            if budget.latency is None:  # what takes how long changes
                self._chosen[budget] = exit
        return exit

    def deepest(self, budget: Budget | None, rule: Thresholds | None) -> int:
        """Return the exit to go to at most: the budget's, and that of a rule for stopping. Raises NothingFitsError."""
        if rule is None:
            return self.choose(budget)
        deepest = max(rule.at)
        return deepest if budget in (None, Budget()) else min(deepest, self.choose(budget))

    def ended(self, exit: int) -> Stopped:
        """Say why an answer went no deeper than the exit that it was to go to: is any deeper one better?"""
        return "last" if exit in (self.served[-1], self.choose()) else "budget"

    def run(
        self,
        x: NDArray[Any],
        budget: Budget | None = None,
        *,
        timeout: float | None = None,
        min_confidence: float | None = None,
        measure: Measure = "max-probability",
        thresholds: Thresholds | None = None,
    ) -> Answer:
        """Answer a batch once, no deeper than `choose(budget)`: groups 1..i, then critic i only.

        `x` is (B, C, H, W) float32 or float64, or (B, T) integers. With `min_confidence`, of 0 to 1, every sample stops
        at the first exit that is so sure by `measure`, at the temperatures of the profile; with `thresholds`, by that
        rule, such as `rule(mean_flops)` finds in the bundle. With `timeout`, in seconds from this call, the deepest
        exit in time answers, by this machine's timings; too short a timeout is answered by the first exit. `warm` the
        session before: loading graphs takes its time too.
        Raises InputError, BudgetError, NothingFitsError and BundleError.
        """
        began = time.perf_counter()
        most = self.deepest(budget, thresholds)
        if timeout is None and min_confidence is None and thresholds is None:
            return self.run_to(most, x)
        stopping = self.stopping(most, min_confidence, measure, thresholds)
        if timeout is not None:
            check_positive(timeout, "a timeout in seconds")
            if self.timing is None:
                raise BudgetError(
                    f"Expected timings of this machine for a timeout, got none; measure them with: "
                    f"anytime-lct calibrate {self.bundle.path}."
                )
        with self.walk(x) as walk:
            taken = steps(walk, most, stopping, self.ended(most))
            try:
                next(taken)
                while True:
                    order: Order = "deeper"
                    if timeout is not None:
                        assert self.timing is not None
                        left = began + timeout - time.perf_counter()
                        order = deadline.order(self.timing, walk, left, timeout)
                    taken.send(order)
            except StopIteration as end:
                return self.answer_of(walk, end.value)

    def run_to(self, exit: int, x: NDArray[Any]) -> Answer:
        """Answer a batch by a served exit, as `run` does by the one it chooses; raises InputError."""
        if exit not in self.served:
            raise InputError(
                f"Expected one of the served exits {show_shape(self.served)}, got {exit!r}; choose among them."
            )
        stopped = self.ended(exit)
        if not self.manifest.groups:
            x = self.check(x)
            logits = self._graphs.run(self.manifest.exits[exit].name, x)
            return Answer(exit, logits, self._flops[exit], np.full(len(x), exit), 1, stopped)
        with self.walk(x) as walk:
            while walk.depth < exit:
                walk.advance()
            walk.answer()
            return self.answer_of(walk, stopped)

    def stream(self, x: NDArray[Any]) -> Iterator[Answer]:
        """Answer a batch by every served exit in turn, each paying only for what lies behind the one before.

        The input is checked and copied at once; nothing runs until the first answer is asked for, and leaving
        the loop early pays nothing more. An answer stays valid.
        Raises InputError, and BundleError for a bundle without groups.
        """
        self._need_groups()
        return self._stream(np.array(self.check(x)))

    def _stream(self, x: NDArray[Any]) -> Iterator[Answer]:
        with Walk(self, x) as walk:
            for exit in self.served:
                while walk.depth < exit:
                    walk.advance()
                walk.answer()
                yield self.answer_of(walk, "last" if exit == self.served[-1] else "budget")

    def walk(self, x: NDArray[Any]) -> Walk:
        """Set a batch on its way through the groups, to be taken where one likes; close it in the end.

        Raises InputError, and BundleError for a bundle without groups.
        """
        self._need_groups()
        return Walk(self, self.check(x))

    def answer_of(self, walk: Walk, stopped: Stopped) -> Answer:
        """Put what a walk has told its samples into an answer."""
        assert walk.logits is not None
        flops = walk.paid / len(walk.exits)
        return Answer(
            int(walk.exits.max()),
            walk.logits,
            int(flops) if flops.is_integer() else flops,
            walk.exits.copy(),
            walk.exits_run,
            stopped,
        )

    def check(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a batch as the network takes it, C-contiguous float32 or int64; raises InputError."""
        return check_batch(x, self.manifest)

    def rule(self, mean_flops: float) -> Thresholds:
        """Return the bundle's rule for stopping whose mean cost is the largest up to `mean_flops` a sample.

        Raises NothingFitsError, and BudgetError for a bundle without rules.
        """
        if self.bundle.thresholds is None:
            raise BudgetError(
                f"Expected a bundle with rules for a mean budget, got '{self.bundle.path}' without; search them with: "
                f"anytime-lct thresholds RUN --mean-flops {mean_flops:.4g}, and export again."
            )
        return self.bundle.thresholds.within(mean_flops)

    def stopping(
        self, most: int, min_confidence: float | None, measure: Measure, thresholds: Thresholds | None
    ) -> Stopping | None:
        """Make the rule by which samples stop before exit `most`; None where they do not. Raises BudgetError."""
        if thresholds is not None:
            if min_confidence is not None:
                raise BudgetError("Expected either min_confidence or thresholds, got both; leave one out.")
            at, measure = {i: t for i, t in thresholds.at.items() if i < most}, thresholds.measure
        elif min_confidence is not None:
            if isinstance(min_confidence, bool) or not 0 < min_confidence <= 1:
                raise BudgetError(f"Expected a confidence above 0 and up to 1, got {min_confidence!r}; give another.")
            at = dict.fromkeys((i for i in self.served if i < most), float(min_confidence))
        else:
            return None
        return Stopping(at, measure, {i: self.profile.exits[i - 1].temperature for i in at})

    def take_chain(self, shape: tuple[int, ...]) -> Chain:
        """Lend a chain for batches of this shape, a used one where there is one."""
        with self._spare_lock:
            for k in range(len(self._spare) - 1, -1, -1):
                if self._spare[k][0] == shape:
                    return self._spare.pop(k)[1]
        return Chain(self._graphs, self.manifest)

    def give_back_chain(self, shape: tuple[int, ...], chain: Chain) -> None:
        """Keep a chain for the next request of this shape, the latest ones within SPARE_CHAINS and SPARE_BYTES."""
        with self._spare_lock:
            self._spare.append((shape, chain, chain.nbytes))
            while len(self._spare) > SPARE_CHAINS or sum(size for _, _, size in self._spare) > SPARE_BYTES:
                del self._spare[0]

    def _profile_here(self) -> Profile:
        """The profile with the latencies of this machine, where they were measured."""
        if self.timing is None:
            return self.profile
        exits = [
            e.model_copy(
                update={"latency": Latency(seconds=self.timing.to_exit(e.index, 1), engine="onnxruntime", machine="")}
                if e.index in self.served
                else {"latency": None}
            )
            for e in self.profile.exits
        ]
        return self.profile.model_copy(update={"exits": tuple(exits)})

    def _need_groups(self) -> None:
        if not self.manifest.groups:
            raise BundleError(
                f"Expected a bundle with layer groups to go through, got '{self.bundle.path}', which has whole exits "
                f"only; export it again without --only exits."
            )
