"""A request on its way through the engine, and the model that answers it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from anytime_lct.errors import BundleError
from anytime_lct.exits.budget import Ask, Stopped
from anytime_lct.exits.bundle import Bundle
from anytime_lct.runtime import calibration, timings
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.deadline import next_exit
from anytime_lct.runtime.session import AnytimeSession, Plan
from anytime_lct.runtime.timing import Timing
from anytime_lct.runtime.walk import Order, Walk
from anytime_lct.serving.request import Reply


class Served:
    """A bundle in service: its session, and what its parts take on this machine.

    Timings beside the bundle are used; where there are none of this machine they are measured, which takes some
    seconds, and kept there if the folder can be written to and holds none for other threads. Raises BundleError.
    """

    def __init__(self, bundle: Bundle | Path | AnytimeSession, progress: Callable[[str], None] | None = None) -> None:
        self.session = bundle if isinstance(bundle, AnytimeSession) else AnytimeSession(bundle)
        self.manifest, self.profile = self.session.manifest, self.session.profile
        if self.session.timing is None:
            found = calibration.calibrate(self.session, progress=progress)
            try:
                if timings.load(self.session.bundle, None) is None:
                    timings.save(found, self.session.bundle)
            except BundleError:
                if progress is not None:
                    progress("timings are not kept: the folder beside the bundle cannot be written to")
            self.session.use(found)

    @property
    def timing(self) -> Timing:
        """What the next part will take."""
        assert self.session.timing is not None
        return self.session.timing


@dataclass(eq=False)
class Job:
    """A request: what it asks, until when, how deep at most, and where it is.

    `due` is on the monotonic clock, infinite without a timeout. `last` is the answer to fall back on while a deeper
    group runs.
    """

    served: Served
    x: NDArray[Any]
    ask: Ask
    arrived: float
    plan: Plan
    due: float = math.inf
    future: Future[Reply] = field(default_factory=Future[Reply])
    walk: Walk | None = None
    taken: Generator[int, Order, Stopped] | None = None
    last: Answer | None = None
    began: float = 0.0
    until: float = 0.0  # while it runs: when it could be answered, if it goes no deeper than it is going
    computed: float = 0.0

    @property
    def most(self) -> int:
        """The exit to go to at most."""
        return self.plan.most

    @property
    def is_fixed(self) -> bool:
        return self.ask.mode == "fixed"

    @property
    def depth(self) -> int:
        """Groups that were run."""
        return self.walk.depth if self.walk is not None else 0

    @property
    def size(self) -> int:
        """Samples on the way; of text, characters."""
        if self.walk is not None:
            return self.walk.size
        return self.x.size if self.served.manifest.task == "language-model" else len(self.x)

    @property
    def first(self) -> int:
        """The shallowest exit that it can still be answered by."""
        served = self.served.session.served
        if self.is_fixed:
            return self.most
        return self.depth if self.depth in served else min(self.most, next_exit(served, self.depth))

    def seconds_to(self, exit: int) -> float:
        """Predicted seconds from here to the answer of an exit, no deeper than allowed, no shallower than here."""
        goal = self.most if self.is_fixed else max(self.first, min(exit, self.most))
        return self.served.timing.to_exit(goal, self.size, self.depth) + self.served.timing.overhead
