"""A request on its way through the engine, and the model that answers it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from anytime_lct.errors import BundleError
from anytime_lct.exits.budget import Ask, StopReason
from anytime_lct.exits.bundle import Bundle, Manifest
from anytime_lct.pixels import load_decoders
from anytime_lct.runtime import calibration, timings
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.deadline import next_exit
from anytime_lct.runtime.session import AnytimeSession, Plan
from anytime_lct.runtime.timing import Timing
from anytime_lct.runtime.walk import Order, Walk
from anytime_lct.serving.request import Reply

# Calibrated seconds up to which an exit is short: answered in the thread that brings the request, by one graph.
SHORT = 0.00025
# A sample in a batch that pays takes at most this share of its time alone.
PAYS = 0.75


class ServedBundle:
    """A bundle in service: its session, with timings of this machine.

    Timings beside the bundle are used; where there are none of this machine they are measured, which takes some
    seconds, and stored there if the folder is writable and has none for other threads. The graphs of whole exits are
    loaded too where those are short. `sizes` are those of batches that requests may join into, from 1 on; `batches` are
    those that pay, the largest of which bounds a batch. Raises BundleError.
    """

    def __init__(
        self,
        bundle: Bundle | Path | AnytimeSession,
        progress: Callable[[str], None] | None = None,
        sizes: Sequence[int] = (1,),
    ) -> None:
        self.session = bundle if isinstance(bundle, AnytimeSession) else AnytimeSession(bundle)
        self.manifest, self.profile = self.session.manifest, self.session.profile
        if self.manifest.preprocessing.kind == "image":
            load_decoders()
        counted = [calibration.counted(self.manifest, size) for size in sizes]
        if self.session.timing is None or not self.session.timing.sizes.issuperset(counted):
            measured = calibration.calibrate(self.session, {*calibration.SIZES, *sizes}, progress=progress)
            try:
                stored = timings.load(self.session.bundle, None, self.session.provider)
                if stored is None or stored.threads == measured.threads:
                    timings.save(measured, self.session.bundle)
            except BundleError:
                if progress is not None:
                    progress("timings are not stored: the folder of the bundle is not writable")
            self.session.use_timings(measured)
        self.batches = paying(self.timing, self.session.served[-1], zip(sizes, counted, strict=True))
        for size in range(2, 1 + max(self.batches, default=1)):  # no request waits for a size that is new
            self.session.warm(size)
        self._whole = {
            exit for exit in self.session.served if exit in self.manifest.exits and self.is_short(exit, samples=1)
        }
        for exit in self._whole:
            self.session.graphs.load(self.manifest.exits[exit].name)

    def is_short(self, exit: int, samples: int) -> bool:
        """Return whether the answer of an exit takes so little time that to hand it to another thread takes as long."""
        return self.timing.calibrated(exit, samples) <= SHORT

    def run(self, x: NDArray[Any], plan: Plan) -> Answer:
        """Answer a batch by a plan, without a deadline: a short exit at once if no sample can stop before it."""
        is_whole = plan.stopping is None and plan.deepest in self._whole
        return (self.session.run_whole if is_whole else self.session.run_plan)(x, plan)

    @property
    def timing(self) -> Timing:
        """The predictor of the times of groups and critics."""
        assert self.session.timing is not None
        return self.session.timing


def paying(timing: Timing, exit: int, sizes: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Return the sizes of batches that pay, rising; pairs of a size in samples and as `timing` counts it are tried.

    A sample takes at most the share PAYS of its time alone, and no longer than at a smaller size that pays.
    """
    (first, unit), *others = sizes
    least = PAYS * timing.calibrated(exit, unit) / first
    pay: list[int] = []
    for size, counted in others:
        if (seconds := timing.calibrated(exit, counted) / size) <= least:
            pay.append(size)
            least = seconds
    return tuple(pay)


@dataclass(eq=False)
class Job:
    """A request, or `members` that run as one batch: its Ask and plan, when it is due, and how far it is.

    Times are of time.monotonic(); `due` is infinite without a timeout. `fallback` are answers to give, one for each
    request, if the deeper group that runs is late; `answer_at`, while the job runs, is the time at which it could
    answer without going deeper, and `hangs_at` the time from which it hangs. The members of a batch are by deadline; it
    is due when the first is.
    """

    bundle: ServedBundle
    x: NDArray[Any]
    ask: Ask
    arrived: float
    plan: Plan
    due: float = math.inf
    future: Future[Reply] = field(default_factory=Future[Reply])
    walk: Walk | None = None
    steps: Generator[int, Order, StopReason] | None = None
    fallback: tuple[Answer, ...] = ()
    started: float = 0.0
    resumed: float = 0.0
    answer_at: float = 0.0
    hangs_at: float = math.inf
    computed: float = 0.0
    members: tuple[Job, ...] = ()

    @property
    def requests(self) -> tuple[Job, ...]:
        """The requests that run: the members of a batch, or this one."""
        return self.members or (self,)

    @property
    def samples(self) -> int:
        """Samples of all its requests."""
        return sum(len(each.x) for each in self.requests)

    @property
    def deepest(self) -> int:
        """The deepest exit to go to."""
        return self.plan.deepest

    @property
    def is_fixed(self) -> bool:
        """Whether the request is of the mode "fixed"."""
        return self.ask.mode == "fixed"

    @property
    def depth(self) -> int:
        """Number of groups that have run."""
        return self.walk.depth if self.walk is not None else 0

    @property
    def size(self) -> int:
        """Samples on the way (for text: characters)."""
        if self.walk is not None:
            return self.walk.size
        return sum(batch_size(each.x, self.bundle.manifest) for each in self.requests)

    @property
    def shallowest(self) -> int:
        """The shallowest exit that can still answer."""
        served = self.bundle.session.served
        if self.is_fixed:
            return self.deepest
        return self.depth if self.depth in served else min(self.deepest, next_exit(served, self.depth))

    def seconds_to(self, exit: int) -> float:
        """Return the predicted seconds to the answer of `exit`, or of the nearest exit that is possible."""
        nearest = self.deepest if self.is_fixed else max(self.shallowest, min(exit, self.deepest))
        return self.bundle.timing.to_exit(nearest, self.size, self.depth) + self.bundle.timing.overhead


def batch_size(x: NDArray[Any], manifest: Manifest) -> int:
    """Return the samples of a batch (for text: characters)."""
    return x.size if manifest.row.is_text else len(x)
