"""A batch on its way through the layer groups: one group at a time, answered where one likes, left by who is sure.

Where some samples stop, the rest is put together into a smaller batch and goes on:

    4 samples -> group 1 -> critic 1: two are sure -> 2 samples -> group 2 -> critic 2 ..
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anytime_lct.exits.budget import Stopped
from anytime_lct.exits.profile import Profile
from anytime_lct.exits.thresholds import Measure
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.chain import Chain, ChainPool
from anytime_lct.runtime.confidence import confidence
from anytime_lct.runtime.timing import Timing

Order = Literal["deeper", "answer and deeper", "deadline", "load", "late"]
"""What to do behind a group: go on; have an answer first that will do in need; answer here and say why; or, when there
is no time even for that, be content with the last answer."""


class Stopping(NamedTuple):
    """Samples stop at the first visited exit whose confidence reaches its threshold; `at` is by exit."""

    at: dict[int, float]
    measure: Measure
    temperatures: dict[int, float]

    def sure(self, exit: int, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Tell which samples stop here: (B,)."""
        return confidence(logits, self.measure, self.temperatures[exit]) >= self.at[exit]


class Walk:
    """One batch on its way; a context manager, which gives its buffers back.

    `rows` are the numbers of the samples that are still on the way. `logits` (B, K) or (B, T, K) and `exits` (B,) hold
    what each sample was last told, and by which exit; `paid` counts multiply-adds of all samples together, `seconds`
    what groups and critics took. Chains come from `pool`, costs from `profile`; `timing` learns what parts take.
    """

    def __init__(self, x: NDArray[Any], pool: ChainPool, profile: Profile, timing: Timing | None = None) -> None:
        self.rows = np.arange(len(x))
        self.exits = np.zeros(len(x), np.int64)
        self.logits: NDArray[np.float32] | None = None
        self.exits_run = 0
        self.paid = 0
        self.seconds = 0.0
        self.served = pool.manifest.served
        self._pool, self._profile, self._timing = pool, profile, timing
        self._shape = x.shape
        self._answered = False
        self._chain: Chain | None = pool.take(x.shape)
        self._chain.start(x)

    @property
    def depth(self) -> int:
        """Groups that were run."""
        assert self._chain is not None
        return self._chain.depth

    @property
    def is_answered(self) -> bool:
        """Whether every sample was told something."""
        return bool(self.exits.all())

    @property
    def is_answered_here(self) -> bool:
        """Whether the exit where the batch has come to has answered already."""
        return self._answered

    @property
    def size(self) -> int:
        """Samples still on the way; of text, characters."""
        return len(self.rows) * (self._shape[1] if len(self._shape) == 2 else 1)

    def advance(self) -> None:
        """Run the next group."""
        assert self._chain is not None
        start = time.perf_counter()
        is_usual = self._chain.advance()
        seconds = time.perf_counter() - start
        self.seconds += seconds
        depth = self._chain.depth
        self._answered = False
        self.paid += len(self.rows) * self._profile.groups[depth - 1].flops
        if self._timing is not None and is_usual:
            self._timing.saw_group(depth, self.size, seconds)

    def answer(self) -> NDArray[np.float32]:
        """Tell the samples on the way what the exit here says, and return it: (len(rows), ..)."""
        assert self._chain is not None
        depth = self._chain.depth
        if not self._answered:
            is_usual, start = self._chain.has_asked, time.perf_counter()
            logits = self._chain.logits()
            seconds = time.perf_counter() - start
            self.seconds += seconds
            if len(self.rows) == len(self.exits):
                self.logits = logits
            else:
                assert self.logits is not None  # those who left were told something
                self.logits[self.rows] = logits
            self.exits[self.rows] = depth
            self.exits_run += 1
            self._answered = True
            critics = self._profile.critics
            if depth <= len(critics):
                self.paid += len(self.rows) * critics[depth - 1].flops
                if self._timing is not None and is_usual:
                    self._timing.saw_critic(depth, self.size, seconds)
        assert self.logits is not None
        return self.logits if len(self.rows) == len(self.exits) else self.logits[self.rows]

    def keep(self, going: NDArray[np.bool_]) -> None:
        """Let only these of the samples on the way go on, as a smaller batch; `going` is (len(rows),), some true."""
        if going.all():
            return
        assert self._chain is not None
        rest, depth = self._chain.hidden()[going], self._chain.depth
        smaller = self._pool.take((len(rest), *self._shape[1:]))
        smaller.start(rest, depth)
        self._pool.give_back((len(self.rows), *self._shape[1:]), self._chain)
        self._chain, self.rows = smaller, self.rows[going]

    def so_far(self, stopped: Stopped) -> Answer:
        """Return what the samples were told, every one something; `stopped` says why no deeper exit answered."""
        assert self.logits is not None
        flops = self.paid / len(self.exits)
        return Answer(
            int(self.exits.max()),
            self.logits,
            int(flops) if flops.is_integer() else flops,
            self.exits.copy(),
            self.exits_run,
            stopped,
        )

    def close(self) -> None:
        """Give the buffers back; what was told stays."""
        if self._chain is not None:
            self._pool.give_back((len(self.rows), *self._shape[1:]), self._chain)
            self._chain = None

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def steps(
    walk: Walk, most: int, stopping: Stopping | None = None, ended: Stopped = "budget"
) -> Generator[int, Order, Stopped]:
    """Take a batch to exit `most` at the deepest; behind each served exit on the way, yield it and take an order.

    Returns why it stopped, `ended` behind exit `most`; every sample then was told something.
    """
    while True:
        walk.advance()
        depth = walk.depth
        if stopping is not None and depth in stopping.at and depth < most:
            sure = stopping.sure(depth, walk.answer())
            if sure.all():
                return "confident"
            walk.keep(~sure)
        if depth == most:
            walk.answer()
            return ended
        if depth in walk.served:
            order = yield depth
            if order == "late" and walk.is_answered:
                return "deadline"
            if order != "deeper":
                walk.answer()
            if order not in ("deeper", "answer and deeper"):
                return "load" if order == "load" else "deadline"
