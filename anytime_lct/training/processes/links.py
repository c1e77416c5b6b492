"""Links between neighbouring workers: h_i and labels go down, losses come up, one message a minibatch.

    worker 1   | 1 | 2 | 3 | 4 |        A message is an envelope (step, flags, shape, labels: int64, on the CPU) and a
    worker 2       | 1 | 2 | 3 | 4 |    payload (on the device). Sizes are agreed with the first message of a stretch of
                                        minibatches; a smaller one, like the short last minibatch, is padded.

The receive of minibatch k+1 is posted before k is worked on, into the other of two buffers; a send overlaps what
follows and is waited for by the next one. Every message carries its step: one that is out of turn stops the run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from anytime_lct.errors import WorkerLostError
from anytime_lct.training.minibatch import Minibatch

LAST, SAVE, INTERRUPTED = 1, 2, 4  # flags: the stretch ends here; write a checkpoint; somebody asked to stop
DIMENSIONS = 6
NUMBERS = 8 + 2 * DIMENSIONS  # of an envelope, before the labels
TYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int64)
BUFFERS = 2


@dataclass(frozen=True)
class Message:
    """What crosses a link. `rows` are this share's of the `joint` minibatch of all replicas."""

    step: int
    tensor: Tensor
    labels: Tensor | None = None
    flags: int = 0
    rows: int = 0
    joint: int = 0


class Link:
    """One direction between two workers: `peer` is the other's rank, `group` a process group of the two alone.

    With `wire` bf16, float32 payloads travel as bfloat16. Raises WorkerLostError where the neighbour is gone or out of
    step.
    """

    def __init__(self, group: dist.ProcessGroup, peer: int, device: torch.device, wire: str = "exact") -> None:
        self._group, self._peer, self._device, self._wire = group, peer, device, wire
        self._capacity: tuple[int, int] | None = None  # int64 numbers of an envelope, elements of a payload
        self._flying: deque[tuple[list[dist.Work], Any]] = deque()
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._type = self._original = torch.float32

    def send(self, message: Message) -> None:
        """Start sending; what is sent must not be changed until the next message, or `finish`."""
        order = sorted(range(message.tensor.dim()), key=lambda d: -message.tensor.stride(d))
        dense = message.tensor.detach().permute(order)
        flat = dense.contiguous().reshape(-1)  # no copy for any dense layout, channels-last included
        if self._wire == "bf16" and flat.dtype == torch.float32:
            flat = flat.to(torch.bfloat16)
        envelope = _envelope(message, order)
        with _facing(self._peer):
            if self._capacity is None:
                self._capacity = (len(envelope), flat.numel())
                agreed = [*self._capacity, TYPES.index(flat.dtype), TYPES.index(message.tensor.dtype)]
                dist.send(torch.tensor(agreed), self._peer, self._group)
            if len(envelope) > self._capacity[0] or flat.numel() > self._capacity[1]:
                raise WorkerLostError(
                    f"Expected messages of at most {self._capacity[1]} elements as agreed with the first one, got "
                    f"{flat.numel()} at step {message.step + 1}; give minibatches of one shape, the largest first."
                )
            parts = [_padded(envelope, self._capacity[0]), _padded(flat, self._capacity[1])]
            while self._flying:
                self._land()
            works = [dist.isend(part, self._peer, self._group) for part in parts]
            self._flying.append(([work for work in works if work is not None], parts))
        if message.flags & LAST:
            self.finish()

    def receive(self, step: int, last: bool = False) -> Message:
        """Wait for the message of `step`; unless it, or the caller, says it is the last, post the next receive."""
        with _facing(self._peer):
            if self._capacity is None:
                agreed = torch.zeros(4, dtype=torch.int64)
                dist.recv(agreed, self._peer, self._group)
                numbers, elements, wire, original = agreed.tolist()
                self._capacity, self._type, self._original = (numbers, elements), TYPES[wire], TYPES[original]
                self._post()
            envelope, payload = self._buffers[0]
            self._land()
        message = _opened(envelope, payload.to(self._original))
        if message.step != step:
            raise WorkerLostError(
                f"Expected the message of step {step + 1} from rank {self._peer}, got that of step {message.step + 1}; "
                f"start all workers with the same recipe and folder, and go on with --resume."
            )
        self._buffers.append(self._buffers.pop(0))
        if last or message.flags & LAST:
            self._capacity, self._buffers = None, []
        else:
            with _facing(self._peer):
                self._post()
        return message

    def finish(self) -> None:
        """Wait for what is in flight; the next message starts a new stretch."""
        with _facing(self._peer):
            while self._flying:
                self._land()
        self._capacity = None

    def _post(self) -> None:
        assert self._capacity is not None
        while len(self._buffers) < BUFFERS:
            numbers, elements = self._capacity
            envelope = torch.zeros(numbers, dtype=torch.int64)
            self._buffers.append((envelope, torch.empty(elements, dtype=self._type, device=self._device)))
        works = [dist.irecv(part, self._peer, self._group) for part in self._buffers[0]]
        self._flying.append(([work for work in works if work is not None], None))

    def _land(self) -> None:
        works, _ = self._flying.popleft()
        for work in works:
            work.wait()


@dataclass(frozen=True)
class News:
    """What comes up beside losses: sums of losses times samples and their counts, (2, N), and a wish to stop."""

    sums: Tensor
    interrupted: bool = False


NO_NEWS = News(torch.zeros(2, 0, dtype=torch.float64))


@dataclass
class Edge:
    """Both directions between two neighbours; `news` is what was heard from below, or is told above with the losses."""

    down: Link
    up: Link
    news: News = NO_NEWS

    def pass_on(self, batch: Minibatch, h: Tensor) -> None:
        """Send a minibatch down, with `h` as what enters the next worker."""
        flags = LAST * batch.last | SAVE * batch.save
        self.down.send(Message(batch.step, h, batch.y, flags, batch.rows, batch.joint))

    def tell(self, batch: Minibatch, losses: Tensor) -> None:
        """Send losses of a minibatch up, and the news with them."""
        told = torch.cat([losses.double().reshape(-1), self.news.sums.to(losses.device).reshape(-1)])
        self.up.send(Message(batch.step, told, flags=LAST * batch.last | INTERRUPTED * self.news.interrupted))

    def hear(self, batch: Minibatch, count: int) -> Tensor:
        """Wait for the `count` losses that come up for a minibatch, (count,), float32, and keep the news."""
        message = self.up.receive(batch.step, batch.last)
        sums = message.tensor[count:].view(2, -1).clone()
        self.news = News(sums, bool(message.flags & INTERRUPTED))
        return message.tensor[:count].float()

    def minibatches(self, first: int) -> Iterator[Minibatch]:
        """Yield what comes from the worker before, from step `first` to the end of the stretch."""
        last = False
        while not last:
            got = self.down.receive(first)
            assert got.labels is not None
            last, first = bool(got.flags & LAST), first + 1
            yield Minibatch(got.tensor, got.labels, got.step, last, bool(got.flags & SAVE), got.rows, got.joint)


def _envelope(message: Message, order: Sequence[int]) -> Tensor:
    def padded(values: Sequence[int]) -> list[int]:
        return [*values, *[0] * (DIMENSIONS - len(values))]

    labels = message.labels
    shape = (0, 0) if labels is None else (labels.dim(), labels.shape[-1] if labels.dim() > 1 else 1)
    numbers = [message.step, message.flags, message.rows, message.joint, message.tensor.dim(), *shape]
    count = 0 if labels is None else labels.numel()
    head = torch.tensor([*numbers, count, *padded(message.tensor.shape), *padded(order)])
    return head if labels is None else torch.cat([head, labels.detach().cpu().reshape(-1).to(torch.int64)])


def _opened(envelope: Tensor, payload: Tensor) -> Message:
    step, flags, rows, joint, dims, label_dims, window, count, *rest = envelope[:NUMBERS].tolist()
    shape, order = rest[:dims], rest[DIMENSIONS : DIMENSIONS + dims]
    tensor = payload[: math.prod(shape)].view([shape[d] for d in order])
    tensor = tensor.permute([order.index(d) for d in range(dims)])  # the strides it had with the sender
    labels = envelope[NUMBERS : NUMBERS + count].clone() if label_dims else None
    if labels is not None:
        labels = (labels.view(-1, window) if label_dims > 1 else labels).to(payload.device, non_blocking=True)
    return Message(step, tensor, labels, flags, rows, joint)


def _padded(flat: Tensor, size: int) -> Tensor:
    if flat.numel() == size:
        return flat
    full = flat.new_zeros(size)
    full[: flat.numel()] = flat
    return full


@contextmanager
def _facing(peer: int) -> Iterator[None]:
    """Name the neighbour when a transfer fails."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, WorkerLostError):
            raise
        raise WorkerLostError(peer=peer) from error
