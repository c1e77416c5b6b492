"""Answers from a bundle: the best exit a budget allows, or every exit in turn, computing nothing twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import BudgetError, BundleError, InputError
from anytime_lct.exits.budget import ANY, FREELY, Ask, Budget, Stopped
from anytime_lct.exits.bundle import Bundle
from anytime_lct.exits.profile import Latency, Profile
from anytime_lct.exits.selector import select
from anytime_lct.exits.thresholds import Measure, Thresholds
from anytime_lct.runtime import deadline, timings
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.chain import ChainPool
from anytime_lct.runtime.graphs import Graphs
from anytime_lct.runtime.preprocess import check_batch, show_shape
from anytime_lct.runtime.timing import Timing
from anytime_lct.runtime.timings import Timings
from anytime_lct.runtime.walk import Order, Stopping, Walk, steps

KNOWN_BUDGETS = 256
MOST_THREADS = 256


@dataclass(frozen=True)
class Plan:
    """How deep a request goes at most, which samples stop before, and what an answer there says of why it stopped."""

    most: int
    stopping: Stopping | None
    ended: Stopped


class AnytimeSession:
    """A bundle ready to answer; safe to use from many threads, and by many streams at once.

    `threads` are those that onnxruntime uses inside one request: with one worker thread a core, 1 is best. None takes
    as many as the timings that `anytime-lct calibrate` left beside the bundle, and 1 where there are none.
    `calibrated` False leaves those timings alone. Graphs are loaded when first needed, or by `warm`. Raises BundleError
    for a bundle that is not whole.

    >>> session = AnytimeSession("bundle")                                              # doctest: +SKIP
    >>> session.run(x, Ask(Budget(flops=20e6), timeout=0.02)).classes                   # doctest: +SKIP
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
        known = timings.load(self.bundle, threads) if calibrated else None
        self.threads = threads or (known.threads if known else 1)
        self.timing: Timing | None = None
        self.graphs = Graphs(self.bundle.path, self.threads)
        self.chains = ChainPool(self.graphs, self.manifest)
        self._exit_of: dict[Budget, int] = {}
        self._flops = {exit: self.profile.cost(exit).flops for exit in self.served}
        if known is not None:
            self.use(known)

    def use(self, known: Timings) -> None:
        """Take timings of this machine, for budgets of latency and for timeouts.

        A session finds the ones that `anytime-lct calibrate` left beside the bundle by itself.
        """
        self.timing = Timing(known)
        self._exit_of.clear()

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
        budget = budget or ANY
        if (exit := self._exit_of.get(budget)) is None:
            profile = self.profile if budget.latency is None else self._profile_here()
            exit = select(profile, budget, exits=self.served).exit
            if len(self._exit_of) >= KNOWN_BUDGETS:
                self._exit_of.clear()
            if budget.latency is None:  # what takes how long changes
                self._exit_of[budget] = exit
        return exit

    def plan(self, ask: Ask) -> Plan:
        """Return how deep a request goes, and where its samples stop; raises NothingFitsError and BudgetError."""
        rule = ask.rule if ask.mean_flops is None else self.rule(ask.mean_flops)
        most = self._deepest(ask, rule)
        if rule is not None:
            at, measure = {i: threshold for i, threshold in rule.at.items() if i < most}, rule.measure
        elif ask.min_confidence is not None:
            at, measure = dict.fromkeys((i for i in self.served if i < most), float(ask.min_confidence)), ask.measure
        else:
            return Plan(most, None, self._ended(most))
        stopping = Stopping(at, measure, {i: self.profile.exits[i - 1].temperature for i in at})
        return Plan(most, stopping, self._ended(most))

    def run(
        self,
        x: NDArray[Any],
        ask: Ask | Budget | None = None,
        *,
        budget: Budget | None = None,
        timeout: float | None = None,
        min_confidence: float | None = None,
        measure: Measure = "max-probability",
        thresholds: Thresholds | None = None,
    ) -> Answer:
        """Answer a batch once, as `ask` says; the keywords are those of an Ask, for convenience.

        `x` is (B, C, H, W) float32 or float64, or (B, T) integers. A budget alone is answered by groups 1..i and critic
        i only, i = `choose(budget)`. Where samples may stop before, each does at the first exit that is so sure, at the
        temperatures of the profile. With a timeout, in seconds from this call, the deepest exit in time answers, by
        this machine's timings; too short a timeout is answered by the first exit. `warm` the session before: loading
        graphs takes its time too. Raises InputError, BudgetError, NothingFitsError and BundleError.
        """
        began = time.perf_counter()
        keywords = Ask(budget or ANY, timeout, min_confidence, measure, rule=thresholds)
        if (isinstance(ask, Ask) and keywords != FREELY) or (ask is not None and budget is not None):
            raise BudgetError("Expected an Ask, or keywords, got both; say all of it in one of them.")
        if not isinstance(ask, Ask):
            ask = keywords if ask is None else replace(keywords, budget=ask)
        plan = self.plan(ask)
        if ask.mode == "fixed" or (ask.timeout is None and plan.stopping is None):
            return self.run_to(plan.most, x)
        timing = self.timing
        if ask.timeout is not None and timing is None:
            raise BudgetError(
                f"Expected timings of this machine for a timeout, got none; measure them with: "
                f"anytime-lct calibrate {self.bundle.path}."
            )
        with self.walk(x) as walk:
            way = steps(walk, plan.most, plan.stopping, plan.ended)
            try:
                next(way)
                while True:
                    order: Order = "deeper"
                    if ask.timeout is not None and timing is not None:
                        left = began + ask.timeout - time.perf_counter()
                        order = deadline.order(timing, walk, left, ask.timeout)
                    way.send(order)
            except StopIteration as end:
                return walk.so_far(end.value)

    def run_to(self, exit: int, x: NDArray[Any]) -> Answer:
        """Answer a batch by a served exit, as `run` does by the one it chooses; raises InputError."""
        if exit not in self.served:
            raise InputError(
                f"Expected one of the served exits {show_shape(self.served)}, got {exit!r}; choose among them."
            )
        ended = self._ended(exit)
        if not self.manifest.groups:
            x = self.check(x)
            logits = self.graphs.run(self.manifest.exits[exit].name, x)
            return Answer(exit, logits, self._flops[exit], np.full(len(x), exit), 1, ended)
        with self.walk(x) as walk:
            while walk.depth < exit:
                walk.advance()
            walk.answer()
            return walk.so_far(ended)

    def stream(self, x: NDArray[Any]) -> Iterator[Answer]:
        """Answer a batch by every served exit in turn, each paying only for what lies behind the one before.

        The input is checked and copied at once; nothing runs until the first answer is asked for, and leaving
        the loop early pays nothing more. An answer stays valid.
        Raises InputError, and BundleError for a bundle without groups.
        """
        self._need_groups()
        return self._stream(np.array(self.check(x)))

    def _stream(self, x: NDArray[Any]) -> Iterator[Answer]:
        with self.walk(x) as walk:
            for exit in self.served:
                while walk.depth < exit:
                    walk.advance()
                walk.answer()
                yield walk.so_far("last" if exit == self.served[-1] else "budget")

    def walk(self, x: NDArray[Any]) -> Walk:
        """Set a batch on its way through the groups, to be taken where one likes; close it in the end.

        Raises InputError, and BundleError for a bundle without groups.
        """
        self._need_groups()
        return Walk(self.check(x), self.chains, self.profile, self.timing)

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

    def _deepest(self, ask: Ask, rule: Thresholds | None) -> int:
        """The exit to go to at most: the budget's, a rule's, or in the mode "fixed" the very one that is named."""
        named = ask.budget.exit
        if ask.mode == "fixed" and named is not None and ask.budget == Budget(exit=named):
            if named not in self.served:
                known = ", ".join(map(str, self.served))
                raise BudgetError(f"Expected a fixed exit among those served, {known}, got {named}; name one of them.")
            return named
        if rule is None:
            return self.choose(ask.budget)
        return max(rule.at) if ask.budget == ANY else min(max(rule.at), self.choose(ask.budget))

    def _ended(self, exit: int) -> Stopped:
        """Say why an answer went no deeper than the exit that it was to go to: is any deeper one better?"""
        return "last" if exit in (self.served[-1], self.choose()) else "budget"

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
