"""A batch on its way through the layer groups: one group at a time, with an answer at any exit.

Where some samples are confident enough to stop, the others go on as a smaller batch:

    4 samples -> group 1 -> critic 1: two stop -> 2 samples -> group 2 -> critic 2 ..
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import BudgetError
from anytime_lct.exits.budget import StopReason
from anytime_lct.exits.bundle import Manifest
from anytime_lct.exits.profile import Profile
from anytime_lct.exits.thresholds import Measure
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.confidence import confidence
from anytime_lct.runtime.timing import Timing

Order = Literal["deeper", "answer and deeper", "deadline", "load", "late"]
"""What to do behind a group: go on; compute an answer as a fallback, then go on; answer here, with the reason; or,
where there is no time even for that, return the last answer."""


class Chained(Protocol):
    """The parts of a network in a row, at a `depth`: what a walk needs of a chain, or of the reader of a text."""

    depth: int

    def start(self, x: NDArray[Any], depth: int = 0) -> None: ...
    def advance(self) -> bool: ...
    def hidden(self) -> NDArray[np.float32]: ...
    @property
    def is_critic_bound(self) -> bool: ...
    def logits(self) -> NDArray[np.float32]: ...


class Lender(Protocol):
    """What lends a walk the parts of a network, and takes them back."""

    manifest: Manifest

    def take(self, shape: tuple[int, ...]) -> Chained: ...
    def give_back(self, shape: tuple[int, ...], chain: Any) -> None: ...


class StoppingRule(NamedTuple):
    """Samples stop at the first visited exit whose confidence reaches its threshold, `at[exit]`."""

    at: dict[int, float]
    measure: Measure
    temperatures: dict[int, float]

    @classmethod
    def of(cls, at: dict[int, float], measure: Measure, profile: Profile) -> StoppingRule:
        """Return a rule with the temperatures of a profile; raises BudgetError where exits have no confidence."""
        if profile.row.root:
            raise BudgetError(
                "Expected a network that classifies for samples that stop by their confidence, got one of numbers, "
                "which have none; choose an exit by a budget."
            )
        return cls(at, measure, {i: profile.exits[i - 1].temperature for i in at})

    def is_confident(self, exit: int, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which samples stop at an exit: (B,)."""
        return confidence(logits, self.measure, self.temperatures[exit]) >= self.at[exit]


class Walk:
    """A batch on its way; a context manager, which gives its buffers back.

    `rows` are the indices of the samples that are still on the way. `logits` (B, K) or (B, T, K) and `exits` (B,) hold
    the latest answer of each sample and the exit that gave it; `flops` (B,) counts the multiply-adds of each,
    `seconds` the time of groups and critics; `visited` are the exits that were computed. Chains come from `pool`, costs
    from `profile`; `timing` learns from the times of the parts.
    """

    def __init__(self, x: NDArray[Any], pool: Lender, profile: Profile, timing: Timing | None = None) -> None:
        self.rows = np.arange(len(x))
        self.exits = np.zeros(len(x), np.int64)
        self.logits: NDArray[np.float32] | None = None
        self.visited: list[int] = []
        self.flops = np.zeros(len(x), np.int64)
        self.seconds = 0.0
        self.served = pool.manifest.served
        self._pool, self._profile, self._timing = pool, profile, timing
        self._shape = x.shape
        self._answered = False
        self._chain: Chained | None = pool.take(x.shape)
        self._chain.start(x)

    @property
    def depth(self) -> int:
        """Number of groups that have run."""
        assert self._chain is not None
        return self._chain.depth

    @property
    def is_answered(self) -> bool:
        """Whether every sample has an answer."""
        return bool(self.exits.all())

    @property
    def is_answered_here(self) -> bool:
        """Whether the exit at the current depth has answered."""
        return self._answered

    @property
    def size(self) -> int:
        """Samples still on the way (for text: characters)."""
        return len(self.rows) * (self._shape[1] if len(self._shape) == 2 else 1)

    def advance(self) -> None:
        """Run the next group."""
        assert self._chain is not None
        chain, size = self._chain, self.size
        start = time.perf_counter()
        was_bound = chain.advance()
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self._answered = False
        self.flops[self.rows] += self._profile.groups[chain.depth - 1].flops
        if self._timing is not None and was_bound:
            self._timing.observe_group(chain.depth, size, seconds)

    def answer(self) -> NDArray[np.float32]:
        """Answer the samples on the way by the exit at the current depth; return their logits, (len(rows), ..)."""
        assert self._chain is not None
        depth = self._chain.depth
        if not self._answered:
            was_bound, start = self._chain.is_critic_bound, time.perf_counter()
            logits = self._chain.logits()
            seconds = time.perf_counter() - start
            self.seconds += seconds
            if len(self.rows) == len(self.exits):
                self.logits = logits
                self.exits.fill(depth)
            else:
                assert self.logits is not None  # the samples that stopped have answers
                self.logits[self.rows] = logits
                self.exits[self.rows] = depth
            self.visited.append(depth)
            self._answered = True
            critics = self._profile.critics
            if depth <= len(critics):
                self.flops[self.rows] += critics[depth - 1].flops
                if self._timing is not None and was_bound:
                    self._timing.observe_critic(depth, self.size, seconds)
        assert self.logits is not None
        return self.logits if len(self.rows) == len(self.exits) else self.logits[self.rows]

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Let only these of the samples on the way go on, as a smaller batch; `mask` is (len(rows),), not all False."""
        if mask.all():
            return
        assert self._chain is not None
        hidden, depth = self._chain.hidden()[mask], self._chain.depth
        chain = self._pool.take((len(hidden), *self._shape[1:]))
        chain.start(hidden, depth)
        self._pool.give_back((len(self.rows), *self._shape[1:]), self._chain)
        self._chain, self.rows = chain, self.rows[mask]

    def is_final(self, samples: slice) -> bool:
        """Return whether none of these samples is on the way any more."""
        return not np.any((self.rows >= samples.start) & (self.rows < samples.stop))

    def answer_so_far(self, stopped: StopReason, samples: slice | None = None) -> Answer:
        """Return the latest answers, one for every sample, or for those of a slice.

        `stopped` is why no deeper exit answered those on the way; where none is, all were confident.
        """
        assert self.logits is not None
        part, profile = samples or slice(0, len(self.exits)), self._profile.exits
        exits, logits = self.exits[part].copy(), self.logits[part]
        if len(self.rows) == len(self.exits):  # all samples are alike
            deepest = self.visited[-1]
            temperature = profile[deepest - 1].temperature
            return Answer(deepest, logits, int(self.flops[0]), exits, len(self.visited), stopped, temperature)
        deepest, flops = int(exits.max()), int(self.flops[part].sum()) / len(exits)
        return Answer(
            deepest,
            logits,
            int(flops) if flops.is_integer() else flops,
            exits,
            sum(exit <= deepest for exit in self.visited),
            "confident" if self.is_final(part) else stopped,
            np.array([exit.temperature for exit in profile])[exits - 1],
        )

    def close(self) -> None:
        """Give the buffers back; the answers stay."""
        if self._chain is not None:
            self._pool.give_back((len(self.rows), *self._shape[1:]), self._chain)
            self._chain = None

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def steps(
    walk: Walk, deepest: int, stopping: StoppingRule | None = None, stop_reason: StopReason = "budget"
) -> Generator[int, Order, StopReason]:
    """Take a batch to exit `deepest` at most; at each served exit on the way, yield its index and take an order.

    Returns why it stopped, `stop_reason` at exit `deepest`; every sample then has an answer.
    """
    while True:
        walk.advance()
        depth = walk.depth
        if stopping is not None and depth in stopping.at and depth < deepest:
            is_confident = stopping.is_confident(depth, walk.answer())
            if is_confident.all():
                return "confident"
            walk.keep(~is_confident)
        if depth == deepest:
            walk.answer()
            return stop_reason
        if depth in walk.served:
            order = yield depth
            if order == "late" and walk.is_answered:
                return "deadline"
            if order != "deeper":
                walk.answer()
            if order not in ("deeper", "answer and deeper"):
                return "load" if order == "load" else "deadline"
