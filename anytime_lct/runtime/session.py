"""Answers from a bundle: by the best exit that a budget allows, or by every exit in turn, computing nothing twice."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import BudgetError, BundleError, InputError
from anytime_lct.exits.budget import DEFAULT_ASK, UNLIMITED, Ask, Budget, Flops
from anytime_lct.exits.bundle import Bundle
from anytime_lct.exits.thresholds import Measure, Thresholds
from anytime_lct.runtime import deadline, parity, providers, timings
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.chain import ChainPool
from anytime_lct.runtime.graphs import Graphs
from anytime_lct.runtime.planning import Plan, Planner
from anytime_lct.runtime.preprocess import check_batch, from_text, show_shape
from anytime_lct.runtime.timing import Timing
from anytime_lct.runtime.timings import Timings
from anytime_lct.runtime.walk import Order, Walk, steps

MAX_CACHED_BUDGETS = 256
MAX_THREADS = 256


class AnytimeSession:
    """A bundle ready to answer; safe to use from many threads, and by many streams at once.

    `threads` is how many onnxruntime uses inside one request: with one worker thread per core, 1 is best. None takes
    the number of the timings that `anytime-lct calibrate` stored beside the bundle, and 1 where there are none.
    `calibrated` False ignores those timings. `provider` is what computes: cpu, cuda, tensorrt, coreml or openvino, or
    several names, of which the first that is there is taken. On any but the CPU every exit is compared with the answers
    that the bundle stores. Graphs are loaded when first needed, or by `warm`. Raises ProviderError for a provider that
    is not there or answers differently, and BundleError for a bundle that is not whole. A session of one process works
    in those that it forks or spawns: they load graphs anew.

    >>> session = AnytimeSession("bundle")                                              # doctest: +SKIP
    >>> session.run(x, Ask(Budget(flops=20e6), timeout=0.02)).classes                   # doctest: +SKIP
    >>> for answer in session.stream(x):                                                # doctest: +SKIP
    ...     if answer.probabilities.max() > 0.9: break
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        threads: int | None = 1,
        *,
        calibrated: bool = True,
        provider: str | Sequence[str] = "cpu",
    ) -> None:
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            raise InputError(
                f"Expected a positive number of threads up to {MAX_THREADS}, got {threads!r}; 1 suits overlapping "
                f"requests."
            )
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.bundle = replace(bundle, path=bundle.path.absolute())  # the working folder may change
        self.manifest, self.profile = self.bundle.manifest, self.bundle.profile
        self.served = self.manifest.served
        chosen = providers.choose(provider)
        self.provider = chosen.name
        measured = timings.load(self.bundle, threads, self.provider) if calibrated else None
        self.threads = threads or (measured.threads if measured else 1)
        self.timing: Timing | None = None
        self.graphs = Graphs(self.bundle, self.threads, chosen)
        self.chains = ChainPool(self.graphs, self.manifest)
        self._planner = Planner(self.bundle)
        self._buffer_bytes = 0  # of one sample; for text, of one character
        self._flops = {exit: self.profile.cost(exit).flops for exit in self.served}
        if measured is not None:
            self.use_timings(measured)
        if self.provider != "cpu":
            self.check_parity()

    def __getstate__(self) -> tuple[Bundle, int, str, Timing | None]:
        return self.bundle, self.threads, self.provider, self.timing

    def __setstate__(self, state: tuple[Bundle, int, str, Timing | None]) -> None:
        bundle, threads, provider, timing = state
        self.__init__(bundle, threads, calibrated=False, provider=provider)
        self.timing = timing

    def use_timings(self, timings: Timings) -> None:
        """Use timings of this machine for latency budgets and timeouts.

        A session loads those that `anytime-lct calibrate` stored beside the bundle by itself.
        """
        self.timing = Timing(timings)

    def check_parity(self) -> dict[int, float]:
        """Compare every served exit with the answers that the bundle stores; return the largest difference of each.

        Raises ProviderError where logits differ more than rounding explains, and BundleError for a bundle without.
        """
        x, expected = parity.stored(self.bundle)
        largest = {}
        for i in self.served:
            what, logits = f"exit {i} on {self.provider}", self.run_to(i, x).logits
            largest[i] = parity.difference(what, logits, expected[i], self.manifest.precision)
        return largest

    def warm(self, size: int = 1) -> None:
        """Load all graphs, by running every exit once on a batch of this size: no later answer waits for one.

        A tokenizer is loaded too; raises ModuleNotFoundError without its library (extra `text`).
        """
        if self.manifest.preprocessing.tokenizer is not None:
            from_text("", self.manifest.preprocessing)
        shape = [size, *(side if isinstance(side, int) else 1 for side in self.manifest.input_shape[1:])]
        for exit in self.served:
            self.run_to(exit, np.zeros(shape, self.manifest.input_dtype))
        if size == 1:
            self._buffer_bytes = max((size for _, size in self.chains.spare), default=0)

    def buffer_bytes(self, x: NDArray[Any]) -> int:
        """Return the bytes of the buffers that a walk of this batch uses at most; 0 before `warm`."""
        return self._buffer_bytes * (x.size if self.manifest.row.is_text else len(x))

    def choose(self, budget: Budget | None = None) -> int:
        """Return the exit that `run` answers with: the most accurate served one that fits the budget.

        A latency is compared with this machine's timings where there are any, and with the profile's otherwise.
        Raises NothingFitsError, and BudgetError for an exit that the network lacks, or for a latency budget where
        neither has latencies.
        """
        return self._planner.choose(budget or UNLIMITED, self.timing)

    def plan(self, ask: Ask) -> Plan:
        """Return how deep a request goes, and where its samples stop; raises NothingFitsError and BudgetError."""
        return self._planner.plan(ask, self.timing)

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

        `x` is (B, C, H, W) float32 or float64, or (B, T) integers. A budget alone runs groups 1..i and critic i only,
        i = `choose(budget)`. With a minimum confidence or thresholds, each sample stops at the first exit that reaches
        them, its logits divided by the profile's temperature; below a minimum confidence it goes on to the deepest exit
        in the budget, as in the bundle's single file. With a timeout, in seconds from this call, the deepest
        exit in time answers, by this machine's timings; if none is in time, the first exit answers. Call `warm` before:
        loading graphs takes time too. Raises InputError, BudgetError, NothingFitsError and BundleError.
        """
        start = time.perf_counter()
        keywords = Ask(budget or UNLIMITED, timeout, min_confidence, measure, rule=thresholds)
        if (isinstance(ask, Ask) and keywords != DEFAULT_ASK) or (ask is not None and budget is not None):
            raise BudgetError("Expected an Ask, or keywords, got both; put everything into one of them.")
        if not isinstance(ask, Ask):
            ask = keywords if ask is None else replace(keywords, budget=ask)
        plan = self.plan(ask)
        if ask.mode == "fixed" or (ask.timeout is None and plan.stopping is None):
            return self.run_to(plan.deepest, x)
        with self.walk(x) as walk:
            return self.follow(walk, plan, ask.timeout, start)

    def follow(self, walk: Walk, plan: Plan, timeout: float | None, start: float) -> Answer:
        """Answer what is on a walk as a plan and a timeout of seconds from `start` say; raises BudgetError."""
        timing = self.timing
        if timeout is not None and timing is None:
            raise BudgetError(
                f"Expected timings of this machine for a timeout, got none; measure them with: "
                f"{timings.calibrate_command(self.bundle, self.provider)}."
            )
        orders = steps(walk, plan.deepest, plan.stopping, plan.stop_reason)
        try:
            next(orders)
            while True:
                order: Order = "deeper"
                if timeout is not None and timing is not None:
                    order = deadline.order(timing, walk, start + timeout - time.perf_counter(), timeout)
                orders.send(order)
        except StopIteration as end:
            return walk.answer_so_far(end.value)

    def run_to(self, exit: int, x: NDArray[Any]) -> Answer:
        """Answer a batch by a served exit, as `run` does by the one it chooses; raises InputError."""
        if exit not in self.served:
            raise InputError(
                f"Expected one of the served exits {show_shape(self.served)}, got {exit!r}; choose one of them."
            )
        plan = Plan(exit, None, self._planner.stop_reason(exit))
        return (self.run_plan if self.manifest.groups else self.run_whole)(self.check(x), plan)

    def run_whole(self, x: NDArray[Any], plan: Plan) -> Answer:
        """Answer a batch as `run_plan` does, by the graph of the whole exit; the plan stops no sample before.

        That is faster than group by group where a graph takes microseconds. Raises BundleError.
        """
        exit = plan.deepest
        logits = self.graphs.run(self.manifest.exits[exit].name, x)
        temperature = self.profile.exits[exit - 1].temperature
        return Answer(exit, logits, self._flops[exit], np.full(len(x), exit), 1, plan.stop_reason, temperature)

    def run_plan(self, x: NDArray[Any], plan: Plan) -> Answer:
        """Answer a batch, as `check` returns it, by a plan, without a deadline; raises BundleError."""
        self._require_groups()
        with Walk(x, self.chains, self.profile, self.timing) as walk:
            if plan.stopping is not None:
                return self.follow(walk, plan, None, 0.0)
            while walk.depth < plan.deepest:
                walk.advance()
            walk.answer()
            return walk.answer_so_far(plan.stop_reason)

    def stream(self, x: NDArray[Any]) -> Iterator[Answer]:
        """Answer a batch by every served exit in turn, each computing only what the one before has not.

        The input is checked and copied at once; nothing runs until the first answer is requested, and leaving the loop
        early computes nothing more. An answer stays valid. Raises InputError, and BundleError for a bundle without
        groups.
        """
        self._require_groups()
        return self._stream(np.array(self.check(x)))

    def _stream(self, x: NDArray[Any]) -> Iterator[Answer]:
        with self.walk(x) as walk:
            for exit in self.served:
                while walk.depth < exit:
                    walk.advance()
                walk.answer()
                yield walk.answer_so_far("last" if exit == self.served[-1] else "budget")

    def walk(self, x: NDArray[Any]) -> Walk:
        """Return a walk of a batch through the groups, which the caller advances and closes.

        Raises InputError, and BundleError for a bundle without groups.
        """
        self._require_groups()
        return Walk(self.check(x), self.chains, self.profile, self.timing)

    def check(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a batch as the network takes it, C-contiguous float32 or int64; raises InputError."""
        return check_batch(x, self.manifest)

    def rule(self, mean_flops: Flops) -> Thresholds:
        """Return the bundle's rule for stopping with the largest mean cost up to `mean_flops` per sample.

        Raises NothingFitsError, and BudgetError for a bundle without rules.
        """
        return self._planner.rule(mean_flops)

    def _require_groups(self) -> None:
        if not self.manifest.groups:
            raise BundleError(
                f"Expected a bundle with layer groups to run one by one, got '{self.bundle.path}', which has whole "
                f"exits only; export it again without --only exits."
            )
