"""A text that is read once: every part of the network goes on from the state in which it stopped reading.

text         a b c d e
group 1      * * * * *    reads every character as it comes
critic 1           * *    answers d and e; one without a state reads no others
group 2      * * *        reads d and e with the next character that goes deeper than exit 1
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anytime_lct.exits.bundle import Manifest
from anytime_lct.exits.profile import Profile
from anytime_lct.runtime.graphs import Graphs, State


class TextReader:
    """The groups and critics of a bundle reading one text, (1, T) at a time, as a walk uses a chain of them.

    It is a pool that lends itself. `length` counts the characters so far, `flops` the multiply-adds since the last
    `start`, with those of groups that catch up.
    """

    def __init__(self, graphs: Graphs, manifest: Manifest, profile: Profile) -> None:
        self.manifest = manifest
        self.depth, self.flops, self.length = 0, 0, 0
        self._graphs, self._profile = graphs, profile
        self._states: dict[str, State] = {}
        self._unread: dict[str, list[NDArray[Any]]] = {}  # by the file of a part: what it reads when it runs next
        self._logits: NDArray[np.float32] | None = None

    def take(self, shape: tuple[int, ...]) -> TextReader:
        """Lend the reader itself, where the text is."""
        return self

    def give_back(self, shape: tuple[int, ...], chain: object) -> None:
        """Take the reader back; it stays where it is in the text."""

    def start(self, x: NDArray[Any], depth: int = 0) -> None:
        """Go on with the next characters (1, T)."""
        self.depth, self.flops, self.length = 0, 0, self.length + x.shape[1]
        self._unread.setdefault(self.manifest.groups[0].name, []).append(x)

    def advance(self) -> bool:
        """Run the next group on all that it has not read; return False, as that is no measure of its time."""
        i = self.depth = self.depth + 1
        output = self._read(self.manifest.groups[i - 1].name, self._profile.groups[i - 1].flops)
        self._logits = output if i == self.manifest.num_groups else None
        if i < len(self.manifest.groups):
            self._unread.setdefault(self.manifest.groups[i].name, []).append(output)
        if i in self.manifest.critics:
            name = self.manifest.critics[i].name
            states = self._graphs.states(name)
            self._unread[name] = [*self._unread.get(name, []), output] if states else [output[:, -1:]]
        return False

    def hidden(self) -> NDArray[np.float32]:
        """Raise RuntimeError: a text of which some samples stop is more than one."""
        raise RuntimeError("A reader has one text, of which no sample goes on alone.")

    @property
    def is_critic_bound(self) -> bool:
        """Whether the time of the critic is a measure of it, which it is not."""
        return False

    def logits(self) -> NDArray[np.float32]:
        """Run the exit at the current depth; return the logits (1, 1, K) behind the last character."""
        if self._logits is None:
            name = self.manifest.critics[self.depth].name
            self._logits = self._read(name, self._profile.critics[self.depth - 1].flops)
        return self._logits[:, -1:]

    def _read(self, name: str, flops: int) -> NDArray[np.float32]:
        """Run a part on what it has not read, from its state; `flops` are those of a character."""
        x = np.concatenate(self._unread.pop(name), axis=1)
        self.flops += x.shape[1] * flops
        output, self._states[name] = self._graphs.go_on(name, x, self._states.get(name, {}))
        return output
